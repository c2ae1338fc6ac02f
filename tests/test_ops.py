"""Every op, through its samples: types, gradients to second order, decompositions, half types."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from op_cases import CASES, HALF, Case, batched, in_f64, in_half, make_graph, make_op, types_of

from nir.errors import DTypeError
from nir.frozen import replace
from nir.ir.dim import evaluate, symbol
from nir.ir.graph import Builder, Graph
from nir.ir.interp import run
from nir.ir.op import OPS
from nir.ir.types import DTYPES, DType, TensorType, bf16, dtype, f16
from nir.ops import Cast, Matmul, Pack, PackConv2d
from nir.ops.expr import Expr
from nir.ops.vjp import vjp

B = symbol("B")


def by_id(case: Case) -> str:
    return case.id


def test_nodes_are_small() -> None:
    """A node has slots only: an op that adds no field says so with `__slots__ = ()`."""
    assert [name for name, cls in OPS.items() if cls.__dictoffset__] == []


def test_every_op_has_samples_and_says_what_it_does() -> None:
    # Only a graph that a pass made can tell what a fused or banded op is.
    assert {c.op.name for c in CASES} == set(OPS) - {"fused", "banded"}
    for name, cls in OPS.items():
        # A dataclass without a docstring gets its signature for one.
        assert not (cls.__doc__ or "").startswith(f"{cls.__name__}("), name


# ---- types -------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=by_id)
def test_infer_agrees_with_ref(case: Case) -> None:
    graph = make_graph(case)
    before = [x.copy() for x in case.arrays]
    out = run(graph, case.arrays)
    for y, t in zip(out, graph.output_types, strict=True):
        assert isinstance(y, np.ndarray)
        assert TensorType(dtype(y.dtype), y.shape) == t.with_(layout="")
    for x, old in zip(case.arrays, before, strict=True):
        np.testing.assert_array_equal(x, old, err_msg="the reference changed its operand")


def test_sizes_stay_symbolic() -> None:
    seen = set()
    for case in CASES:
        if (graph := batched(case)) is None:
            continue
        seen.add(case.op.name)
        n = case.arrays[0].shape[0]
        static = make_graph(case).output_types
        for t, expected in zip(graph.output_types, static, strict=True):
            shape = tuple(evaluate(d, {"B": n}) for d in t.shape)
            assert t.with_(shape=shape) == expected, case.id
        out = run(graph, case.arrays)
        for y, z in zip(out, run(make_graph(case), case.arrays), strict=True):
            np.testing.assert_array_equal(y, z, err_msg=case.id)
    expected = {
        name for name, cls in OPS.items()
        if cls.kind in ("elementwise", "movement", "reduction", "contraction")
    }  # fmt: skip
    assert expected <= seen
    assert {"softmax", "layer_norm", "batch_norm", "cross_entropy", "attention", "take",
            "max_pool2d", "avg_pool2d", "cum_sum", "arg_max"} <= seen  # fmt: skip


def test_gradients_stay_symbolic() -> None:
    for case in CASES:
        graph = batched(case)
        if graph is None or not differentiable(case):
            continue
        slope = vjp(graph)
        cts = [np.ones(y.shape, y.dtype) for y in run(graph, case.arrays) if is_float(y)]
        static = run(vjp(make_graph(case)), [*case.arrays, *cts])
        for a, b in zip(run(slope, [*case.arrays, *cts]), static, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=case.id)


# ---- gradients ---------------------------------------------------------------------------------


def is_float(x: np.ndarray) -> bool:
    return x.dtype == np.float32 or x.dtype == np.float64


def differentiable(case: Case) -> bool:
    return (
        case.sample.differentiable
        and any(is_float(x) for x in case.arrays)
        and any(t.dtype.is_float for t in make_graph(case).output_types)
    )


SLOPED = [c for c in CASES if differentiable(c)]

# A gradient that is zero, or that is another op's, still needs its sample here.
NEVER_SLOPED = {
    "arg_max", "arg_min", "bit_and", "bit_not", "bit_or", "bit_xor", "check_index", "constant",
    "banded", "eq", "full", "fused", "ge", "gt", "host_call", "iota", "is_nan", "le",
    "logical_and", "logical_not", "logical_or", "logical_xor", "lt", "ne", "pack", "pack_conv2d",
    "random_bernoulli", "random_bits", "random_normal", "random_uniform", "reduce_partial",
    "shift_left", "shift_right", "shift_right_logical",
}  # fmt: skip


def test_every_other_op_has_its_gradient_tested() -> None:
    assert {c.op.name for c in SLOPED} == set(OPS) - NEVER_SLOPED


def directional(graph: Graph, inputs: list[np.ndarray], at: int, v: np.ndarray) -> list[np.ndarray]:
    """Central differences of the outputs as input ``at`` moves along v."""
    h = 1e-5
    sides = []
    for sign in (1, -1):
        moved = list(inputs)
        moved[at] = moved[at] + sign * h * v
        sides.append(run(graph, moved))
    return [(a - b) / (2 * h) for a, b in zip(*sides, strict=True)]


def check_slope(
    graph: Graph, inputs: list[np.ndarray], rng: np.random.Generator, what: str
) -> None:
    """<ct, J v> by differences equals <vjp(ct), v>, for each float input in turn."""
    out = run(graph, inputs)
    floats = [i for i, x in enumerate(inputs) if is_float(x)]
    cts = [rng.standard_normal(y.shape) for y in out if is_float(y)]
    slopes = run(vjp(graph), [*inputs, *cts])
    for i, slope in zip(floats, slopes, strict=True):
        v = rng.standard_normal(inputs[i].shape)
        moved = [
            d for d, y in zip(directional(graph, inputs, i, v), out, strict=True) if is_float(y)
        ]
        terms = [ct * d for ct, d in zip(cts, moved, strict=True)]
        expected = sum(float(t.sum()) for t in terms)
        scale = 1.0 + sum(float(np.abs(t).sum()) for t in terms)
        got = float((slope * v).sum())
        assert abs(got - expected) <= 1e-7 * scale, f"{what}, operand {i}: {got} and {expected}"


@pytest.mark.parametrize("case", SLOPED, ids=by_id)
def test_gradient_to_second_order(case: Case) -> None:
    case = in_f64(case)
    rng = np.random.default_rng(len(case.id))
    graph = make_graph(case)
    inputs = list(case.arrays)
    check_slope(graph, inputs, rng, "first order")
    cts = [rng.standard_normal(y.shape) for y in run(graph, inputs) if is_float(y)]
    check_slope(vjp(graph), [*inputs, *cts], rng, "second order")


def test_gradients_differentiate_again_and_again() -> None:
    # Third order, by differences of the second, for the ops with gradient ops of their own.
    for case in map(in_f64, SLOPED):
        if case.op.name not in ("conv2d", "matmul", "softmax", "scan", "tanh", "avg_pool2d"):
            continue
        rng = np.random.default_rng(3)
        graph, inputs = make_graph(case), list(case.arrays)
        for _ in range(2):
            outs = run(graph, inputs)
            inputs += [rng.standard_normal(y.shape) for y in outs if is_float(y)]
            graph = vjp(graph)
        check_slope(graph, inputs, rng, f"third order of {case.id}")


# ---- decompositions ----------------------------------------------------------------------------


def decomposed(case: Case) -> Graph | None:
    b = Builder("decomposed")
    values = [b.input(t) for t in types_of(case.arrays)]
    out = make_op(case, values).decompose([Expr(b, v) for v in values])
    return None if out is None else b.build([e.value for e in out])


DECOMPOSED = [c for c in CASES if decomposed(c) is not None]


def test_compound_ops_decompose() -> None:
    assert {c.op.name for c in DECOMPOSED} == {
        "attention", "attention_grad", "batch_norm", "batch_norm_inference", "cross_entropy",
        "custom_vjp", "layer_norm", "log_softmax", "log_sum_exp", "mean",
        "random_bernoulli", "random_normal", "random_uniform", "softmax",
    }  # fmt: skip


@pytest.mark.parametrize("case", DECOMPOSED, ids=by_id)
def test_decomposition_agrees_with_ref(case: Case) -> None:
    graph = decomposed(case)
    assert graph is not None
    whole = make_graph(case)
    assert graph.output_types == whole.output_types
    assert case.op.name not in graph.count()
    for y, z in zip(run(graph, case.arrays), run(whole, case.arrays), strict=True):
        rtol = 1e-5 if y.dtype == np.float32 else 1e-12
        np.testing.assert_allclose(y, z, rtol=rtol, atol=rtol)


# ---- half types --------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [f16, bf16], ids=str)
@pytest.mark.parametrize("case", HALF, ids=by_id)
def test_half_types_round_once(case: Case, half: Any) -> None:
    """f16 and bf16 in and out, at most a few roundings away from f64 on the same inputs."""
    low_case = in_half(case, half)
    low, graph = low_case.arrays, make_graph(low_case)
    wide = [x.astype(np.float64) if x.dtype == half.numpy else x for x in low]
    same = Case(case.op, case.number, replace(case.sample, operands=tuple(wide)))
    eps = float(ml_dtypes.finfo(half.numpy).eps)
    for y, z, t in zip(
        run(graph, low), run(make_graph(same), wide), graph.output_types, strict=True
    ):
        assert y.dtype == t.dtype.numpy
        if y.dtype != half.numpy:
            if y.dtype.kind != "f":
                np.testing.assert_array_equal(y, z)
            continue
        with np.errstate(over="ignore"):
            expected = z.astype(half.numpy).astype(np.float64)
        y = y.astype(np.float64)
        magnitude = np.abs(expected[np.isfinite(expected)]).max(initial=1.0)
        np.testing.assert_allclose(y, expected, rtol=2 * eps, atol=2 * eps * magnitude)


# ---- every dtype -------------------------------------------------------------------------------


def in_dtype(case: Case, dtype_: DType) -> tuple[Graph, list[np.ndarray]] | None:
    """The op of ``case`` with ``dtype_`` for the dtype of its data, unless it refuses that."""
    data = case.arrays[1 if case.op.name == "where" else 0].dtype
    cast = Cast(x=None, dtype=dtype_)
    arrays = [cast.ref(x)[0] if x.dtype == data else x for x in case.arrays]
    try:
        return make_graph(case, types_of(tuple(arrays))), arrays
    except DTypeError:
        return None


@pytest.mark.parametrize("dtype_", DTYPES.values(), ids=str)
def test_what_infer_accepts_ref_computes(dtype_: DType) -> None:
    """Each op either refuses a dtype or has results of the inferred types in it."""
    took = set()
    for case in CASES:
        kinds = ("elementwise", "movement", "reduction", "contraction")
        if case.op.kind not in kinds and case.op.name not in ("take", "scatter_add", "cum_sum"):
            continue
        found = in_dtype(case, dtype_)
        if found is None:
            continue
        run(*found)  # the interpreter checks results against the inferred types
        took.add(case.op.name)
    movement = {n for n, c in OPS.items() if c.kind == "movement"}
    assert movement | {"where", "cast", "eq", "take"} <= took
    if dtype_.kind != "bool":
        assert {"add", "sub", "mul", "neg", "sum", "prod", "max", "matmul", "scatter_add"} <= took
    if dtype_.is_float:
        assert {"exp", "div", "conv2d", "mean", "is_nan"} <= took
    if dtype_.is_integer:
        assert {"shift_left", "bit_and", "floor_div", "mod"} <= took


@pytest.mark.parametrize("dtype_", [d for d in DTYPES.values() if d.is_integer], ids=str)
def test_integers_wrap(dtype_: DType) -> None:
    """Arithmetic in a narrow type is arithmetic in Python's integers, modulo its width."""
    bits, info = 8 * dtype_.itemsize, np.iinfo(dtype_.numpy)
    edges = [info.min, info.min + 1, -3, -1, 0, 1, 2, 7, info.max - 1, info.max]
    numbers = sorted({n for n in edges if info.min <= n <= info.max})
    pairs = [(a, b) for a in numbers for b in numbers]

    def wrap(n: int) -> int:
        n %= 2**bits
        return n - 2**bits if n > info.max else n

    x, y = (np.array(c, dtype_.numpy) for c in zip(*pairs, strict=True))
    python: dict[str, Any] = {
        "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b,
        "floor_div": lambda a, b: a // b if b else 0, "mod": lambda a, b: a % b if b else 0,
        "bit_and": lambda a, b: a & b, "bit_or": lambda a, b: a | b, "bit_xor": lambda a, b: a ^ b,
        "maximum": max, "minimum": min,
        "shift_left": lambda a, b: a << b if 0 <= b < bits else 0,
        "shift_right": lambda a, b: a >> (b if 0 <= b < bits else bits - 1),
        "shift_right_logical": lambda a, b: (a % 2**bits) >> b if 0 <= b < bits else 0,
    }  # fmt: skip
    for name, fn in python.items():
        (out,) = OPS[name](lhs=None, rhs=None).ref(x, y)
        expected = [wrap(fn(a, b)) for a, b in pairs]
        assert out.dtype == dtype_.numpy
        np.testing.assert_array_equal(out, np.array(expected, dtype_.numpy), err_msg=name)
    for name, one in {"neg": lambda a: -a, "abs": abs, "bit_not": lambda a: ~a}.items():
        (out,) = OPS[name](x=None).ref(x)
        expected = [wrap(one(a)) for a, _ in pairs]
        np.testing.assert_array_equal(out, np.array(expected, dtype_.numpy), err_msg=name)


