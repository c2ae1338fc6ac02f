"""Memory as a contract: `peak_bytes` is what a run takes, and a limit is kept or refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backend_harness import compiled
from pass_harness import CPU, random_inputs, resnet9_step

import nir
from nir.compile import compile_graph, resolve_target
from nir.errors import MemoryBudgetError, NirError
from nir.frontend.limit import bytes_of
from nir.frozen import replace
from nir.ir.dim import value
from nir.ir.graph import Graph
from nir.ir.interp import run
from nir.ir.needs import needs
from nir.ir.text import parse_graph
from nir.passes.rematerialise import needed, rematerialise
from nir.passes.schedule import order, peak, reused
from nir.runtime import as_storage, memory_stats, reset_peak_memory

ROOT = Path(__file__).parent.parent


def taken(exe: Any, inputs: Sequence[np.ndarray]) -> int:
    """What the executor asks of the pool for a run."""
    given = [as_storage(x) for x in inputs]
    before = memory_stats()["asked_bytes"]
    reset_peak_memory()
    outputs = exe.run(given)
    most = memory_stats()["peak_bytes"] - before
    del outputs
    return most


def chain(depth: int = 8, rows: int = 2048) -> Graph:
    """The gradient of a chain of layers: every activation is kept for the backward."""
    width = 64
    weights = [f"f32[{width},{width}]"] * depth

    def loss(x: nir.Tensor, *ws: nir.Tensor) -> nir.Tensor:
        for w in ws:
            x = (x @ w).tanh()
        return (x * x).mean()

    step = nir.value_and_grad(loss, argnums=tuple(range(1, depth + 1)))
    return nir.trace(step, f"f32[{rows},{width}]", *weights)


# ---- what a run takes --------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_the_stated_bytes_are_those_that_a_run_takes(batch: int, threads: int) -> None:
    graph = resnet9_step()
    exe = compiled(graph)
    inputs = random_inputs(graph, 0, {"B": batch})
    before = nir.get_num_threads()
    nir.set_num_threads(threads)
    try:
        assert taken(exe, inputs) == exe.needs.total(threads, {"B": batch})
        assert exe.needs.total(threads, {"B": batch}) <= value(exe.peak_bytes, {"B": batch})
    finally:
        nir.set_num_threads(before)


def test_static_sizes_make_it_a_number() -> None:
    graph = chain()
    exe = compiled(graph)
    assert taken(exe, random_inputs(graph)) == exe.peak_bytes
    parts = exe.needs
    assert parts == needs(exe.program)
    outputs = sum(value(t.nbytes, {}) for t in exe.outputs)
    assert exe.peak_bytes - outputs >= value(exe.program.arena, {})


def test_donated_inputs_become_outputs() -> None:
    w = nir.zeros(1 << 16)

    def add(x: nir.Tensor) -> None:
        w.copy_(w + x)

    step = nir.jit(add, state={"w": w})
    step(np.ones(1 << 16, np.float32))
    needs_of = step.executable.needs
    assert needs_of.total(1, {}) - needs_of.total(1, {}, donate=True) == 4 << 16
    before = memory_stats()["asked_bytes"]
    reset_peak_memory()
    step(np.ones(1 << 16, np.float32))
    assert memory_stats()["peak_bytes"] - before == needs_of.total(1, {}, donate=True)


# ---- the order ---------------------------------------------------------------------------------


def test_an_update_runs_as_soon_as_its_gradient_is_there() -> None:
    text = """
