"""Profiles: time, flops, bytes and memory by call and by line, gradients apart; traces."""

from __future__ import annotations

import inspect
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import nir
from nir.errors import NirError
from nir.ir.dim import value
from nir.ir.location import Location
from nir.ir.program import Call
from nir.ir.text import parse_graph, print_graph
from nir.runtime import CallTime, Profile, Roofs
from nir.runtime.profile import profile_of


def line_of(text: str) -> int:
    """The line of this file that has ``text`` in it."""
    lines = inspect.getsource(inspect.getmodule(line_of)).splitlines()  # type: ignore[arg-type]
    (found,) = (i for i, line in enumerate(lines, 1) if line.rstrip().endswith(text))
    return found


def product(x: nir.Tensor, w: nir.Tensor) -> nir.Tensor:
    h = x @ w  # the product
    return (h * h).sum()  # the loss


X = np.ones((16, 32), np.float32)
W = np.full((32, 8), 0.5, np.float32)


def test_rows_of_a_line_forward_and_backward() -> None:
    step = nir.jit(nir.value_and_grad(product, argnums=(0, 1)))
    profile = step.profile(X, W, runs=2)
    rows = {(r.line, r.backward): r for r in profile.lines()}
    at = line_of("# the product")
    assert set(rows) >= {(at, False), (at, True)}
    # One product forward, two of as many operations backward; little else is done for the line.
    forward, backward = rows[at, False], rows[at, True]
    assert forward.flops == pytest.approx(2 * 16 * 32 * 8, rel=0.1)
    assert 2 * forward.flops < 2.2 * backward.flops < 5 * forward.flops
    assert forward.source == "h = x @ w  # the product"
    assert sum(r.flops for r in profile.lines()) == pytest.approx(
        sum(c.flops for c in profile.calls)
    )
    assert sum(r.seconds for r in profile.lines()) == pytest.approx(profile.seconds)
    assert f"{forward.file}:{at} backward" in profile.text("line")


def test_a_profile_changes_no_state() -> None:
    w = nir.tensor([1.0, 2.0])

    def step(x: nir.Tensor) -> nir.Tensor:
        w.copy_(w + x)
        return w.sum()

    step = nir.jit(step, state={"w": w})
    step.profile(np.ones(2, np.float32))
    assert w.tolist() == [1.0, 2.0]
    step(np.ones(2, np.float32))
    assert w.tolist() == [2.0, 3.0]


def test_a_profile_of_a_call_that_is_recorded_is_refused() -> None:
    x = nir.tensor([1.0], requires_grad=True)
    with pytest.raises(NirError, match="an argument requires a gradient"):
        nir.jit(lambda x: x * 2).profile(x)
    with pytest.raises(NirError, match="expected 1 run or more, got 0"):
        nir.jit(lambda x: x * 2).profile(X, runs=0)


def test_flops_and_bytes_follow_the_sizes() -> None:
    run = nir.compile(lambda x: (x @ W_CONST).tanh(), "f32[B,32]", state={"w": W_CONST})
    small = run.profile(np.ones((3, 32), np.float32))
    large = run.profile(np.ones((30, 32), np.float32))
    by_op = [{c.op: c for c in p.calls} for p in (small, large)]
    name = next(op for op in by_op[0] if op.startswith("matmul"))
    assert by_op[0][name].flops == 3 * 8 * (2 * 32 + 1)
    assert by_op[1][name].flops == 10 * by_op[0][name].flops
    assert by_op[1][name].live == 4 * 30 * 8


W_CONST = nir.tensor(W)


def test_live_bytes_of_a_chain() -> None:
    graph = parse_graph("""
graph @g(%x: f32[B,64]) -> f32[B,64] {
  %0 = cum_sum(%x) {axis=1} : f32[B,64]   @ model.py:1
  %1 = cum_sum(%0) {axis=1} : f32[B,64]   @ model.py:2
  %2 = cum_sum(%1) {axis=1} : f32[B,64]   @ model.py:3
  return %2
}
""")
    exe = nir.compile(graph).executable
    assert [str(c.live) for c in exe.program.calls] == ["256*B", "512*B", "512*B"]