@pytest.mark.parametrize("to", [d for d in DTYPES.values() if not d.is_float], ids=str)
@pytest.mark.parametrize("of", [d for d in DTYPES.values() if d.is_float], ids=str)
def test_floats_truncate_and_saturate(of: DType, to: DType) -> None:
    numbers = [0.0, -0.0, 0.9, -0.9, 1.5, -1.5, 127.5, 128.0, 255.5, 256.0, -129.0, 32768.0, 1e5,
               2.0**31, -(2.0**31), 2.0**63, -(2.0**63), 1e30, np.inf, -np.inf, np.nan]  # fmt: skip
    with np.errstate(over="ignore"):
        x = np.array(numbers).astype(of.numpy)
    (out,) = Cast(x=None, dtype=to).ref(x)
    wide = x.astype(np.float64)
    if to.kind == "bool":
        expected = [bool(v != 0) for v in wide]
    else:
        info = np.iinfo(to.numpy)
        expected = [
            0
            if np.isnan(v)
            else info.max
            if v >= info.max
            else info.min
            if v <= info.min
            else int(v)
            for v in wide
        ]
    assert out.dtype == to.numpy
    assert out.tolist() == expected


# ---- several results, other layouts ------------------------------------------------------------


def test_each_result_alone_has_the_gradient_of_zeros_elsewhere() -> None:
    for case in map(in_f64, SLOPED):
        graph = make_graph(case)
        if len(graph.outputs) < 2:
            continue
        out = run(graph, case.arrays)
        for i, y in enumerate(out):
            if not is_float(y):
                continue
            ct = np.cos(np.arange(y.size)).reshape(y.shape)
            alone = run(vjp(graph.with_(outputs=(graph.outputs[i],))), [*case.arrays, ct])
            zeros = [ct if i == j else np.zeros_like(z) for j, z in enumerate(out) if is_float(z)]
            for a, b in zip(alone, run(vjp(graph), [*case.arrays, *zeros]), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13, err_msg=case.id)


