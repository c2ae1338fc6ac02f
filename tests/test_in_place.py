"""Results written over operands: which an op says it takes over, and who finds a wrong claim."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from backend_harness import check, compiled, outputs
from codegen_harness import ISAS, fused, reference, run_all, same_bits, takeovers
from pass_harness import CPU, graph_of, random_inputs

from nir.errors import VerifyError
from nir.frozen import replace
from nir.ir.graph import Builder, Graph
from nir.ir.interp import run
from nir.ir.location import Location
from nir.ir.types import f16, f32, i32
from nir.ir.verify import verify
from nir.ops import Add, CumSum, Exp, Sum
from nir.ops.expr import Expr
from nir.ops.fused import Fused
from nir.passes.memory import plan_memory
from nir.passes.pipeline import run_pipeline
from nir.runtime import get_num_threads, set_num_threads

F = "f32[B,40]"
AT = frozenset({Location("model.py", 1)})


def wide(v: Expr, like: Expr) -> Expr:
    return v.broadcast(like.shape, (0,))


def _exp(x: Expr) -> Expr:
    return (x - wide(x.max((1,)), x)).exp()


def _softmax(x: Expr) -> Expr:
    e = _exp(x)
    return e / wide(e.sum((1,)), e)


def _softmax_grad(y: Expr, dy: Expr) -> Expr:
    return (dy - wide((dy * y).sum((1,)), y)) * y


def _norm(x: Expr, scale: Expr) -> Expr:
    d = x - wide(x.sum((1,)) * 0.025, x)
    y = d * wide((d * d).sum((1,)).rsqrt(), x)
    return y * scale.broadcast(x.shape, (1,))


def _norm_and_early(x: Expr) -> tuple[Expr, Expr]:
    """The second result is written a pass before the first, which reads x again."""
    d = x - wide(x.sum((1,)), x)
    return d * wide((d * d).sum((1,)), x), d


# Row regions, and the (operand, result) pairs that may share memory, by number.
ROWS: dict[str, tuple[list[str], Callable[..., Any], set[tuple[int, int]]]] = {
    "softmax": ([F], _softmax, {(0, 0)}),
    "its gradient": ([F, F], _softmax_grad, {(0, 0), (1, 0)}),
    "norm": ([F, "f32[40]"], _norm, {(0, 0)}),
    "several axes": (
        ["f32[B,3,20]"],
        lambda x: x - x.sum((1, 2)).broadcast(x.shape, (0,)),
        {(0, 0)},
    ),
    "exponentials and their sums": ([F], lambda x: (_exp(x), _exp(x).sum((1,))), {(0, 0)}),
    "a result of an earlier pass": ([F], _norm_and_early, {(0, 0)}),
    "a copy before the last pass": (
        [F],
        lambda x: (x.relu(), x - wide(x.sum((1,)), x)),
        {(0, 1)},
    ),
    "a sum of another pass": (
        [F],
        lambda x: (x * 2.0 - wide(x.sum((1,)), x), (x - wide(x.max((1,)), x)).exp().sum((1,))),
        {(0, 0)},
    ),
    "a sum of a later pass": (
        [F],
        lambda x: (x * 2.0, (x - wide(x.max((1,)), x)).exp().sum((1,))),
        set(),
    ),
    "flipped rows": ([F], lambda x: x.flip((0,)) - wide(x.sum((1,)), x), set()),
    "flipped columns": ([F], lambda x: x.flip((1,)) - wide(x.sum((1,)), x), set()),
    "the first element of the row": (
        ["f32[4,40]"],
        lambda x: x - wide(x.max((1,)) + x.slice((0, 0), (4, 1), (1, 1)).reshape((4,)), x),
        set(),
    ),
    "sums alone": ([F], lambda x: x.sum((1,)), set()),
    "a vector": (
        ["f32[40]", F],
        lambda v, x: v.broadcast(x.shape, (1,)) * wide(x.sum((1,)), x),
        {(1, 0)},
    ),
    "a value for each row": (
        ["f32[B]", "f32[B,1]"],
        lambda v, x: wide(v, x) * wide(x.sum((1,)), x),
        {(1, 0)},
    ),
    "halves": (["f16[B,40]"], lambda x: _exp(x.cast(f32)).cast(f16), {(0, 0)}),
    "halves to floats": (["f16[B,40]"], lambda x: _exp(x.cast(f32)), set()),
    "floats to integers": ([F], lambda x: (x - wide(x.max((1,)), x)).cast(i32), {(0, 0)}),
    "one column": (["f32[B,1]"], _softmax, {(0, 0)}),
    "columns in registers": (["f32[B,17]"], _softmax, {(0, 0)}),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_what_row_regions_take_over(name: str) -> None:
    """The claim, and each claimed pair in one memory on every ISA level, whole and in pieces."""
    types, fn, expected = ROWS[name]
    region = fused("row", types, fn)
    found = {(i, k) for over in takeovers(region) for k, i in over.items()}
    assert found == expected
    rng = np.random.default_rng(3)
    for b in (0, 1, 5):
        shapes = [
            tuple(d if isinstance(d, int) else b for d in v.type.shape) for v in region.inputs
        ]
        operands = [
            rng.uniform(-1.5, 1.5, s).astype(v.type.dtype.numpy)
            for s, v in zip(shapes, region.inputs, strict=True)
        ]
        for isa, got in run_all(region, operands, {"B": b}).items():
            for mine, want in zip(got, reference(region, operands, {"B": b}), strict=True):
                np.testing.assert_allclose(
                    mine, want, 1e-2 if mine.dtype == np.float16 else 1e-5, 1e-5, err_msg=isa
                )


def test_an_operand_that_is_read_twice_is_not_taken_over() -> None:
    region = fused("row", [F, F], lambda x, y: x - wide(y.sum((1,)), y))
    x, y = region.inputs
    results = region.body.outputs
    both = ((x, results[0]), (y, results[0]))
    assert replace(region, results=results).takes_over() == both
    assert replace(region, inputs=(x, x), results=results).takes_over() == ()


# ---- whole programs ----------------------------------------------------------------------------


def program(name: str) -> Graph:
    """The region of that name on values that lie in the arena and die there, and its readers."""
    types, fn, _ = ROWS[name]
    region = fused("row", types, fn)
    b = Builder("g")
    inputs = [b.input(v.type) for v in region.inputs]
    read = [b.emit(CumSum(v, 0), AT)[0] for v in inputs]
    results = b.emit(Fused(tuple(read), region.body, "row"), AT)
    return b.build([b.emit(CumSum(r, 0), AT)[0] for r in results])


def shared(planned: Graph) -> list[tuple[int, int]]:
    """(operand, result) of row regions that lie in one place."""
    assert planned.plan is not None
    place = {v: planned.plan.placements.get(n) for v, n in planned.number.items()}
    return [
        (i, k)
        for op in planned.nodes
        if isinstance(op, Fused) and op.form == "row"
        for k, r in enumerate(op.results)
        for i, x in enumerate(op.operands)
        if place[x] is not None and place[x] == place[r]
    ]


@pytest.mark.parametrize("name", ROWS)
def test_programs_share_what_they_may(name: str) -> None:
    graph, expected = program(name), ROWS[name][2]
    planned = verify(plan_memory(graph, CPU))
    assert set(shared(planned)) <= expected
    assert bool(shared(planned)) == bool(expected)
    for sizes in ({"B": 0}, {"B": 1}, {"B": 9}):
        inputs = random_inputs(graph, 4, sizes)
        for a, b in zip(run(planned, inputs, arena=True), run(graph, inputs), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("fn", [_softmax, lambda x: _norm(x, x.max((0,))), _norm_and_early])
def test_programs_mean_the_same(fn: Callable[..., Any]) -> None:
    def make(x: Expr) -> list[Expr]:
        out = fn(x.cum_sum(0))
        return [y.cum_sum(0) for y in (out if isinstance(out, tuple) else (out,))]

    graph = graph_of(make, F)
    assert shared(run_pipeline(graph, CPU))
    check(graph, random_inputs(graph, 4, {"B": 9}))


def test_two_matrices_become_one() -> None:
    """A softmax between products keeps one matrix of scores, and gives back what it read."""
    fn = lambda x, w: (x.cum_sum(0).matmul(w).cum_sum(1)).softmax(1).cum_sum(1)  # noqa: E731
    graph = graph_of(fn, "f32[64,16]", "f32[16,1000]")
    planned = run_pipeline(graph, CPU)
    assert planned.plan is not None
    assert planned.plan.arena < 2.2 * 64 * 1000 * 4


def test_any_number_of_threads_gives_the_same_bits() -> None:
    graph = graph_of(lambda y, dy: _softmax_grad(y.cum_sum(0), dy), "f32[301,700]", "f32[301,700]")
    inputs = random_inputs(graph, 5)
    before = get_num_threads()
    try:
        found = []
        for isa in ISAS:
            exe = compiled(graph, isa)
            for threads in (1, 2, 3):
                set_num_threads(threads)
                found.append(outputs(exe, inputs))
    finally:
        set_num_threads(before)
    for other in found[1:]:
        same_bits(found[0], other, "threads or ISA levels")


def test_a_view_of_the_operand_keeps_its_place() -> None:
    """x dies here, but is read through another shape, at other elements, as well."""

    def fn(x: Expr) -> Expr:
        y = x.cum_sum(0)
        turned = y.reshape((40, 8)).slice((0, 0), (8, 1), (1, 1)).reshape((8,))
        return (y + wide(turned, y)).cum_sum(0)

    graph = graph_of(fn, "f32[8,40]")
    inputs = random_inputs(graph, 6)
    planned = verify(run_pipeline(graph, CPU))
    run(planned, inputs, arena=True)
    check(graph, inputs)


# ---- wrong claims and wrong plans --------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "a copy before the last pass",
        "a result of an earlier pass",
        "a sum of a later pass",
        "flipped rows",
        "flipped columns",
        "the first element of the row",
    ],
)
def test_the_arena_finds_a_wrong_claim(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were every pair of one size claimed, the interpreter would name what is destroyed."""
    graph, expected = program(name), ROWS[name][2]
    row = next(op for op in graph.nodes if isinstance(op, Fused))
    pairs = [(i, k) for i in range(len(row.operands)) for k in range(len(row.results))]
    wrong = [
        (row.operands[i], row.results[k])
        for i, k in pairs
        if (i, k) not in expected and row.operands[i].type == row.results[k].type
    ]
    assert wrong
    for pair in wrong:
        claim = {row: (pair,)}
        monkeypatch.setattr(Fused, "takes_over", lambda op, claim=claim: claim.get(op, ()))
        planned = verify(plan_memory(graph, CPU))
        assert shared(planned)
        with pytest.raises(VerifyError, match="is written over"):
            run(planned, random_inputs(graph, 7, {"B": 6}), arena=True)


def test_the_verifier_names_what_an_op_does_not_take_over() -> None:
    graph = graph_of(lambda x: x.cum_sum(0).flip((0,)).tanh().cum_sum(0), "f32[8,40]")
    planned = run_pipeline(graph, CPU)
    assert planned.plan is not None
    first, second, _ = planned.nodes
    number = planned.number
    place = planned.plan.placements[number[first.result]]
    assert place.kind == "arena"
    moved = {**planned.plan.placements, number[second.result]: place}
    bad = planned.with_(plan=replace(planned.plan, placements=moved))
    verify(planned)
    with pytest.raises(VerifyError, match="its result takes bytes 0 to 1280 of arena"):
        verify(bad)


def test_ops_of_one_element_take_operands_over() -> None:
    graph = graph_of(lambda x, y: (x + y).exp() + x.sum((0,)).broadcast(x.shape, (1,)), F, F)
    by_name = {op.name: op for op in graph.nodes if isinstance(op, Add | Exp | Sum)}
    exp, total = by_name["exp"], by_name["sum"]
    assert exp.takes_over() == ((exp.operands[0], exp.result),)
    assert total.takes_over() == ()
