"""Compiled models at run time: odd sizes and values, threads, bad indices, memory, no compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backend_harness import close, compiled, flushed, outputs, reference, same_bits
from pass_harness import edge_inputs, graph_of, random_inputs, resnet9_step
from test_bit_equality import mlp_step, transformer_step
from test_memory import live_peak

import nir
from nir.errors import IndexRangeError
from nir.ir.dim import value
from nir.ir.graph import Graph
from nir.ops.vjp import gradient

ROOT = Path(__file__).parent.parent

# ---- indices -----------------------------------------------------------------------------------


def taken(x: Any, at: Any) -> Any:
    return (x * 2.0).take(at, 0).tanh()  # line of take


TAKE_LINE = taken.__code__.co_firstlineno + 1


@pytest.mark.parametrize("bad", [4, -5, 2**40])
def test_an_index_out_of_range_names_the_line_after_fusion(bad: int) -> None:
    graph = graph_of(lambda x, at: taken(x, at).sum((1,)), "f32[4,3]", "i64[B]")
    exe = compiled(graph)
    x = np.ones((4, 3), np.float32)
    outputs(exe, [x, np.array([0, 3, -4])])
    with pytest.raises(IndexRangeError, match=rf"from -4 to 3, got {bad}\n") as error:
        outputs(exe, [x, np.array([0, bad, 1])])
    assert f"test_run_time.py:{TAKE_LINE}" in str(error.value)
    outputs(exe, [x, np.array([0])])  # and the executable runs on


def test_an_index_out_of_range_in_a_gradient_names_the_forward_line() -> None:
    graph = graph_of(lambda x, at: taken(x, at).sum((0, 1)), "f32[4,3]", "i64[B]")
    # Only the gradient reads the indices when the forward result is not wanted.
    slope = gradient(graph)
    slope = slope.with_(outputs=slope.outputs[1:])
    exe = compiled(slope)
    x = np.ones((4, 3), np.float32)
    with pytest.raises(IndexRangeError) as error:
        outputs(exe, [x, np.array([0, 9])])
    assert f"test_run_time.py:{TAKE_LINE}" in str(error.value)


# ---- sizes and values --------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [0, 1, 2, 129])
@pytest.mark.parametrize("make", [mlp_step, transformer_step], ids=lambda f: f.__name__)
def test_steps_at_odd_batch_sizes(make: Any, batch: int) -> None:
    graph = make()
    inputs = random_inputs(graph, 3, {"B": batch})
    got = [flushed(y) for y in outputs(compiled(graph), inputs)]
    problem = close(graph, inputs, reference(graph, inputs), got)
    assert problem is None, problem


@pytest.mark.parametrize("shape", [(0,), (1,), (0, 5), (5, 0), (1, 1), (3, 17), (2, 100_003)])
def test_shapes_through_jit(shape: tuple[int, ...]) -> None:
    @nir.jit
    def f(x: nir.Tensor) -> tuple[nir.Tensor, ...]:
        y = (x * 2 + 1).tanh()
        return y, y.sum(), y.sum(0), y.sum(-1, keepdim=True) + x, x.reshape(-1), (x > 0).sum()

    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    y = np.tanh(x * 2 + 1)
    expected = (y, y.sum(dtype=np.float64), y.sum(0), y.sum(-1, keepdims=True) + x, x.reshape(-1))
    *got, count = (np.asarray(t.numpy()) for t in f(nir.tensor(x)))
    for a, b in zip(expected, got, strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-5, atol=1e-5)
    assert count == (x > 0).sum()


def test_nan_and_infinity_go_through_as_in_numpy() -> None:
    def fn(x: Any, y: Any) -> list[Any]:
        small = x.minimum(y)
        return [x + y, x * y, x / y, small, x.relu(), x.max((1,)), x.sum((1,)), x.lt(y),
                x.maximum(y).exp(), x.is_nan(), x.softmax(1)]  # fmt: skip

    graph = graph_of(fn, "f32[B,33]", "f32[B,33]")
    for seed in range(4):
        inputs = [np.resize(a, (19, 33)) for a in edge_inputs(graph, seed)]
        got = [flushed(y) for y in outputs(compiled(graph), inputs)]
        problem = close(graph, inputs, reference(graph, inputs), got)
        assert problem is None, problem


# ---- threads -----------------------------------------------------------------------------------


def test_threads_share_an_executable_at_different_batch_sizes() -> None:
    graph = mlp_step()
    exe = compiled(graph)
    given = {batch: random_inputs(graph, batch, {"B": batch}) for batch in (1, 7, 64, 200)}
    alone = {batch: outputs(exe, inputs) for batch, inputs in given.items()}

    def work(batch: int) -> list[list[np.ndarray]]:
        return [outputs(exe, given[batch]) for _ in range(20)]

    with ThreadPoolExecutor(4) as pool:
        for batch, results in zip(given, pool.map(work, given), strict=True):
            for got in results:
                same_bits(alone[batch], got, f"batch {batch} beside others")


# ---- memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 128, 1000])
def test_the_arena_of_a_training_step_is_close_to_what_lives_at_once(batch: int) -> None:
    planned = compiled(resnet9_step()).graph
    assert isinstance(planned, Graph) and planned.plan is not None
    env = {"B": batch}
    assert value(planned.plan.arena, env) <= 1.15 * live_peak(planned, env)


_GROWTH = """
from backend_harness import compiled
from pass_harness import random_inputs, resnet9_step
from nir.ir.dim import value
from nir.runtime import as_storage
graph = resnet9_step()
exe = compiled(graph)
small, large = (
    [as_storage(x) for x in random_inputs(graph, 0, {"B": b})] for b in (4, 256))
exe.run(small)
def high_water():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
open("/proc/self/clear_refs", "w").write("5")  # compiling took more
before = high_water()
exe.run(large)
print(high_water() - before, value(exe.program.arena, {"B": 256}))
"""


def test_resident_memory_grows_by_the_arena_of_a_training_step() -> None:
    grown, arena = map(int, python(_GROWTH).split())
    assert arena > 4 << 20
    # Beside the arena grow scratch, outputs and page rounding.
    assert 0.7 * arena <= grown <= 1.15 * arena + (8 << 20), (grown, arena)


# ---- no compiler -------------------------------------------------------------------------------


def python(script: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", **env},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


_NO_COMPILER = """
import shutil, numpy as np, nir
from nir import nn, optim
assert not any(map(shutil.which, ("cc", "gcc", "clang", "ld", "c++", "g++", "as")))
nir.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
opt = optim.Adam(model.parameters(), lr=1e-2)
@nir.jit(state=[model, opt])
def step(x, y):
    opt.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    opt.step()
    return loss
rng = np.random.default_rng(0)
x = nir.tensor(rng.standard_normal((30, 8)).astype(np.float32))
y = nir.tensor(rng.integers(0, 3, 30))
losses = [step(x, y).item() for _ in range(30)]
print(losses[0], losses[-1])
"""


def test_no_compiler_is_needed(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    out = python(_NO_COMPILER, PATH=str(tmp_path / "bin"), NIR_CACHE_DIR=str(tmp_path / "cache"))
    first, last = map(float, out.split())
    assert last < first
