"""What stays in a loop: passes `loops`, `fission` and `hoist`, seen in lowered graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from pass_harness import CPU

import nir
from nir.errors import IndexRangeError
from nir.ir.graph import Graph
from nir.ir.interp import run
from nir.ir.op import Op
from nir.ops import Cond, Matmul, Pack, Scan, WhileLoop
from nir.ops.fused import Fused
from nir.passes.fission import fission
from nir.passes.hoist import hoist
from nir.passes.loops import loops
from nir.passes.pipeline import run_pipeline

TYPES = ("f64[T,B,6]", "f64[B,6]", "f64[6,6]", "f64[6,6]", "f64[6]")
CONTROL = (Scan, WhileLoop, Cond)


def lstm_like(x, h, wx, wh, b):
    def cell(h, xt):
        h = (xt @ wx + h @ wh + b).tanh()
        return h, h @ wx

    return nir.scan(cell, h, x)


def loss(fn: Callable[..., Any]) -> Callable[..., Any]:
    def total(*args):
        last, ys = fn(*args)
        return (last * last).sum() + (ys * ys).sum()

    return total


def trace(fn: Callable[..., Any], *types: str) -> Graph:
    return nir.trace(fn, *map(nir.spec, types or TYPES))


def training(fn: Callable[..., Any]) -> Graph:
    return trace(nir.value_and_grad(loss(fn), argnums=(0, 1, 2, 3, 4)))


def heavy(graph: Graph, kind: type[Op]) -> int:
    """Ops of this class at the top level, those that head an epilogue included."""
    return sum(isinstance(op, kind) for op in opened(graph))


def opened(graph: Graph) -> Iterator[Op]:
    for op in graph.nodes:
        yield from op.body.nodes if isinstance(op, Fused) else (op,)


def controls(graph: Graph) -> list[Any]:
    return [op for op in graph.nodes if isinstance(op, CONTROL)]


def agree(a: Graph, b: Graph, lengths: tuple[int, ...] = (0, 1, 4), **sizes: int) -> None:
    for length in lengths:
        rng = np.random.default_rng(length)
        env = {"T": length, "B": 3, **sizes}
        shapes = [[env.get(str(d), d) for d in t.shape] for t in a.input_types]
        inputs = [np.asarray(rng.standard_normal(s) * 0.4) for s in shapes]
        for y, z in zip(run(a, inputs), run(b, inputs), strict=True):
            np.testing.assert_allclose(y, z, rtol=1e-9, atol=1e-12)


# ---- loops -------------------------------------------------------------------------------------


def test_a_scan_and_its_gradient_share_the_forward_loop() -> None:
    graph = training(lstm_like)
    assert [type(op) for op in controls(graph)] == [Scan] * 3
    after = loops(graph, CPU)
    assert [type(op) for op in controls(after)] == [Scan] * 2
    agree(graph, after)


def test_what_nobody_reads_leaves_the_loop() -> None:
    def fn(x, h, wx, wh, b):
        def cell(carry, xs):
            h, n, k = carry
            xt, unread = xs
            return ((h + xt).tanh() * k, n + h.sum(), k), (unread.exp(), h)

        (h, _, k), (_, ys) = nir.scan(cell, (h, b.sum(), b[0]), (x, x * 2))
        return h * k, ys

    graph = trace(fn)
    after = loops(graph, CPU)
    (scan,) = controls(after)
    assert len(scan.init) == 1  # n feeds nothing, k never changes
    assert len(scan.xs) == 1 and len(scan.captures) == 1
    assert len(scan.results) == 2
    agree(graph, after)


def test_a_uniform_capture_is_a_constant_in_the_region() -> None:
    def fn(p, x):
        ones = nir.full((4,), 3.0, dtype="f64")
        looped = nir.while_loop(lambda c: c.sum() < 20, lambda c: c + ones, x, 9)
        return nir.cond(p > 0, lambda: looped * ones, lambda: looped)

    graph = trace(fn, "f64[]", "f64[4]")
    after = loops(graph, CPU)
    assert [len(op.captures) for op in controls(after)] == [0, 1]
    agree(graph, after)


# ---- fission -----------------------------------------------------------------------------------


def test_only_the_recurrent_product_stays_in_the_loop() -> None:
    lowered = run_pipeline(training(lstm_like), CPU)
    forward, backward = controls(lowered)
    assert heavy(forward.body, Matmul) == heavy(backward.body, Matmul) == 1
    # Forward: x @ wx and ys. Backward: dx, the cotangent of ys, and three gradients of weights; the
    # products of the forward loop are kept, and none is taken again.
    assert heavy(lowered, Matmul) == 7
    assert len(backward.init) == 1  # no sum is carried
    agree(training(lstm_like), lowered)


def test_transposed_weights_and_repeated_ones_leave_too() -> None:
    def fn(x, h, wx, wh, b):
        def cell(h, xt):
            h = (xt @ wx.T + h @ wh.T + xt @ wh + b).tanh()
            return h, h

        return nir.scan(cell, h, x, reverse=True)

    graph = training(fn)
    lowered = run_pipeline(graph, CPU)
    assert [heavy(op.body, Matmul) for op in controls(lowered)] == [1, 1]
    agree(graph, lowered)


def test_steps_that_do_not_depend_on_each_other_stay_together() -> None:
    def fn(x, h, wx, wh, b):  # a gradient over small batches, to save memory
        return nir.scan(lambda acc, xt: (acc + xt.T @ (xt @ wx), (xt @ wh).exp()), wx, x)

    graph = trace(fn)
    assert fission(loops(graph, CPU), CPU) == loops(graph, CPU)


@pytest.mark.parametrize(("rows", "inside"), [(255, 1), (256, 3)])
def test_products_of_many_rows_stay(rows: int, inside: int) -> None:
    types = (f"f64[T,{rows},6]", f"f64[{rows},6]", *TYPES[2:])
    after = fission(loops(trace(lstm_like, *types), CPU), CPU)
    (scan,) = controls(after)
    assert heavy(scan.body, Matmul) == inside


# ---- hoist -------------------------------------------------------------------------------------


def test_weights_are_packed_once_a_run() -> None:
    def deep(x, h, wx, wh, b):
        def cell(h, xt):
            step = lambda c: ((c + xt) @ wh).tanh()  # noqa: E731
            h = nir.cond(xt.sum() > 0, lambda: nir.while_loop(
                lambda c: c.sum() < 1, step, h, 3), lambda: h @ wx)  # fmt: skip
            return h, h * b

        return nir.scan(cell, h, x)

    for fn in (lstm_like, deep):
        for graph in (trace(fn), training(fn)):
            lowered = run_pipeline(graph, CPU)
            assert not any(isinstance(op, Pack) for op in inside(lowered))
            assert heavy(lowered, Pack)
            agree(graph, lowered)


def test_a_branch_that_runs_once_packs_what_it_needs() -> None:
    def fn(p, x, w):
        return nir.cond(p > 0, lambda: x @ w, lambda: x * 2)

    lowered = run_pipeline(trace(fn, "f64[]", "f64[B,6]", "f64[6,6]"), CPU)
    assert not heavy(lowered, Pack)
    assert any(isinstance(op, Pack) for op in inside(lowered))


def inside(graph: Graph) -> Iterator[Op]:
    """The ops in regions, to any depth."""
    for op in controls(graph):
        for _, region in op.regions():
            yield from opened(region)
            yield from inside(region)


def test_what_a_body_computes_from_captures_moves_in_front() -> None:
    def fn(x, h, wx, wh, b):
        return nir.scan(lambda c, xt: (c * b.exp() + xt, None), h, x)[0]

    graph = trace(fn)
    after = hoist(graph, CPU)
    (scan,) = controls(after)
    assert "exp" in after.count() and "exp" not in scan.body.count()
    agree(graph, after)


def test_what_may_fail_stays_in_a_loop_that_may_have_no_steps() -> None:
    def fn(x, table, i):
        return nir.scan(lambda c, xt: (c + table[i] * xt, None), x[:0].sum(), x)[0]

    graph = trace(fn, "f64[T]", "f64[5]", "i64[]")
    (scan,) = controls(hoist(graph, CPU))
    assert "take" in scan.body.count()
    x, table = np.zeros(0), np.ones(5)
    assert nir.compile(graph)(x, table, np.array(9)).numpy() == 0
    with pytest.raises(IndexRangeError, match="got 9"):
        nir.compile(graph)(np.ones(2), table, np.array(9))
