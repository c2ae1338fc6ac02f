"""The memory plan: nothing that lives at once overlaps, for any sizes, and little is wasted."""

from __future__ import annotations

import numpy as np
import pytest

from nir.ir.dim import symbol, value
from nir.ir.graph import Builder, Graph
from nir.ir.interp import run
from nir.ir.op import Value
from nir.ir.types import TensorType, f32
from nir.ops import Add, Exp, Matmul, Mul, Neg, Reshape, Sum, Tanh
from nir.passes.fuse import fuse
from nir.passes.memory import is_alias, plan_memory
from nir.targets import cpu

B = symbol("B")


def _ranges(graph: Graph, env: dict[str, int]) -> list[tuple[int, int, int, int]]:
    """(first, last, low, high) of each storage in the arena: node positions and bytes."""
    assert graph.plan is not None
    end = len(graph.nodes)
    first: dict[Value, int] = {}
    last: dict[Value, int] = {}
    for i, op in enumerate(graph.nodes):
        for v in op.results:
            first[v] = last[v] = i
        for v in op.operands:
            last[v] = i
    for v in graph.outputs:
        last[v] = end
    for op in reversed(graph.nodes):
        if is_alias(op):  # a view keeps what it views alive
            x = op.operands[0]
            last[x] = max(last.get(x, 0), last[op.results[0]])
    out = []
    for v, p in ((v, graph.plan.placements.get(graph.number[v])) for v in first):
        if p is not None and p.kind == "arena" and not is_alias(graph.producer[v]):
            low = -(-value(p.offset, env) // 64) * 64
            out.append((first[v], last[v], low, low + value(v.type.nbytes, env)))
    return out


def check_plan(graph: Graph, env: dict[str, int]) -> None:
    """No two storages meet in time and bytes, but for a result in the place of a dying operand."""
    assert graph.plan is not None
    ranges = _ranges(graph, env)
    total = -(-value(graph.plan.arena, env) // 64) * 64 + 64
    for first, last, low, high in ranges:
        assert high <= total
        for first2, last2, low2, high2 in ranges:
            if (first, last, low) == (first2, last2, low2) or first2 < first:
                continue
            in_place = last == first2 and (low, high) == (low2, high2)
            assert first2 > last or in_place or high <= low2 or high2 <= low


def live_peak(graph: Graph, env: dict[str, int]) -> int:
    """The largest sum of bytes that live at once in the arena; a storage taken over counts once."""
    ranges = _ranges(graph, env)
    peak = 0
    for i in range(len(graph.nodes)):
        live = {(low, high) for first, last, low, high in ranges if first <= i <= last}
        peak = max(peak, sum(high - low for low, high in live))
    return peak


def _random_graph(seed: int, n: int) -> Graph:
    rng = np.random.default_rng(seed)
    b = Builder(f"random{seed}")
    widths = (4, 16, 33)
    values = {w: [b.input(TensorType(f32, (B, w)), f"x{w}")] for w in widths}
    weights = {
        (v, w): b.input(TensorType(f32, (v, w)), f"w{v}_{w}") for v in widths for w in widths
    }
    for _ in range(n):
        w = int(rng.choice(widths))
        v = int(rng.choice(widths))
        x = values[w][rng.integers(len(values[w]))]
        match rng.integers(4):
            case 0:
                (y,) = b.emit(Matmul(values[v][rng.integers(len(values[v]))], weights[v, w]))
            case 1:
                (y,) = b.emit(Tanh(x))
            case 2:
                (y,) = b.emit(Add(x, values[w][rng.integers(len(values[w]))]))
            case _:
                (flat,) = b.emit(Reshape(x, (B * w,)))
                (flat,) = b.emit(Neg(flat))
                (y,) = b.emit(Reshape(flat, (B, w)))
        values[w].append(y)
    return b.build([values[w][-1] for w in widths])


@pytest.mark.parametrize("seed", range(25))
def test_random_graphs_do_not_overlap_at_any_batch_size(seed: int) -> None:
    graph = _random_graph(seed, 5 + 3 * seed)
    planned = plan_memory(fuse(graph, cpu.target()), cpu.target())
    for batch in (0, 1, 2, 7, 64, 1000):
        check_plan(planned, {"B": batch})
    rng = np.random.default_rng(seed)
    inputs = [
        rng.standard_normal([3 if d is B or d == B else d for d in t.shape]).astype(np.float32)
        for t in graph.input_types
    ]
    for before, after in zip(run(graph, inputs), run(planned, inputs), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(20, 30))
def test_the_arena_is_close_to_what_lives_at_once(seed: int) -> None:
    planned = plan_memory(fuse(_random_graph(seed, 80), cpu.target()), cpu.target())
    assert planned.plan is not None
    env = {"B": 256}
    assert value(planned.plan.arena, env) <= 1.15 * live_peak(planned, env)


def test_an_elementwise_result_takes_its_dying_operands_place() -> None:
    b = Builder("inplace")
    x = b.input(TensorType(f32, (B, 8)), "x")
    w = b.input(TensorType(f32, (8, 8)), "w")
    (h,) = b.emit(Matmul(x, w))
    (t,) = b.emit(Sum(h, (1,)))
    (e,) = b.emit(Exp(h))
    (y,) = b.emit(Matmul(e, w))
    graph = b.build([y, t])
    # Without epilogues the map stays a kernel of its own, after the sum.
    target = cpu.target()
    planned = plan_memory(fuse(graph, type(target)("cpu", kernels=target.kernels)), target)
    assert planned.plan is not None
    places = [planned.plan.placements[planned.number[v]] for v in (h,)]
    maps = [op for op in planned.nodes if op.name == "fused" and op.form == "map"]
    for op in maps:
        assert planned.plan.placements[planned.number[op.results[0]]] in places
    assert maps or any(op.name == "fused" and len(op.results) > 1 for op in planned.nodes)


def test_outputs_are_results_of_their_own() -> None:
    b = Builder("outputs")
    x = b.input(TensorType(f32, (B,)), "x")
    (y,) = b.emit(Mul(x, x))
    planned = plan_memory(fuse(b.build([x, y, y]), cpu.target()), cpu.target())
    assert planned.plan is not None
    homes = [str(planned.plan.placements[planned.number[v]]) for v in planned.outputs]
    assert homes == ["output[0]", "output[1]", "output[2]"]
    data = np.array([1.0, 2.0], np.float32)
    for got, expected in zip(run(planned, [data]), (data, data * data, data * data), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_donated_input_is_overwritten_only_by_its_last_reader() -> None:
    def graph(late_read: bool) -> Graph:
        b = Builder("donate")
        p = b.input(TensorType(f32, (16,)), "p")
        g = b.input(TensorType(f32, (16,)), "g")
        (new,) = b.emit(Add(p, g))
        (row,) = b.emit(Reshape(new, (1, 16)))
        (column,) = b.emit(Reshape(p if late_read else g, (16, 1)))
        (product,) = b.emit(Matmul(row, column))
        return b.build([new, product], donate=[(0, 0)])

    target = cpu.target()
    for late_read in (False, True):
        planned = plan_memory(fuse(graph(late_read), target), target)
        assert planned.plan is not None
        assert planned.plan.donations == (() if late_read else ((0, 0),))


def test_every_donated_input_of_an_epilogue_is_overwritten() -> None:
    # The product needs memory of its own then: accumulating in a result would take its place.
    t = TensorType(f32, (8, 8))
    b = Builder("update")
    x, p, m = (b.input(t, name) for name in ("x", "p", "m"))
    (gradient,) = b.emit(Matmul(x, x, transpose_lhs=True))
    (twice,) = b.emit(Mul(m, m))
    (new_m,) = b.emit(Add(twice, gradient))
    (new_p,) = b.emit(Add(p, new_m))
    graph = b.build([new_p, new_m], donate=[(1, 0), (2, 1)])
    planned = plan_memory(fuse(graph, cpu.target()), cpu.target())
    assert planned.plan is not None
    assert set(planned.plan.donations) == {(1, 0), (2, 1)}
    (epilogue,) = planned.nodes
    assert len(epilogue.results) == 3 and planned.plan.arena == t.nbytes
    check_plan(planned, {})
    inputs = [np.random.default_rng(k).standard_normal((8, 8), np.float32) for k in range(3)]
    for a, e in zip(run(planned, inputs), run(graph, inputs), strict=True):
        np.testing.assert_array_equal(a, e)
