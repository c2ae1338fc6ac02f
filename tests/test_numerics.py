"""`numerics` says whether another algorithm than the definition may compute an op."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nir
from nir import nn
from nir.errors import NirError

X = np.random.default_rng(0).standard_normal((4, 64, 16, 16)).astype(np.float32)


@pytest.fixture
def model() -> Any:
    nir.manual_seed(0)
    return nn.Conv2d(64, 64, 3, padding=1).eval()


def kernels(compiled: Any) -> set[str]:
    return {call.kernel for call in compiled.program.calls}


def test_strict_convolutions_are_computed_as_defined(model: Any) -> None:
    fast, strict = (nir.compile(model, "f32[4,64,16,16]", numerics=n) for n in (None, "strict"))
    assert "nir_conv2d_winograd_f32" in kernels(fast)
    assert "nir_conv2d_winograd_f32" not in kernels(strict)
    y, want = fast(X).numpy(), strict(X).numpy()
    # docs/numerics.md: the error of each, against the largest result.
    wide = nir.compile(model, "f32[4,64,16,16]", target="interp")(X).numpy()
    scale = np.abs(wide).max()
    assert np.abs(want - wide).max() < 1e-6 * scale
    assert 0 < np.abs(y - want).max() < 2e-6 * scale


def test_a_step_says_how_it_computes(model: Any) -> None:
    def loss(x: Any) -> Any:
        return model(x).sum()

    strict = nir.jit(loss, state=[model], numerics="strict")
    fast = nir.jit(loss, state=[model])
    assert float(strict(X)) == pytest.approx(float(fast(X)), rel=1e-4)
    assert "nir_conv2d_winograd_f32" in kernels(fast.executable)
    assert "nir_conv2d_winograd_f32" not in kernels(strict.executable)


def test_an_unknown_word_is_named(model: Any) -> None:
    with pytest.raises(NirError, match='expected "strict" or "fast", got \'exact\''):
        nir.compile(model, "f32[4,64,16,16]", numerics="exact")
    with pytest.raises(NirError, match=r"expected .*got 'exact'"):
        nir.jit(lambda x: x, numerics="exact")


def test_fast_results_do_not_depend_on_the_instruction_set_or_threads(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = nir.get_num_threads()
    found = []
    try:
        for isa, n in (("avx512", 2), ("avx2", 1), ("avx2", 3)):
            monkeypatch.setenv("NIR_ISA", isa)
            nir.set_num_threads(n)
            found.append(nir.compile(model, "f32[4,64,16,16]")(X).numpy())
    finally:
        nir.set_num_threads(threads)
    assert found[0].tobytes() == found[1].tobytes() == found[2].tobytes()
