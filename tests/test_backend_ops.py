"""Every op through passes, code generation and kernels: each ISA level against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from backend_harness import ISAS, check, close, compiled, flushed, outputs, reference
from op_cases import CASES, HALF, Case, batched, in_f64, in_half, make_graph

from nir.errors import NirError
from nir.ir.dim import evaluate, symbol
from nir.ir.graph import Builder, Graph
from nir.ir.interp import run
from nir.ir.op import OPS
from nir.ir.types import DType, TensorType, bf16, bool_, f16, f32, f64, i32, i64, u8
from nir.ops import Cast
from nir.ops.vjp import vjp
from nir.runtime import Executable

B = symbol("B")
# Their results have a packed layout, which only a kernel can read: `pack` makes and tests them.
PACKED = {"pack", "pack_conv2d"}

RUN = [c for c in CASES if c.op.name not in PACKED]


def by_id(case: Case) -> str:
    return case.id


def differentiable(case: Case) -> bool:
    return case.sample.differentiable and any(x.dtype.kind == "f" for x in case.arrays)


def slopes(graph: Graph, arrays: Any) -> tuple[Graph, list[np.ndarray]]:
    """The vjp of a graph, and its inputs: cotangents that are neither equal nor round."""
    rng = np.random.default_rng(0)
    cts = [
        np.asarray(rng.standard_normal(y.shape)).astype(y.dtype)
        for y in run(graph, arrays)
        if y.dtype.kind == "f"
    ]
    return vjp(graph), [*arrays, *cts]


def test_every_op_has_a_case_that_runs() -> None:
    assert set(OPS) - {c.op.name for c in RUN} == PACKED | {"fused", "banded"}


@pytest.mark.parametrize("case", RUN, ids=by_id)
def test_samples(case: Case) -> None:
    check(make_graph(case), case.arrays)


WIDENED = [
    c
    for c in RUN
    if any(x.dtype == np.float32 for x in c.arrays) and not c.op.name.startswith("random_")
]


@pytest.mark.parametrize("case", WIDENED, ids=by_id)
def test_samples_in_f64(case: Case) -> None:
    wide = in_f64(case)
    check(make_graph(wide), wide.arrays)


@pytest.mark.parametrize("case", [c for c in RUN if differentiable(c)], ids=by_id)
def test_gradients(case: Case) -> None:
    check(*slopes(make_graph(case), case.arrays))


def test_a_symbolic_leading_size() -> None:
    """One compile of each op and of its gradient serves several batch sizes, 0 and 1 among them."""
    seen = set()
    for case in RUN:
        graph = batched(case)
        if graph is None:
            continue
        seen.add(case.op.name)
        check_sizes(graph, case, compiled(graph))
        if differentiable(case):
            graph, _ = slopes(graph, case.arrays)
            check_sizes(graph, case, compiled(graph))
    assert len(seen) > 70


def check_sizes(graph: Graph, case: Case, exe: Executable) -> None:
    """``exe`` agrees with ``graph`` at the sample's size, and at 0, 1 and more where those fit."""
    n = case.arrays[0].shape[0]
    rng = np.random.default_rng(0)
    for size in (n, 0, 1, 2 * n + 1):
        inputs = [
            np.resize(x, (size, *x.shape[1:])) if t.shape[:1] == (B,) else x
            for x, t in zip(case.arrays, graph.input_types, strict=False)
        ]
        try:
            for t in graph.input_types[len(inputs) :]:  # cotangents
                shape = [evaluate(d, {"B": size}) for d in t.shape]
                inputs.append(np.asarray(rng.standard_normal(shape)).astype(t.dtype.numpy))
            expected = reference(graph, inputs)
        except (NirError, ValueError, IndexError):  # this size does not fit this sample
            assert size != n, case.id
            continue
        got = [flushed(z) for z in outputs(exe, inputs)]
        problem = close(graph, inputs, expected, got)
        assert problem is None, f"{case.id} of {graph.name} at {size}: {problem}"


# ---- half types --------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [f16, bf16], ids=str)
@pytest.mark.parametrize("case", [c for c in HALF if c.op.name not in PACKED], ids=by_id)
def test_half_types(case: Case, half: DType) -> None:
    narrow = in_half(case, half)
    check(make_graph(narrow), narrow.arrays)


@pytest.mark.parametrize("half", [f16, bf16], ids=str)
def test_every_number_of_a_half_type_widens(half: DType) -> None:
    x = np.arange(1 << 16, dtype=np.uint16).view(half.numpy)
    b = Builder("widen")
    (y,) = b.emit(Cast(b.input(TensorType(half, (1 << 16,)), "x"), f32))
    for isa in ISAS:
        (got,) = outputs(compiled(b.build([y]), isa), [x])
        expected = x.astype(np.float32)
        number = ~np.isnan(expected)
        np.testing.assert_array_equal(np.isnan(got), ~number)
        np.testing.assert_array_equal(got[number].view(np.int32), expected[number].view(np.int32))


@pytest.mark.parametrize("wide", [f32, f64, i32, i64, u8, bool_], ids=str)
@pytest.mark.parametrize("half", [f16, bf16], ids=str)
def test_rounding_to_a_half_type(half: DType, wide: DType) -> None:
    """Every number of the half type, what lies half way to the next, and just beside that."""
    with np.errstate(all="ignore"):
        numbers = np.arange(1 << 16, dtype=np.uint16).view(half.numpy).astype(np.float64)
        between = (numbers[:-1] + numbers[1:]) / 2
        beside = [between * (1 + s * 2.0**-k) for s in (-1, 1) for k in (20, 30, 50)]
        x = np.concatenate([numbers, between, *beside])
        (x,) = Cast(x=None, dtype=wide).ref(x)
        x = flushed(x)
        if half is bf16 and wide is f64:  # on its way through f32 it meets denormals
            x = np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(0, x), x)
        expected = flushed(Cast(x=None, dtype=half).ref(x)[0])
    b = Builder("narrow")
    (y,) = b.emit(Cast(b.input(TensorType(wide, x.shape), "x"), half))
    for isa in ISAS:
        got = flushed(outputs(compiled(b.build([y]), isa), [x])[0])
        nan = np.isnan(expected.astype(np.float32))
        np.testing.assert_array_equal(np.isnan(got.astype(np.float32)), nan)
        bits, wanted = got.view(np.uint16)[~nan], expected.view(np.uint16)[~nan]
        np.testing.assert_array_equal(bits, wanted, isa)