def test_calls_in_loops_count_every_step() -> None:
    def run(x: nir.Tensor) -> nir.Tensor:
        return nir.scan(lambda h, x: ((h @ W8).tanh(), h), nir.zeros(2, 8), x)[0]

    profile = nir.jit(run, state={"w": W8}).profile(np.ones((7, 2, 8), np.float32))
    inner = [c for c in profile.calls if c.count == 7]
    assert inner and sum(c.flops for c in inner) >= 7 * 2 * 2 * 8 * 8
    steps = [p for p in profile.pieces if profile.calls[p.call].count == 7]
    assert len(steps) >= 7 * len(inner)


W8 = nir.tensor(np.eye(8, dtype=np.float32))


def test_traces_show_calls_by_thread(tmp_path: Path) -> None:
    graph = parse_graph("""
graph @g(%x: f32[4096,256]) -> f32[4096,256] {
  %0 = cum_sum(%x) {axis=1} : f32[4096,256]   @ model.py:1
  %1 = cum_sum(%0) {axis=1} : f32[4096,256]   @ model.py:2'
  return %1
}
""")
    x = np.ones((4096, 256), np.float32)
    before = nir.get_num_threads()
    nir.set_num_threads(2)
    try:
        profile = nir.compile(graph).executable.profile([x], runs=3)
    finally:
        nir.set_num_threads(before)
    profile.trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    shown = [e for e in events if e["ph"] == "X"]
    assert {e["args"]["lines"] for e in shown} == {"model.py:1", "model.py:2"}
    assert {(e["args"]["lines"], e["cat"]) for e in shown} == {
        ("model.py:1", "forward"),
        ("model.py:2", "backward"),
    }
    assert {e["tid"] for e in shown} <= {0, 1}
    assert len(shown) == len(profile.pieces)
    named = {e["tid"] for e in events if e["ph"] == "M"}
    assert named == {e["tid"] for e in shown}
    for p in profile.pieces:
        assert 0 <= p.start <= p.end
    # A thread works on one call at a time, in order.
    for t in named:
        own = [p for p in profile.pieces if p.thread == t]
        assert all(a.end <= b.start for a, b in pairwise(own))


def test_roofs() -> None:
    site = frozenset({Location("model.py", 1)})
    compute = CallTime("matmul", "k", site, 1e-3, 1, 10**9, 10**6)
    memory = CallTime("add", "k", site, 1e-3, 1, 10**6, 10**9)
    roofs = Roofs(flops=2e12, bytes=2e12)
    assert compute.roof(roofs) == memory.roof(roofs) == pytest.approx(0.5)
    shown = Profile((compute, memory), roofs=roofs).text("call").splitlines()
    assert all(row.split()[4] == "50" for row in shown[1:])
    with pytest.raises(NirError, match="by line, call or kernel, got 'file'"):
        Profile((compute,)).text("file")


def test_pieces_begin_with_the_run() -> None:
    program = nir.compile(
        parse_graph("""
graph @g(%x: f32[4]) -> f32[4] {
  %0 = cum_sum(%x) {axis=0} : f32[4]   @ model.py:1
  return %0
}
""")
    ).program
    assert isinstance(program.calls[0], Call) and value(program.calls[0].traffic, {}) == 32
    timeline = {"calls": [(2000, 1)], "threads": [[0, 5000, 7000], [0, 6000, 6500]]}
    profile = profile_of(program, {}, timeline)
    assert [(p.thread, round(p.start * 1e9), round(p.end * 1e9)) for p in profile.pieces] == [
        (0, 0, 2000),
        (1, 1000, 1500),
    ]


def test_marks_of_gradients_are_part_of_the_text() -> None:
    text = """graph @g(%x: f32[4]) -> f32[4] {
  %0 = neg(%x) : f32[4]   @ "my file.py":1', model.py:3, model.py:3'
  return %0
}
"""
    graph = parse_graph(text)
    assert graph.nodes[0].locs == {
        Location("my file.py", 1, True), Location("model.py", 3), Location("model.py", 3, True)
    }  # fmt: skip
    assert parse_graph(print_graph(graph)).nodes[0].locs == graph.nodes[0].locs