graph @g(
    %x: f32[64,64], %w: f32[64,64], %v: f32[64,64]
) -> (
    f32[64,64], f32[64,64]
) donate[1 -> 0, 2 -> 1] {
  %0 = matmul(%x, %w) {transpose_lhs=true} : f32[64,64]   @ model.py:1
  %1 = matmul(%x, %v) {transpose_lhs=true} : f32[64,64]   @ model.py:2
  %2 = cum_sum(%0) {axis=1} : f32[64,64]                  @ model.py:3
  %3 = cum_sum(%2) {axis=1} : f32[64,64]                  @ model.py:3
  %4 = cum_sum(%3) {axis=1} : f32[64,64]                  @ model.py:3
  %5 = cum_sum(%4) {axis=1} : f32[64,64]                  @ model.py:4
  %6 = cum_sum(%1) {axis=1} : f32[64,64]                  @ model.py:5
  return %5, %6
}
"""
    graph = parse_graph(text)
    after = order(graph)
    assert peak(after) < peak(graph)
    assert reused(after) == reused(graph) == ((1, 0), (2, 1))
    inputs = random_inputs(graph)
    for a, b in zip(run(graph, inputs), run(after, inputs), strict=True):
        np.testing.assert_array_equal(a, b)


def test_effects_keep_their_order() -> None:
    seen: list[int] = []

    def note(number: int) -> Any:
        def fn(x: np.ndarray) -> np.ndarray:
            seen.append(number)
            return x

        return fn

    def program(x: nir.Tensor) -> nir.Tensor:
        parts = [nir.host_call(note(i), "f32[4096]", x * i) for i in range(4)]
        total = parts[3].sum()
        for part in parts[:3]:
            total = total + part.sum()
        return total

    exe = compile_graph(nir.trace(program, "f32[4096]"))
    exe.run([as_storage(np.ones(4096, np.float32))])
    assert seen == [0, 1, 2, 3]


# ---- a limit -----------------------------------------------------------------------------------


def test_a_limit_is_kept_and_changes_no_result() -> None:
    graph = chain()
    inputs = random_inputs(graph)
    free = compiled(graph)
    wanted = [out.numpy() for out in free.run([as_storage(x) for x in inputs])]
    for share in (0.9, 0.75, 0.6):
        limit = int(share * free.peak_bytes)
        exe = compile_graph(graph, memory=limit)
        assert taken(exe, inputs) == exe.peak_bytes <= limit
        assert len(exe.program.calls) >= len(free.program.calls)
        for a, b in zip(wanted, exe.run([as_storage(x) for x in inputs]), strict=True):
            np.testing.assert_array_equal(a, b.numpy())


def test_a_program_that_does_not_fit_is_refused() -> None:
    def loss(x: nir.Tensor) -> nir.Tensor:
        h = x.cumsum(1)  # the first large value
        return (h * h.cumsum(0)).cumsum(1)

    with pytest.raises(MemoryBudgetError) as error:
        nir.compile(loss, "f32[512,512]", memory="1MiB")
    message = str(error.value)
    assert "expected at most 1.00 MiB, it takes " in message and " too much" in message
    assert "1.00 MiB  f32[512,512]" in message and "test_memory_limit.py:" in message
    assert isinstance(error.value, MemoryError | NirError) and isinstance(error.value, MemoryError)
    nir.compile(loss, "f32[512,512]", memory="8MiB")


def test_limits_of_jit() -> None:
    w = nir.tensor(np.eye(64, dtype=np.float32))

    def step(x: nir.Tensor) -> nir.Tensor:
        return (x @ w).tanh()

    fits = nir.jit(step, state={"w": w}, memory="1MiB")
    assert fits(np.ones((8, 64), np.float32)).shape == (8, 64)
    tight = nir.jit(step, state={"w": w}, memory=100)
    with pytest.raises(MemoryBudgetError, match="expected at most 100 B"):
        tight(np.ones((8, 64), np.float32))


def test_symbolic_sizes_have_no_limit() -> None:
    with pytest.raises(MemoryBudgetError, match="B is symbolic: compile for numbers"):
        nir.compile(lambda x: x.exp(), "f32[B,4]", memory="1MiB")


def test_a_limit_is_part_of_what_the_cache_finds(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIR_CACHE_DIR", str(tmp_path))
    graph = chain()
    free = compile_graph(graph)
    limit = int(0.7 * free.peak_bytes)
    for _ in range(2):
        assert compile_graph(graph, memory=limit).peak_bytes <= limit
    assert compile_graph(graph).peak_bytes == free.peak_bytes


def test_values_are_given_up_only_under_a_limit() -> None:
    graph = compiled(chain()).graph
    assert graph is not None
    plain = graph.with_(plan=None)
    assert rematerialise(plain, CPU) is plain
    target = resolve_target("cpu")
    wide = rematerialise(plain, _with(target, needed(plain, target)))
    assert len(wide.nodes) == len(plain.nodes)
    small = rematerialise(plain, _with(target, needed(plain, target) // 2))
    assert len(small.nodes) > len(plain.nodes)
    assert needed(small, target) < needed(plain, target)
    # What was added is marked as work of the backward, on the lines of what it repeats.
    added = set(small.nodes) - set(plain.nodes)
    assert any(loc.backward for op in added for loc in op.locs)


def _with(target: Any, memory: int) -> Any:
    return replace(target, memory=memory)


@pytest.mark.parametrize("inner, again", [(65536, 1), (512, 0)])
def test_what_is_nearly_free_is_not_kept_in_any_case(inner: int, again: int) -> None:
    """A sum over 32 MiB beside a product of 1 TFLOP, or beside one that it would slow down."""
    graph = parse_graph(f"""
