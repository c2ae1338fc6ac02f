"""Needle modules as nir functions, the personalities, and the runner of the course's tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nir
import nir.needle as ndl
from nir.errors import ShapeError
from nir.needle import nn
from nir.needle.apps import mlp_resnet, models
from nir.needle.store import IS_NUMPY

ROOT = Path(__file__).parents[2]


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def small() -> Any:
    np.random.seed(0)
    model = mlp_resnet.MLPResNet(6, 8, 1, 3)
    model(ndl.Tensor(array(16, 6), dtype="float32")).numpy()  # running statistics of its own
    model.eval()
    return model


def test_a_module_is_traced_with_its_paths() -> None:
    graph = nir.trace(small(), "f32[B,6]")
    assert graph.input_names[:3] == ("x", "modules.0.weight", "modules.0.bias")
    assert "modules.2.modules.0.fn.modules.1.running_mean" in graph.input_names
    assert [str(t) for t in graph.output_types] == ["f32[B,3]"]


def test_a_module_is_compiled_and_saved(tmp_path: Path) -> None:
    model = small()
    compiled = nir.compile(model, "f32[B,6]")
    compiled.save(tmp_path / "model.nirp")
    loaded = nir.load(tmp_path / "model.nirp")
    for batch in (1, 5):
        x = array(batch, 6, seed=batch)
        expected = model(ndl.Tensor(x, dtype="float32")).numpy()
        np.testing.assert_allclose(compiled(x).numpy(), expected, 1e-5, 1e-6)
        np.testing.assert_allclose(np.asarray(loaded(x)), expected, 1e-5, 1e-6)


@pytest.mark.parametrize("name", ["resnet", "rnn", "lstm", "transformer"])
def test_models_of_the_course_are_compiled(name: str) -> None:
    if name == "resnet":
        model: Any = models.ResNet9()
        x = array(2, 3, 32, 32)
    else:
        model = models.LanguageModel(8, 11, 12, 2, name)
        x = np.random.default_rng(0).integers(0, 11, (5, 3)).astype(np.float32)
    model.eval()
    out = nir.compile(model, f"f32[{','.join(map(str, x.shape))}]")(x)
    expected = model(ndl.Tensor(x, dtype="float32"))
    if name != "resnet":
        out, expected = out[0], expected[0]
    np.testing.assert_allclose(out.numpy(), expected.numpy(), 1e-4, 1e-4)


def test_jit_updates_running_statistics() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
    twin = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        q.data = p.data
    run = nir.jit(model)
    for seed in range(3):
        x = array(10, 6, seed=seed)
        y = run(nir.tensor(x)).numpy()
        np.testing.assert_allclose(y, twin(ndl.Tensor(x, dtype="float32")).numpy(), 1e-5, 1e-5)
    assert run.compiles == 1
    for name in ("running_mean", "running_var"):
        own, other = (getattr(m.modules[1], name).numpy() for m in (model, twin))
        np.testing.assert_allclose(own, other, 1e-5, 1e-6)
    # Parameters that change are seen by the next call.
    model.modules[0].weight.data = ndl.Tensor(np.zeros((6, 4)), dtype="float32")
    model.eval()
    y = run(nir.tensor(x)).numpy()
    np.testing.assert_allclose(y, np.repeat(y[:1], 10, 0))


def test_gradients_of_a_module_by_nir() -> None:
    model, x = small(), array(5, 6)
    given = ndl.Tensor(x, dtype="float32")
    (model(given) ** 2).sum().backward()
    slope = nir.grad(lambda t: (model(t) ** 2).sum())(nir.tensor(x))
    np.testing.assert_allclose(slope.numpy(), given.grad.numpy(), 1e-4, 1e-5)


def test_gradients_that_a_module_takes_are_compiled() -> None:
    class Step(nn.Module):
        def __init__(self, block: Any) -> None:
            super().__init__()
            self.block = block

        def forward(self, x: Any) -> Any:
            (self.block(x) ** 2).sum().backward()
            return tuple(p.grad for p in self.block.parameters())

    block, x = mlp_resnet.ResidualBlock(6, 4, nn.LayerNorm1d, 0.0), array(5, 6)
    block.eval()
    found = nir.compile(Step(block), "f32[B,6]")(x)
    (block(ndl.Tensor(x, dtype="float32")) ** 2).sum().backward()
    for p, g in zip(block.parameters(), found, strict=True):
        np.testing.assert_allclose(p.grad.numpy(), g.numpy(), 1e-3, 1e-4)


def test_errors_name_the_users_line() -> None:
    a, b = ndl.Tensor(array(2, 3)), ndl.Tensor(array(4, 5))
    for _ in range(2):
        with pytest.raises(ShapeError, match=r"inner dimensions differ: 3 .* and 4") as caught:
            a @ b
        assert "test_needle_compile.py" in str(caught.value)


def test_dropout_draws_anew_in_each_run_of_a_traced_function() -> None:
    run = nir.jit(nn.Dropout(0.5))
    x = nir.tensor(np.ones((50, 50), np.float32))
    a, b = run(x).numpy(), run(x).numpy()
    assert (a != b).any() and set(np.unique(a)) == {0.0, 2.0}


# ---- personalities -------------------------------------------------------------------------------


def run_python(*args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **variables}
    return subprocess.run(
        [sys.executable, *args], capture_output=True, text=True, cwd=ROOT, env=env
    )


@pytest.mark.skipif(IS_NUMPY, reason="started from the nd personality")
def test_the_np_personality_passes_these_tests() -> None:
    done = run_python("-m", "pytest", "-q", "tests/needle", NEEDLE_BACKEND="np")
    assert done.returncode == 0, done.stdout[-3000:]


def test_what_a_personality_exports() -> None:
    script = "import nir.needle as n; print(n.BACKEND, hasattr(n, 'cuda'), n.default_device())"
    assert run_python("-c", script, NEEDLE_BACKEND="nd").stdout.split("\n")[:2] == [
        "Using needle backend", "nd True cpu_numpy()",
    ]  # fmt: skip
    assert run_python("-c", script, NEEDLE_BACKEND="np").stdout.split("\n")[:2] == [
        "Using numpy backend", "np False needle.cpu()",
    ]  # fmt: skip
    assert "Unknown needle array backend" in run_python("-c", script, NEEDLE_BACKEND="x").stderr


def test_the_runner_gives_needles_names_to_outside_tests(tmp_path: Path) -> None:
    tests = tmp_path / "hw4" / "tests" / "hw4"
    tests.mkdir(parents=True)
    (tests / "test_outside.py").write_text(
        "import sys\n"
        "import mugrade\n"
        "import needle as ndl\n"
        "import needle.nn as nn\n"
        "from needle import backend_ndarray as nd\n"
        "from needle.nn.nn_transformer import MultiHeadAttention\n"
        "from needle.data.datasets.ptb_dataset import Corpus\n"
        "from simple_ml import *\n"
        "from models import LanguageModel\n"
        "from apps.models import ResNet9\n"
        "import mlp_resnet\n"
        "def test_names():\n"
        "    assert sys.modules['needle.autograd'] is ndl.autograd\n"
        "    assert isinstance(ndl.ones(2).cached_data, nd.NDArray)\n"
        "    mugrade.submit(1)\n",
        encoding="utf-8",
    )
    done = run_python("-m", "tests.needle_course", "--course", str(tmp_path), "hw4")
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr
