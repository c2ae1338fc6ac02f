"""The interpreter: binding of inputs, checked results, and plans that destroy values."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from op_cases import CASES, Case, make_graph

from nir.errors import DTypeError, IndexRangeError, NirError, ShapeError, VerifyError
from nir.ir.bind import bind_shapes
from nir.ir.dim import floordiv, symbol
from nir.ir.graph import Builder, Graph, MemoryPlan, Placement
from nir.ir.interp import random_inputs, run
from nir.ir.location import Location
from nir.ir.op import OPS, Op, Sample, Value
from nir.ir.types import TensorType, bool_, f32, i64
from nir.ops import Add, Div, Exp, Full, Iota, Log, Mul, Neg, Reshape, Scan, Sum, Take, Transpose

B, S = symbol("B"), symbol("S")


def t(*shape: Any) -> TensorType:
    return TensorType(f32, shape)


def at(line: int) -> frozenset[Location]:
    return frozenset({Location("model.py", line)})


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_every_sample_runs_and_gives_what_its_type_says(case: Case) -> None:
    graph = make_graph(case)
    out = run(graph, case.arrays)
    assert [x.shape for x in out] == [v.type.shape for v in graph.outputs]


# ---- binding -----------------------------------------------------------------------------------


def test_symbols_are_found_from_any_axis_that_determines_them() -> None:
    types = [t(floordiv(B, 2), 2 * S + 1), t(B + S, 3), t(B)]
    assert bind_shapes(types, [(3, 9), (11, 3), (7,)]) == {"B": 7, "S": 4}
    assert bind_shapes([t(B * S)], [(12,)], env={"B": 3}) == {"B": 3, "S": 4}


@pytest.mark.parametrize(
    "types, shapes, message",
    [
        ([t(B, 4)], [(3, 5)], "input %0: axis 1: expected 4, got 5 (f32[B,4] from [3, 5])"),
        ([t(B, 4)], [(3,)], "input %0: expected 2 axes (f32[B,4]), got 1 ([3])"),
        (
            [t(B), t(B, 2)],
            [(3,), (4, 2)],
            "input %1: axis 0: expected B = 3 (B=3), got 4 (f32[B,2] from [4, 2])",
        ),
        (
            [t(2 * B + 1)],
            [(4,)],
            "input %0: axis 0: expected 2*B+1 for some B >= 0, got 4 (f32[2*B+1] from [4])",
        ),
        (
            [t(B + 5)],
            [(4,)],
            "input %0: axis 0: expected B+5 for some B >= 0, got 4 (f32[B+5] from [4])",
        ),
        ([t(B * S)], [(4,)], "input %0: B, S cannot be found from the inputs' shapes (f32[B*S])"),
    ],
)
def test_shapes_that_do_not_fit(
    types: Sequence[TensorType], shapes: Sequence[tuple[int, ...]], message: str
) -> None:
    with pytest.raises(ShapeError) as caught:
        bind_shapes(types, shapes)
    assert str(caught.value) == message


def test_number_and_dtype_of_inputs() -> None:
    b = Builder("two")
    b.input(t(B), "x")
    b.input(TensorType(i64, (B,)), "y")
    graph = b.build(b.inputs)
    x = np.zeros(3, np.float32)
    with pytest.raises(ShapeError, match=r"^@two: expected 2 inputs \(%x, %y\), got 1$"):
        run(graph, [x])
    with pytest.raises(DTypeError, match=r"^input %y: expected i64\[B\], got float32\[3\]$"):
        run(graph, [x, x])


# ---- running -----------------------------------------------------------------------------------


def test_symbols_in_attributes_and_regions() -> None:
    body = Builder("body")
    carry = body.input(t(), "carry")
    # S is no size of the body's own inputs.
    (iota,) = body.emit(Iota((S,), 0, f32))
    (total,) = body.emit(Sum(iota, (0,)))
    (new,) = body.emit(Add(carry, total))
    region = body.build([new])
    b = Builder()
    x = b.input(t(B, S), "x")
    (start,) = b.emit(Full(B * 2, (), f32))
    (out,) = b.emit(Scan((start,), (), (), region, B, False))
    (size,) = b.emit(Full(B * S, (S,), f32))
    graph = b.build([out, size, x])
    got = run(graph, [np.zeros((3, 5), np.float32)])
    assert got[0] == 6 + 3 * 10
    np.testing.assert_array_equal(got[1], np.full(5, 15, np.float32))


def test_no_warning_escapes() -> None:
    b = Builder()
    x = b.input(t(B), "x")
    (big,) = b.emit(Exp(x))
    (log,) = b.emit(Log(x))
    (ratio,) = b.emit(Div(big, log))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(b.build([ratio]), [np.array([1e30, -1.0, 0.0, np.nan], np.float32)])


def test_errors_name_the_users_line() -> None:
    b = Builder()
    x, i = b.input(t(4), "x"), b.input(TensorType(i64, (2,)), "i")
    (y,) = b.emit(Take(x, i, 0), at(12))
    with pytest.raises(IndexRangeError) as caught:
        run(b.build([y]), [np.zeros(4, np.float32), np.array([0, 9])])
    assert str(caught.value.location) == "model.py:12"


@pytest.fixture
def toy_ops() -> Any:
    """Ops for one test: the registry forgets them afterwards."""
    before = dict(OPS)
    yield
    OPS.clear()
    OPS.update(before)


def test_a_reference_that_breaks_its_type_rule_is_named(toy_ops: None) -> None:
    class Wrong(Op):
        """Says one thing and does another."""

        x: Value

        def infer(self) -> tuple[TensorType, ...]:
            return (self.x.type,)

        def ref(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
            return (x.astype(np.float64)[:1],)

        def grad(self, operands: Any, results: Any, cotangents: Any) -> Any:
            return (None,)

        @classmethod
        def samples(cls) -> Sequence[Sample]:
            return ()

    b = Builder()
    (y,) = b.emit(Wrong(b.input(t(B), "x")), at(3))
    with pytest.raises(VerifyError) as caught:
        run(b.build([y]), [np.zeros(4, np.float32)])
    assert str(caught.value) == (
        "wrong: the type rule gives (float32[4]), the reference (float64[1])\n  at model.py:3"
    )


def test_trace_sees_every_op() -> None:
    b = Builder()
    x = b.input(t(B), "x")
    (y,) = b.emit(Neg(x))
    (z,) = b.emit(Mul(y, y))
    seen: list[str] = []
    run(
        b.build([z]),
        [np.array([2.0, 3.0], np.float32)],
        trace=lambda op, operands, results: seen.append(f"{op.name} {operands} {results}"),
    )
    assert len(seen) == 2
    assert seen[0].startswith("neg [array([2., 3.]") and "array([4., 9.]" in seen[1]


def test_random_inputs() -> None:
    b = Builder()
    for kind in (f32, i64, bool_):
        b.input(TensorType(kind, (B, S)))
    graph = b.build(b.inputs)
    x, i, p = random_inputs(graph, 3, {"S": 7})
    assert x.shape == i.shape == p.shape == (3, 7)
    assert i.min() >= 0 and i.max() <= 2 and p.dtype == np.bool_
    np.testing.assert_array_equal(x, random_inputs(graph, 3, {"S": 7})[0])


# ---- the arena ---------------------------------------------------------------------------------

_Placer = dict[str, Placement]


def planned(places: dict[int, Placement], arena: Any = 1 << 16, **plan: Any) -> Graph:
    """%0 = exp(x), %1 = neg(%0), %2 = transpose(%1), %3 = reshape(%2), %4 = mul(%3, x)."""
    b = Builder("planned")
    x = b.input(t(B, B), "x")
    (e,) = b.emit(Exp(x), at(1))
    (n,) = b.emit(Neg(e), at(2))
    (tr,) = b.emit(Transpose(n, (1, 0)), at(3))
    (r,) = b.emit(Reshape(tr, (B, B)), at(4))
    (m,) = b.emit(Mul(r, x), at(5))
    graph = b.build([m], donate=plan.get("donate", ()))
    arena_at = {i: Placement("arena", 4096 * i) for i in range(4)} | {4: Placement("output")}
    numbered = {1 + i: p for i, p in (arena_at | places).items()}
    return graph.with_(plan=MemoryPlan(arena, numbered, plan.get("donate", ())))


def arena_run(graph: Graph, n: int = 5) -> None:
    (x,) = random_inputs(graph, 0, {"B": n})
    plain = run(graph.with_(plan=None), [x])
    kept = x.copy()
    np.testing.assert_array_equal(run(graph, [x], arena=True)[0], plain[0])
    np.testing.assert_array_equal(x, kept)  # the caller's array is never written


@pytest.mark.parametrize(
    "places",
    [
        {},
        {1: Placement("arena", 0)},  # neg over exp
        {3: Placement("alias", 0, 3)},  # the reshape is a view
        {3: Placement("arena", 8192)},  # the same, by its offset
        {1: Placement("output"), 3: Placement("output")},  # in the output's storage, in turn
        {0: Placement("arena", 128 * B), 1: Placement("arena", 128 * B)},
    ],
)
@pytest.mark.parametrize("n", [0, 1, 5, 16])
def test_sound_plans_run(places: dict[int, Placement], n: int) -> None:
    arena_run(planned(places), n)


@pytest.mark.parametrize(
    "places, message, line",
    [
        (
            {2: Placement("arena", 4096)},
            "memory plan: %2 (transpose at model.py:3): it is written over %1 (neg at model.py:2), "
            "which transpose still reads",
            "model.py:3",
        ),
        (
            {1: Placement("arena", 64)},
            "memory plan: %1 (neg at model.py:2): it is written over %0 (exp at model.py:1), "
            "which neg still reads",
            "model.py:2",
        ),
        (
            {3: Placement("arena", 1 << 16)},
            "memory plan: %3 (reshape at model.py:4): its place ends at byte 65636 of 65536",
            "model.py:4",
        ),
    ],
)
def test_unsound_plans_are_named(places: dict[int, Placement], message: str, line: str) -> None:
    with pytest.raises(VerifyError) as caught:
        arena_run(planned(places))
    assert (caught.value.message, caught.value.location) == (message, line)


def test_a_value_overwritten_before_it_is_read() -> None:
    b = Builder("overlap")
    x = b.input(t(B), "x")
    (e,) = b.emit(Exp(x), at(1))
    (n,) = b.emit(Neg(x), at(2))
    (m,) = b.emit(Mul(e, n), at(3))
    places = {1: Placement("arena", 0), 2: Placement("arena", 4 * B - 8), 3: Placement("output")}
    graph = b.build([m]).with_(plan=MemoryPlan(1024, places))
    run(graph, [np.zeros(16, np.float32)], arena=True)  # 4*16-8 is rounded up to 64
    with pytest.raises(VerifyError) as caught:
        run(graph, [np.zeros(17, np.float32)], arena=True)
    assert str(caught.value) == (
        "%0 (exp at model.py:1) is overwritten by %1 (neg at model.py:2) before mul reads it\n"
        "  at model.py:3"
    )


def test_a_donated_input_that_is_read_too_late() -> None:
    graph = planned({0: Placement("output"), 1: Placement("output")}, donate=[(0, 0)])
    with pytest.raises(VerifyError, match=r"^input %x is overwritten by %1 \(neg"):
        arena_run(graph)
    arena_run(planned({}, donate=[(0, 0)]))


def test_a_graph_without_a_plan_has_no_arena() -> None:
    graph = planned({}).with_(plan=None)
    with pytest.raises(NirError, match="@planned has no memory plan"):
        run(graph, random_inputs(graph), arena=True)
