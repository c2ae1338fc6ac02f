"""Every op, through its samples: types, gradients to second order, decompositions, half types."""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from op_cases import CASES, Case, in_f64, make_graph, make_op, symbolic, types_of

from nir.ir.dim import evaluate, symbol
from nir.ir.graph import Builder, Graph
from nir.ir.interp import run
from nir.ir.op import OPS
from nir.ir.types import TensorType, bf16, dtype, f16
from nir.ops.expr import Expr
from nir.ops.vjp import vjp

B = symbol("B")


def by_id(case: Case) -> str:
    return case.id


def test_every_op_has_samples_and_says_what_it_does() -> None:
    # Only a graph that a pass made can tell what a fused op is.
    assert {c.op.name for c in CASES} == set(OPS) - {"fused"}
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


# The regions of their samples have static sizes.
NOT_BATCHED = {"custom_vjp", "cond", "host_call", "scan"}


def batched(case: Case) -> Graph | None:
    """The op with a symbolic leading size on every operand whose leading size is the first's."""
    if not case.arrays or not case.arrays[0].ndim or case.op.name in NOT_BATCHED:
        return None
    n = case.arrays[0].shape[0]
    changed = symbolic(case, B)
    if changed is None or n == 0:
        return None
    types = [
        t.with_(shape=(B, *t.shape[1:])) if t.shape[:1] == (n,) else t
        for t in types_of(case.arrays)
    ]
    try:
        return make_graph(changed, types)
    except (ValueError, TypeError):
        return None


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
    "arg_max", "arg_min", "bit_and", "bit_not", "bit_or", "bit_xor", "constant", "eq", "full",
    "fused", "ge", "gt", "host_call", "iota", "is_nan", "le", "logical_and", "logical_not",
    "logical_or", "logical_xor", "lt", "ne", "pack", "pack_conv2d", "random_bernoulli",
    "random_bits", "random_normal", "random_uniform", "reduce_partial", "shift_left",
    "shift_right", "shift_right_logical",
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
        "attention", "batch_norm", "batch_norm_inference", "cross_entropy", "custom_vjp",
        "layer_norm", "log_softmax", "log_sum_exp", "mean", "random_bernoulli", "random_normal",
        "random_uniform", "softmax",
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

HALF = [
    c for c in CASES
    if any(x.dtype == np.float32 for x in c.arrays)
    and not any(x.dtype == np.float64 for x in c.arrays)
    and not any(isinstance(v, Graph) for v in c.sample.attributes.values())
    and c.op.name not in ("random_bernoulli", "host_call")
]  # fmt: skip


@pytest.mark.parametrize("half", [f16, bf16], ids=str)
@pytest.mark.parametrize("case", HALF, ids=by_id)
def test_half_types_round_once(case: Case, half: Any) -> None:
    """f16 and bf16 in and out, at most a few roundings away from f64 on the same inputs."""

    def narrow(x: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            return x.astype(half.numpy) if x.dtype == np.float32 else x

    low = tuple(map(narrow, case.arrays))
    sample = dataclasses.replace(case.sample, operands=low)
    graph = make_graph(Case(case.op, case.number, sample))
    wide = [x.astype(np.float64) if x.dtype == half.numpy else x for x in low]
    same = Case(case.op, case.number, dataclasses.replace(case.sample, operands=tuple(wide)))
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
