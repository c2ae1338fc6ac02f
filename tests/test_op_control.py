"""Regions: scan, cond and custom_vjp beyond their samples."""

from __future__ import annotations

import numpy as np
import pytest

from nir.errors import NotDifferentiable
from nir.ir.dim import symbol
from nir.ir.graph import Builder, Graph
from nir.ir.interp import run
from nir.ir.types import TensorType, bool_, f64, i64
from nir.ops import Cond, CustomVjp, Scan
from nir.ops.expr import Expr
from nir.ops.vjp import gradient, vjp

T = symbol("T")
B = symbol("B")
V2, S = TensorType(f64, (2,)), TensorType(f64)


def make(fn, *types: TensorType, name: str = "f") -> Graph:
    b = Builder(name)
    out = fn(*(Expr(b, b.input(t, f"x{i}")) for i, t in enumerate(types)))
    return b.build([e.value for e in (out if isinstance(out, tuple) else (out,))])


def values(*exprs: Expr):
    return tuple(e.value for e in exprs)


def rnn(length, reverse: bool = False, batch=2) -> Graph:
    """h' = tanh(w h + x), y = h' * x, and the number of steps, over xs (length, batch)."""
    v = TensorType(f64, (batch,))

    def body(h: Expr, n: Expr, x: Expr, w: Expr) -> tuple[Expr, ...]:
        new = (w * h + x).tanh()
        return new, n + 1, new * x

    region = make(body, v, TensorType(i64), v, v, name="body")

    def fn(h: Expr, n: Expr, xs: Expr, w: Expr) -> tuple[Expr, ...]:
        scan = Scan(values(h, n), values(xs), values(w), region, length, reverse)
        return h.emit(scan)

    return make(fn, v, TensorType(i64), TensorType(f64, (length, batch)), v)


def rnn_numpy(h, n, xs, w, reverse: bool = False):
    ys = np.zeros_like(xs)
    for t in reversed(range(len(xs))) if reverse else range(len(xs)):
        h = np.tanh(w * h + xs[t])
        n, ys[t] = n + 1, h * xs[t]
    return h, n, ys


def arrays(length: int, batch: int = 2) -> list[np.ndarray]:
    rng = np.random.default_rng(length)
    h, w = rng.standard_normal((2, batch))
    return [h, np.array(10), rng.standard_normal((length, batch)), w]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [0, 1, 5])
def test_scan_is_the_loop(length: int, reverse: bool) -> None:
    inputs = arrays(length)
    for graph in (rnn(length, reverse), rnn(T, reverse), rnn(T, reverse, B)):
        h, n, ys = run(graph, inputs)
        eh, en, eys = rnn_numpy(*inputs, reverse)
        np.testing.assert_array_equal(h, eh)
        np.testing.assert_array_equal(ys, eys)
        assert n == en and ys.shape == (length, 2)


def unrolled(length: int, reverse: bool) -> Graph:
    def fn(h: Expr, n: Expr, xs: Expr, w: Expr) -> tuple[Expr, ...]:
        ys = {}
        for t in reversed(range(length)) if reverse else range(length):
            x = xs.slice((t, 0), (1, 2), (1, 1)).reshape((2,))
            h = (w * h + x).tanh()
            n, ys[t] = n + 1, (h * x).reshape((1, 2))
        return h, n, ys[0].concat([ys[t] for t in range(1, length)], axis=0)

    return make(fn, V2, TensorType(i64), TensorType(f64, (length, 2)), V2)


