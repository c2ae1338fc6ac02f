"""Tuning chooses among algorithms that agree, keeps what it found, and stays in its time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nir
from nir import nn
from nir.errors import NirError
from nir.frozen import replace
from nir.targets import cpu
from nir.tune import tuned

SPEC = "f32[2,32,12,12]"
X = np.random.default_rng(0).standard_normal((2, 32, 12, 12)).astype(np.float32)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("NIR_CACHE_DIR", str(tmp_path))
    nir.manual_seed(0)
    window = {"padding": 1}
    return nn.Sequential(
        nn.Conv2d(32, 48, 3, **window), nn.ReLU(), nn.Conv2d(48, 64, 1), nn.Conv2d(64, 8, 3)
    ).eval()


@pytest.fixture
def graph(model: Any) -> Any:
    return nir.trace(model, SPEC)


def kernels(compiled: Any) -> list[str]:
    return [
        c.kernel for c in compiled.program.calls if "conv2d" in c.kernel or "matmul" in c.kernel
    ]


def test_every_convolution_with_a_choice_is_measured(graph: Any) -> None:
    target = tuned(graph, cpu.target(), 60.0)
    assert len(target.choices) == 3
    assert {a for _, a in target.choices} <= {"direct", "winograd", "product"}
    assert all(place.startswith("conv2d(f32[") for place, _ in target.choices)
    strict = tuned(graph, cpu.target(numerics="strict"), 60.0)
    assert {a for _, a in strict.choices} <= {"direct", "product"}
    assert len(strict.choices) == 1  # of 3 x 3 windows there is one algorithm


def test_what_was_found_is_found_again(graph: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tuned(graph, "cpu", 60.0)

    def unwanted(*_: Any) -> str:
        raise AssertionError("measured again")

    monkeypatch.setattr("nir.tune._fastest", unwanted)
    assert tuned(graph, "cpu", 60.0).choices == first.choices


def test_no_time_measures_nothing_and_the_rule_holds(
    graph: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tuned(graph, "cpu", 0.0).choices == ()
    assert tuned(graph, "cpu", 1e-9).choices == ()
    assert tuned(graph, "interp", 1.0).name == "interp"
    with pytest.raises(NirError, match="expected seconds >= 0, got -1"):
        tuned(graph, "cpu", -1.0)


# What cannot be chosen for a convolution leaves it to the rule: Winograd for the first, products.
@pytest.mark.parametrize(
    ("wanted", "winograd", "products"), [("direct", 0, 0), ("winograd", 2, 1), ("product", 1, 1)]
)
def test_a_choice_decides(
    model: Any, graph: Any, wanted: str, winograd: int, products: int
) -> None:
    places = [place for place, _ in tuned(graph, cpu.target(), 60.0).choices]
    target = replace(cpu.target(), choices=tuple((p, wanted) for p in places))
    compiled = nir.compile(model, SPEC, target=target)
    found = kernels(compiled)
    assert sum("winograd" in k for k in found) == winograd
    assert sum("matmul" in k for k in found) == products
    want = nir.compile(model, SPEC, target="interp")(X).numpy()
    np.testing.assert_allclose(compiled(X).numpy(), want, rtol=1e-4, atol=1e-5)


def test_compile_tunes_and_the_package_holds_the_choice(model: Any, tmp_path: Path) -> None:
    compiled = nir.compile(model, SPEC, tune=60.0)
    compiled.save(tmp_path / "tuned.nirp")
    loaded = nir.load(tmp_path / "tuned.nirp")
    assert np.asarray(loaded(X)).tobytes() == compiled(X).numpy().tobytes()
    assert [c.kernel for c in loaded.program.calls] == [c.kernel for c in compiled.program.calls]
