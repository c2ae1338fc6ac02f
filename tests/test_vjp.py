"""The reverse-mode walk and the expressions it is written in (each op's own gradient: test_ops)."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nir.errors import DTypeError, NotDifferentiable, ShapeError, VerifyError
from nir.ir.dim import symbol
from nir.ir.graph import Builder, Graph
from nir.ir.interp import run
from nir.ir.location import Location
from nir.ir.op import OPS
from nir.ir.types import TensorType, f32, f64, i64
from nir.ops import HostCall, MaxPool2d
from nir.ops.expr import Expr
from nir.ops.vjp import backward, gradient, vjp

B = symbol("B")
V4 = TensorType(f64, (4,))
X = np.array([0.3, -1.2, 0.8, 1.9])


def make(fn, *types: TensorType) -> Graph:
    """The graph of ``fn``, a function of Exprs."""
    b = Builder("f")
    out = fn(*(Expr(b, b.input(t, f"x{i}")) for i, t in enumerate(types)))
    return b.build([e.value for e in (out if isinstance(out, tuple) else (out,))])


def at(file: str, line: int) -> frozenset[Location]:
    return frozenset({Location(file, line)})


def chain(n: int) -> Graph:
    def fn(x: Expr) -> Expr:
        for _ in range(n):
            x = (x * x).sin() + x
        return x.sum((0,))

    return make(fn, V4)


# ---- values ------------------------------------------------------------------------------------


def test_gradient_gives_the_outputs_and_the_slope() -> None:
    g = gradient(make(lambda x: ((x * x).sum((0,)), x.exp()), V4))
    total, e, slope = run(g, [X])
    assert total == (X * X).sum()
    np.testing.assert_array_equal(e, np.exp(X))
    np.testing.assert_allclose(slope, 2 * X, rtol=1e-15)


def test_gradient_shares_the_forward_ops() -> None:
    graph = make(lambda x: x.exp().sum((0,)), V4)
    assert gradient(graph).count()["exp"] == 1
    assert [op.name for op in gradient(graph).nodes[:2]] == ["exp", "sum"]


def test_vjp_recomputes_only_what_it_needs() -> None:
    g = vjp(make(lambda x: (x.exp().tanh() + x.sin()).sum((0,)) + 1.0, V4))
    assert g.count() == {"add": 1, "broadcast": 1, "cos": 1, "exp": 1, "full": 1, "mul": 4,
                         "sub": 1, "tanh": 1}  # fmt: skip
    assert g.input_names == ("x0", "ct0")
    (slope,) = run(g, [X, np.array(2.0)])
    e = np.exp(X)
    np.testing.assert_allclose(slope, 2 * ((1 - np.tanh(e) ** 2) * e + np.cos(X)), rtol=1e-13)


def test_cotangents_of_a_value_read_often_add_up() -> None:
    (slope,) = run(vjp(make(lambda x: x * x * x + x, V4)), [X, np.ones(4)])
    np.testing.assert_allclose(slope, 3 * X**2 + 1, rtol=1e-14)


def test_an_input_that_is_an_output() -> None:
    (slope,) = run(vjp(make(lambda x: (x, x), V4)), [X, np.ones(4), 2 * np.ones(4)])
    np.testing.assert_array_equal(slope, np.full(4, 3.0))


def test_zero_where_nothing_flows_back() -> None:
    graph = make(lambda x, y: (y * y, x.floor()), V4, V4)
    dx, dy = run(vjp(graph), [X, X, np.ones(4), np.ones(4)])
    np.testing.assert_array_equal(dx, np.zeros(4))
    np.testing.assert_array_equal(dy, 2 * X)


def test_integers_neither_get_nor_give_cotangents() -> None:
    def fn(x: Expr, i: Expr) -> tuple[Expr, Expr]:
        return x.take(i, 0), i + i

    g = vjp(make(fn, V4, TensorType(i64, (2,))))
    assert [str(t) for t in g.input_types] == ["f64[4]", "i64[2]", "f64[2]"]
    (slope,) = run(g, [X, np.array([1, 1]), np.array([2.0, 3.0])])
    np.testing.assert_array_equal(slope, [0, 5, 0, 0])


def test_wrt_chooses_and_orders() -> None:
    graph = make(lambda x, y: (x * y.sin()).sum((0,)), V4, V4)
    dy, dx = run(vjp(graph, (1, 0)), [X, X + 1, np.array(1.0)])
    np.testing.assert_allclose(dx, np.sin(X + 1))
    np.testing.assert_allclose(dy, X * np.cos(X + 1))
    # What leads to x alone is not computed for y.
    assert "sin" not in vjp(graph, (1,)).count() and "cos" in vjp(graph, (1,)).count()


def test_several_outputs_and_given_cotangents() -> None:
    graph = make(lambda x: (x.exp(), x.sin()), V4)
    e, s, slope = run(gradient(graph, of=(1, 0), seeded=False), [X, X, np.ones(4)])
    np.testing.assert_allclose(slope, X * np.cos(X) + np.exp(X), rtol=1e-14)
    np.testing.assert_array_equal([e, s], [np.exp(X), np.sin(X)])


def test_third_derivative() -> None:
    graph = make(lambda x: x**4.0, TensorType(f64, ()))
    for k, expected in enumerate((4 * 1.7**3, 12 * 1.7**2, 24 * 1.7)):
        graph = gradient(graph, (0,), of=-1)
        *_, slope = run(graph, [np.array(1.7)])
        assert math.isclose(slope, expected, rel_tol=1e-12), k


def test_the_batch_size_stays_symbolic() -> None:
    t = TensorType(f32, (B, 3))
    g = gradient(make(lambda x: (x * x).mean((0, 1)), t))
    assert str(g.output_types[1]) == "f32[B,3]"
    for rows in (1, 5):
        x = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
        np.testing.assert_allclose(run(g, [x])[1], 2 * x / (3 * rows), rtol=1e-6)


def test_backward_stops_at_inner_values() -> None:
    b = Builder()
    x = Expr(b, b.input(V4))
    y = x.exp()
    z = y * y
    found = backward(b, tuple(b.nodes), {z.value: z.full_like(1.0)}, [y.value])
    assert set(found) == {y.value}
    (slope,) = run(b.build([found[y.value].value]), [X])
    np.testing.assert_allclose(slope, 2 * np.exp(X))


# ---- shape of the result -----------------------------------------------------------------------


def test_size_is_linear_in_the_size_of_the_graph() -> None:
    sizes = [len(gradient(chain(n)).nodes) for n in (50, 100, 200)]
    assert sizes[2] - sizes[1] == 2 * (sizes[1] - sizes[0])


def test_names_of_cotangents_do_not_clash() -> None:
    b = Builder("f")
    x = Expr(b, b.input(V4, "ct0"))
    g = vjp(b.build([x.exp().value]))
    assert g.input_names == ("ct0", "ct0_")


def test_gradients_keep_the_forward_line() -> None:
    b = Builder("f")
    x = Expr(b, b.input(V4))
    b.locs = at("model.py", 3)
    y = x.exp()
    b.locs = at("model.py", 4)
    z = y.sin()
    g = vjp(b.build([z.value]))
    lines = {op.name: {str(loc) for loc in op.locs} for op in g.nodes}
    assert lines["cos"] == {"model.py:4"}
    assert [str(*op.locs) for op in g.nodes if op.name == "mul"] == ["model.py:4", "model.py:3"]
    assert all(op.locs for op in vjp(g).nodes)


def test_dead_impure_ops_run_again_only_with_the_forward_results() -> None:
    def fn(x: Expr) -> tuple[Expr, ...]:
        x.emit(HostCall((x.value,), np.sort, (V4,)))
        return (x.sin().sum((0,)),)

    graph = make(fn, V4)
    assert "host_call" in gradient(graph).count()
    assert "host_call" not in vjp(graph).count()


# ---- errors ------------------------------------------------------------------------------------


def test_no_gradient_names_the_forward_line() -> None:
    b = Builder("f")
    x = Expr(b, b.input(V4))
    b.locs = at("model.py", 7)
    (y,) = x.emit(HostCall((x.value,), np.sort, (V4,)))
    b.locs = at("model.py", 8)
    graph = b.build([y.sum((0,)).value])
    with pytest.raises(NotDifferentiable, match="host_call has no gradient") as caught:
        gradient(graph)
    assert str(caught.value).endswith("\n  at model.py:7")


def test_no_gradient_is_needed_off_the_path() -> None:
    def fn(x: Expr, y: Expr) -> Expr:
        (sorted_y,) = x.emit(HostCall((y.value,), np.sort, (V4,)))
        return (x * sorted_y).sum((0,))

    graph = make(fn, V4, V4)
    _, slope = run(gradient(graph, (0,)), [X, X])
    np.testing.assert_array_equal(slope, np.sort(X))
    with pytest.raises(NotDifferentiable):
        gradient(graph, (1,))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: gradient(g, (0,), of=0), r"gradient: expected a scalar output, got f64\[4\]"),
        (
            lambda g: gradient(g, (0,), of=1),
            r"gradient: expected an output of a float dtype, got i64\[4\]",
        ),
        (
            lambda g: gradient(g, (1,), of=0),
            r"gradient: expected an input of a float dtype, got %x1: i64\[4\]",
        ),
        (lambda g: vjp(g, (2,)), "gradient: input 2 of a graph of 2 inputs"),
    ],
)
def test_what_cannot_be_differentiated(call, message) -> None:
    graph = make(lambda x, i: (x * x, i + i), V4, TensorType(i64, (4,)))
    with pytest.raises(NotDifferentiable, match=message):
        call(graph)


def test_a_wrong_gradient_is_caught(monkeypatch) -> None:
    graph = make(lambda x: x.exp(), V4)
    monkeypatch.setattr(OPS["exp"], "grad", lambda self, x, y, ct: (ct[0].sum((0,)),))
    with pytest.raises(VerifyError, match=r"exp: the cotangent of a f64\[4\] is a f64\[\]"):
        vjp(graph)
    monkeypatch.setattr(OPS["exp"], "grad", lambda self, x, y, ct: ())
    with pytest.raises(VerifyError, match="exp: 0 cotangents for 1 operands"):
        vjp(graph)


# ---- Expr --------------------------------------------------------------------------------------


def test_operators_lift_numbers() -> None:
    def fn(x: Expr) -> tuple[Expr, ...]:
        return (
            x + 1, 1 + x, x - 2.0, 2.0 - x, x * 3, 3 * x, x / 2, 2 / x, x**2.0, -x,
            x.gt(0.5).where(x, 0.0), x.maximum(0.25), x.full_like(B),
        )  # fmt: skip

    out = run(make(fn, TensorType(f64, (B,))), [X])
    expected = [
        X + 1, 1 + X, X - 2, 2 - X, X * 3, 3 * X, X / 2, 2 / X, X**2, -X,
        np.where(X > 0.5, X, 0), np.maximum(X, 0.25), np.full(4, 4.0),
    ]  # fmt: skip
    for a, b in zip(out, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-15)


def test_every_op_is_a_method() -> None:
    b = Builder()
    x = Expr(b, b.input(TensorType(f32, (2, 3))))
    for name in OPS:
        assert callable(getattr(x, name))
    y = x.concat((x, x), axis=0)
    assert (y.shape, y.ndim, y.size, y.dtype) == ((6, 3), 2, 18, f32)
    assert x.iota((4,), 0, i64).type == TensorType(i64, (4,))
    y, mean, _ = x.batch_norm(x.mean((0,)), x.mean((0,)), 1e-5)
    assert y.shape == (2, 3) and mean.shape == (3,)
    with pytest.raises(AttributeError, match="no op 'reluu'"):
        x.reluu()


def test_expr_refuses_what_it_cannot_lift() -> None:
    b = Builder()
    x = Expr(b, b.input(TensorType(f32, (2, 3))))
    with pytest.raises(TypeError, match="matmul: operand rhs is an Expr, not 2"):
        x.matmul(2.0)
    with pytest.raises(TypeError, match="add takes lhs, rhs; got 3 arguments"):
        x.add(x, x)
    with pytest.raises(TypeError, match="a number needs an operand beside it"):
        x.gt(0.0).where(1.0, 0.0)


def test_errors_of_emitted_ops_name_the_line() -> None:
    b = Builder()
    x = Expr(b, b.input(TensorType(f32, (2, 3))))
    b.locs = at("model.py", 9)
    with pytest.raises(ShapeError, match=r"(?s)add: .*at model.py:9"):
        x + x.sum((0,))
    with pytest.raises(DTypeError, match=r"(?s)exp: .*at model.py:9"):
        x.cast(i64).exp()


def test_attributes_go_by_name_or_place() -> None:
    b = Builder()
    x = Expr(b, b.input(TensorType(f32, (1, 4, 4, 2))))
    pad = ((0, 0), (0, 0))
    one = x.max_pool2d((2, 2), (2, 2), pad)
    two = x.max_pool2d(padding=pad, stride=(2, 2), kernel=(2, 2))
    assert one.type == two.type
    assert all(isinstance(op, MaxPool2d) for op in b.nodes)


# ---- slices --------------------------------------------------------------------------------------


def rows(x: Expr, start: int, size: int, step: int = 1) -> Expr:
    return x.slice((start,), (size,), (step,))


@pytest.mark.parametrize(
    ("parts", "ops"),
    [
        ([(0, 1), (1, 2), (3, 1)], {"concat": 1}),  # tiles, in any order
        ([(3, 1), (0, 3)], {"concat": 1}),
        ([(0, 2), (3, 1)], {"pad": 2}),  # a gap
        ([(0, 3), (2, 2)], {"pad": 2}),  # an overlap
        ([(0, 2), (2, 2), (2, 2)], {"pad": 3}),
        ([(1, 2)], {"pad": 1}),
        ([(1, 1), (2, 2)], {"concat": 1, "pad": 1}),  # touching, not all of it
    ],
)
def test_slices_that_touch_give_one_concat(
    parts: list[tuple[int, int]], ops: dict[str, int]
) -> None:
    def fn(x: Expr) -> Expr:
        total = (x * x).sum((0,))  # reaches x beside the slices
        for k, (start, size) in enumerate(parts):
            total = total + (rows(x, start, size).exp() * float(k + 1)).sum((0,))
        return total

    graph = gradient(make(fn, V4))
    _, slope = run(graph, [X])
    expected = 2 * X
    for k, (start, size) in enumerate(parts):
        expected[start : start + size] += (k + 1) * np.exp(X[start : start + size])
    np.testing.assert_allclose(slope, expected, rtol=1e-14)
    found = graph.count()
    assert {name: found[name] for name in ("concat", "pad") if found.get(name)} == ops


def test_slices_of_an_inner_value_and_with_steps() -> None:
    def fn(x: Expr) -> Expr:
        y = x.exp()
        return (rows(y, 0, 2, 2) * rows(y, 1, 2, 2)).sum((0,)) + (
            rows(y, 0, 2) * rows(y, 2, 2)
        ).sum((0,))

    _, slope = run(gradient(make(fn, V4)), [X])
    e = np.exp(X)
    other = np.array([e[1] + e[2], e[0] + e[3], e[3] + e[0], e[2] + e[1]])
    np.testing.assert_allclose(slope, e * other, rtol=1e-14)