@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_of_scan_are_those_of_the_unrolled_loop(reverse: bool) -> None:
    inputs = arrays(4)
    ours, theirs = rnn(T, reverse), unrolled(4, reverse)
    rng = np.random.default_rng(0)
    for _ in range(3):  # to third order, each with cotangents of its own
        inputs += [rng.standard_normal(y.shape) for y in run(ours, inputs) if y.dtype.kind == "f"]
        ours, theirs = vjp(ours), vjp(theirs)
        for a, b in zip(run(ours, inputs), run(theirs, inputs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_gradient_of_an_empty_scan() -> None:
    inputs = arrays(0)
    dh, dxs, dw = run(vjp(rnn(T)), [*inputs, np.ones(2), np.zeros((0, 2))])
    np.testing.assert_array_equal(dh, np.ones(2))
    np.testing.assert_array_equal(dw, np.zeros(2))
    assert dxs.shape == (0, 2)


def test_the_gradient_of_a_scan_stays_one_loop() -> None:
    g = gradient(make(lambda *xs: run_sum(*xs), V2, TensorType(f64, (T, 2)), V2))
    # The forward loop, the loop that keeps the carries, and the backward loop.
    assert g.count()["scan"] == 3
    assert len(gradient(make(run_sum, V2, TensorType(f64, (9, 2)), V2)).nodes) == len(g.nodes)


def run_sum(h: Expr, xs: Expr, w: Expr) -> Expr:
    body = make(lambda h, x, w: (w * h + x).tanh(), V2, V2, V2)
    (out,) = h.emit(Scan(values(h), values(xs), values(w), body, xs.shape[0], False))
    return out.sum((0,))


def test_scan_without_xs_counts_its_trips() -> None:
    body = make(lambda h, w: h * w, S, S)

    def fn(h: Expr, w: Expr) -> Expr:
        return h.emit(Scan(values(h), (), values(w), body, 5, False))[0]

    g = gradient(make(fn, S, S))
    y, dh, dw = run(g, [np.array(2.0), np.array(1.1)])
    np.testing.assert_allclose([y, dh, dw], [2 * 1.1**5, 1.1**5, 10 * 1.1**4])


def test_scan_without_carries_maps() -> None:
    body = make(lambda x: x * x, V2)

    def fn(xs: Expr) -> Expr:
        return xs.emit(Scan((), values(xs), (), body, T, False))[0]

    x = np.arange(6.0).reshape(3, 2)
    (slope,) = run(vjp(make(fn, TensorType(f64, (T, 2)))), [x, np.ones((3, 2))])
    np.testing.assert_array_equal(slope, 2 * x)


# ---- cond --------------------------------------------------------------------------------------


def test_cond_runs_one_branch_and_differentiates_it() -> None:
    then = make(lambda x, i: (x.log(), x * 0.0), V2, TensorType(i64))
    other = make(lambda x, i: (x * i.cast(f64).broadcast((2,), ()), x), V2, TensorType(i64))

    def fn(p: Expr, x: Expr, i: Expr) -> tuple[Expr, ...]:
        return p.emit(Cond(p.value, values(x, i), then, other))

    graph = make(fn, TensorType(bool_), V2, TensorType(i64))
    x, ct = np.array([2.0, 4.0]), np.ones(2)
    yes = [np.array(True), x, np.array(3), ct, ct]
    no = [np.array(False), -x, np.array(3), ct, ct]
    np.testing.assert_allclose(run(graph, yes[:3])[0], np.log(x))
    np.testing.assert_array_equal(run(graph, no[:3])[0], -3 * x)
    slope = vjp(graph)
    np.testing.assert_allclose(run(slope, yes)[0], 1 / x)
    np.testing.assert_array_equal(run(slope, no)[0], [4.0, 4.0])
    dx, *_ = run(vjp(slope), [*yes, ct])
    np.testing.assert_allclose(dx, -1 / x**2)


def test_cond_on_one_output_only() -> None:
    then = make(lambda x: (x.exp(), x), V2)
    other = make(lambda x: (x.sin(), x * 2.0), V2)

    def fn(p: Expr, x: Expr) -> Expr:
        return p.emit(Cond(p.value, values(x), then, other))[0].sum((0,))

    g = gradient(make(fn, TensorType(bool_), V2), (1,))
    x = np.array([0.5, 1.5])
    np.testing.assert_allclose(run(g, [np.array(False), x])[1], np.cos(x))


# ---- custom_vjp --------------------------------------------------------------------------------


def test_custom_vjp_overrides_the_gradient() -> None:
    # A straight-through estimator: round forward, identity backward.
    fwd = make(lambda x: x.round(), V2)
    bwd = make(lambda x, y, ct: ct, V2, V2, V2)
    graph = make(lambda x: x.emit(CustomVjp(values(x), fwd, bwd))[0] * x, V2)
    x = np.array([0.4, 1.7])
    y, slope = run(gradient(graph, of=(0,), seeded=False), [x, np.ones(2)])
    np.testing.assert_array_equal(y, np.round(x) * x)
    np.testing.assert_allclose(slope, x + np.round(x))


def test_custom_vjp_with_integers_and_two_results() -> None:
    i = TensorType(i64, (2,))
    fwd = make(lambda x, i: (x * 2.0, i + 1, x.exp()), V2, i)
    bwd = make(
        lambda x, i, y, j, e, dy, de: dy * 20.0 + de * e * j.cast(f64), V2, i, V2, i, V2, V2, V2
    )
    graph = make(lambda x, i: x.emit(CustomVjp(values(x, i), fwd, bwd))[2], V2, i)
    x = np.array([0.4, 1.7])
    (slope,) = run(vjp(graph), [x, np.array([1, 2]), np.ones(2)])
    np.testing.assert_allclose(slope, np.exp(x) * [2, 3])


def test_regions_without_gradients_say_so() -> None:
    from nir.ops import HostCall

    body = make(lambda x: x.emit(HostCall(values(x), np.sort, (V2,)))[0], V2)

    def fn(p: Expr, x: Expr) -> Expr:
        return p.emit(Cond(p.value, values(x), body, body))[0]

    with pytest.raises(NotDifferentiable, match="host_call has no gradient"):
        vjp(make(fn, TensorType(bool_), V2))