graph @g(%x: f32[16384,512], %w: f32[16384,{inner}], %v: f32[{inner},512]) -> f32[512,512] {{
  %0 = cum_sum(%x) {{axis=1}} : f32[16384,512]                 @ model.py:1
  %1 = matmul(%w, %v) : f32[16384,512]                         @ model.py:2
  %2 = cum_sum(%1) {{axis=1}} : f32[16384,512]                 @ model.py:3
  %3 = cum_sum(%2) {{axis=1}} : f32[16384,512]                 @ model.py:4
  %4 = matmul(%0, %3) {{transpose_lhs=true}} : f32[512,512]    @ model.py:5
  return %4
}}
""")
    after = rematerialise(graph, CPU)
    assert sum(op.name == "cum_sum" for op in after.nodes) == 3 + again


@pytest.mark.parametrize(
    "text, amount",
    [("64MiB", 64 << 20), ("1.5 KiB", 1536), ("2GB", 2 * 10**9), ("7", 7), (9, 9), (None, None)],
)
def test_amounts(text: Any, amount: int | None) -> None:
    assert bytes_of(text) == amount


@pytest.mark.parametrize("text", ["", "64 apples", "-1", -1, 0, 1.5, True, "MiB"])
def test_amounts_that_are_none(text: Any) -> None:
    with pytest.raises(NirError, match="expected a number of bytes or a text such as '64MiB'"):
        bytes_of(text)


_REST = """
import os, re, sys
import nir
from nir.codegen.engine import rest

def resident():
    text = open("/proc/self/smaps").read()
    blocks = re.findall(r"r-xp [^\\n]*llvmlite[^\\n]*\\n(?:[A-Z][^\\n]*\\n)*", text)
    return sum(int(re.search(r"Rss: +(\\d+)", b)[1]) for b in blocks)

f = nir.compile(lambda x: (x.exp() + 1).log(), "f32[8]")
after = resident()
assert "llvmlite" in sys.modules
g = nir.compile(lambda x: (x.tanh() + 3).exp(), "f32[8]")
print(after, resident(), rest(), abs(float(g(nir.zeros(8)).numpy()[0]) - 20.085537) < 1e-4)
"""


def test_the_memory_of_llvms_code_is_given_back(tmp_path: Any) -> None:
    env = {**os.environ, "NIR_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", _REST], capture_output=True, text=True, env=env, timeout=300
    )
    assert done.returncode == 0, done.stderr
    first, second, mapped, right = done.stdout.split()
    assert right == "True" and int(mapped) > 8 << 20
    # Of some 50 MB, a few pages that were in use on the way out.
    assert int(first) < 4096 and int(second) < 4096
