"""What stays in a loop: passes `loops`, `fission` and `hoist`, seen in lowered graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from pass_harness import CPU, graph_of

import nir
from nir.errors import IndexRangeError
from nir.ir.dim import symbol
from nir.ir.graph import Builder, Graph
from nir.ir.interp import run
from nir.ir.location import Location
from nir.ir.op import Op
from nir.ir.types import TensorType, f64
from nir.ir.verify import verify
from nir.ops import Cond, Matmul, Pack, Scan, WhileLoop
from nir.ops.expr import Expr
from nir.ops.fused import Fused
from nir.ops.vjp import gradient
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


def test_a_branch_that_runs_once_packs_nothing() -> None:
    def fn(p, x, w):
        return nir.cond(p > 0, lambda: x @ w, lambda: x * 2)

    lowered = run_pipeline(trace(fn, "f64[]", "f64[B,6]", "f64[6,6]"), CPU)
    assert not heavy(lowered, Pack)
    assert not any(isinstance(op, Pack) for op in inside(lowered))


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


# ---- random recurrences ------------------------------------------------------------------------


def random_recurrence(seed: int) -> Graph:
    """A scan whose body mixes products of carries, elements and captures, and its gradients."""
    rng = np.random.default_rng(seed)
    square = TensorType(f64, (3, 3))
    b = Builder("body")
    b.locs = frozenset({Location("model.py", 1)})
    given = [Expr(b, b.input(square, n)) for n in ("h", "k", "x", "w", "v")]
    pool = list(given)

    def pick() -> Expr:
        return pool[int(rng.integers(0, len(pool)))]

    for _ in range(int(rng.integers(4, 12))):
        match int(rng.integers(0, 7)):
            case 0 | 1 | 2:
                flags = {
                    name: bool(rng.integers(0, 2)) for name in ("transpose_lhs", "transpose_rhs")
                }
                new = pick().matmul(pick(), **flags) * 0.4
            case 3:
                new = pick() + pick()
            case 4:
                new = pick().tanh()
            case 5:
                new = pick().transpose((1, 0))
            case _:
                new = pick().sum((0,)).broadcast((3, 3), (1,))
        pool.append(new)
    h, k = pick().tanh(), given[1] + pick()
    body = b.build([e.value for e in (h, k, pick(), pick())])
    T = symbol("T")

    def whole(h: Expr, k: Expr, xs: Expr, w: Expr, v: Expr) -> list[Expr]:
        init, captures = (h.value, k.value), (w.value, v.value)
        reverse = bool(rng.integers(0, 2))
        return h.emit(Scan(init, (xs.value,), captures, body, T, reverse))

    graph = graph_of(whole, "f64[3,3]", "f64[3,3]", "f64[T,3,3]", "f64[3,3]", "f64[3,3]")
    return gradient(graph, of=range(4), seeded=False)


@pytest.mark.parametrize("seed", range(80))
def test_random_recurrences_keep_their_meaning(seed: int) -> None:
    graph = random_recurrence(seed)
    lowered = graph
    for p in (loops, fission, loops, hoist, loops):
        lowered = verify(p(lowered, CPU))
        agree(graph, lowered, (0, 1, 3))


def test_products_leave_most_random_recurrences() -> None:
    changed = 0
    for seed in range(80):
        graph = loops(random_recurrence(seed), CPU)
        changed += fission(graph, CPU) is not graph
    assert changed > 40


@pytest.mark.parametrize("seed", range(12))
def test_random_recurrences_run_on_the_cpu(seed: int) -> None:
    graph = random_recurrence(seed)
    exe = nir.compile(graph)
    rng = np.random.default_rng(seed)
    for length in (0, 1, 4):
        shapes = [[length if str(d) == "T" else d for d in t.shape] for t in graph.input_types]
        inputs = [np.asarray(rng.standard_normal(s) * 0.4) for s in shapes]
        for y, z in zip(run(graph, inputs), exe(*inputs), strict=True):
            np.testing.assert_allclose(z.numpy(), y, rtol=1e-9, atol=1e-11)