@pytest.mark.parametrize("name", ["conv2d", "conv2d_input_grad", "conv2d_weight_grad"])
def test_convolutions_read_and_write_every_weight_layout(name: str) -> None:
    for case in (c for c in CASES if c.op.name == name):
        attributes = dict(case.sample.attributes)
        groups = attributes.get("groups", 1)
        (plain,) = run(make_graph(case), case.arrays)
        first, second = case.arrays
        oihw = second if name == "conv2d_weight_grad" else second.transpose(3, 2, 0, 1).copy()
        cls = case.op
        (out,) = cls(None, None, **attributes, weight_layout="OIHW").ref(first, oihw)
        if name == "conv2d_weight_grad":
            np.testing.assert_array_equal(out, plain.transpose(3, 2, 0, 1))
            continue
        np.testing.assert_allclose(out, plain, rtol=1e-5, atol=1e-5)
        back = name == "conv2d_input_grad"
        for layout, w in (("HWIO", second), ("OIHW", oihw)):
            image = attributes.get("x_layout", "NHWC")
            packed = PackConv2d(None, layout, groups, back, image).ref(w)[0]
            given = {**attributes, "weight_layout": "packed", "kernel_size": second.shape[:2]}
            b = Builder()
            x = b.input(types_of((first,))[0])
            value = b.input(types_of((w,))[0])
            (p,) = b.emit(PackConv2d(value, layout, groups, back, image))
            assert p.type.shape == packed.shape and p.type.layout == "panel16"
            (y,) = b.emit(cls(x, p, **given))
            assert y.type.shape == plain.shape
            (again,) = run(b.build([y]), [first, w])
            np.testing.assert_allclose(again, plain, rtol=1e-5, atol=1e-5)


def test_matmul_of_a_packed_operand() -> None:
    rng = np.random.default_rng(0)
    a, w = rng.standard_normal((4, 3)), rng.standard_normal((3, 5))
    for transpose, given in ((False, w), (True, w.T.copy())):
        b = Builder()
        x, v = (b.input(t) for t in types_of((a, given)))
        (p,) = b.emit(Pack(v, transpose))
        assert str(p.type) == "f64[3,5]{panel16}"
        (y,) = b.emit(Matmul(x, p))
        assert str(y.type) == "f64[4,5]"
        np.testing.assert_allclose(run(b.build([y]), [a, given])[0], a @ w, rtol=1e-14)
