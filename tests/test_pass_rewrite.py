"""The rewrite driver: fixpoint, uses, locations, types, and time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from pass_harness import CPU, check_pass, graph_of

from nir.errors import VerifyError
from nir.ir.graph import Builder, Graph
from nir.ir.location import Location
from nir.ir.op import Op, Value
from nir.ops import Abs, Add, Exp, Full, HostCall, Neg, Relu, Sub
from nir.ops.expr import Expr
from nir.passes.rewrite import Context, rewrite

F = "f32[B,4]"


def double_neg(ctx: Context, op: Neg) -> Sequence[Value] | None:
    match ctx.producer(op.x):
        case Neg(x=x):
            return [x]
    return None


def test_a_graph_without_matches_stays_the_same_object() -> None:
    g = graph_of(lambda x: -x, F)
    assert rewrite(g, {Neg: (double_neg,)}) is g


@pytest.mark.parametrize("length", [2, 3, 100, 101])
def test_fixpoint(length: int) -> None:
    def chain(x: Expr) -> Expr:
        for _ in range(length):
            x = -x
        return x

    after = rewrite(graph_of(chain, F), {Neg: (double_neg,)})
    assert len(after.nodes) == length % 2


def test_new_ops_are_visited_and_stand_before_their_readers() -> None:
    def abs_to_neg(ctx: Context, op: Abs) -> Sequence[Expr]:
        return [ctx.expr(op.x).relu().neg().neg()]

    g = graph_of(lambda x: (x.abs().exp(), x), F)
    after = rewrite(g, {Abs: (abs_to_neg,), Neg: (double_neg,)})
    assert [op.name for op in after.nodes] == ["relu", "exp"]


def test_uses_wake_rules_that_want_a_sole_reader() -> None:
    def fuse(ctx: Context, op: Exp) -> Sequence[Expr] | None:
        inner = ctx.producer(op.x)
        if isinstance(inner, Relu) and ctx.uses(op.x) == 1:
            return [ctx.expr(inner.x).abs()]
        return None

    def drop(ctx: Context, op: Sub) -> Sequence[Value]:
        return [op.lhs]

    def f(x: Expr) -> Any:
        r = x.relu()
        return r.exp(), x - r

    after = rewrite(graph_of(f, F), {Exp: (fuse,), Sub: (drop,)})
    assert [op.name for op in after.nodes] == ["abs"]
    kept = rewrite(graph_of(lambda x: (x.relu().exp(), x.relu()), F), {Exp: (fuse,)})
    assert [op.name for op in kept.nodes] == ["abs", "relu"]


def test_outputs_count_as_uses_and_follow_replacements() -> None:
    g = graph_of(lambda x: (x.neg().neg(), -x), F)
    after = rewrite(g, {Neg: (double_neg,)})
    assert after.outputs[0] is g.inputs[0]
    assert [op.name for op in after.nodes] == ["neg"]


def test_new_ops_carry_the_lines_of_the_ops_they_replace() -> None:
    b = Builder("g")
    x = b.input(graph_of(lambda x: x, F).inputs[0].type)
    first, second = (frozenset({Location("model.py", n)}) for n in (1, 2))
    (y,) = b.emit(Relu(x), first)
    (z,) = b.emit(Exp(y), second)

    def to_abs(ctx: Context, op: Exp) -> Sequence[Expr] | None:
        match ctx.producer(op.x):
            case Relu(x=x):
                return [ctx.expr(x).abs()]
        return None

    (op,) = rewrite(b.build([z]), {Exp: (to_abs,)}).nodes
    assert op.locs == first | second
    # An op that stays, for another reader, keeps its line to itself.
    kept, new = rewrite(b.build([z, y]), {Exp: (to_abs,)}).nodes
    assert {kept.name: kept.locs, new.name: new.locs} == {"relu": first, "abs": second}


def test_ops_that_change_places_keep_their_lines() -> None:
    b = Builder("g")
    x = b.input(graph_of(lambda x: x, F).inputs[0].type)
    first, second = (frozenset({Location("model.py", n)}) for n in (1, 2))
    (y,) = b.emit(Relu(x), first)
    (z,) = b.emit(Exp(y), second)

    def swap(ctx: Context, op: Exp) -> Sequence[Expr] | None:
        match ctx.producer(op.x):
            case Relu(x=x):
                return [ctx.expr(x).exp().relu()]
        return None

    after = rewrite(b.build([z]), {Exp: (swap,)})
    assert [(op.name, op.locs) for op in after.nodes] == [("exp", second), ("relu", first)]


def test_a_rule_that_changes_a_type_is_refused() -> None:
    def bad(ctx: Context, op: Exp) -> Sequence[Expr]:
        return [ctx.expr(op.x).sum((1,))]

    with pytest.raises(
        VerifyError, match=r"bad changed the type of exp .*\n  at .*test_pass_rewrite"
    ):
        rewrite(graph_of(lambda x: x.exp(), F), {Exp: (bad,)})


def test_rules_that_undo_each_other_are_refused() -> None:
    def there(ctx: Context, op: Exp) -> Sequence[Expr]:
        return [ctx.expr(op.x).relu()]

    def back(ctx: Context, op: Relu) -> Sequence[Expr]:
        return [ctx.expr(op.x).exp()]

    with pytest.raises(VerifyError, match="rules do not settle"):
        rewrite(graph_of(lambda x: x.exp(), F), {Exp: (there,), Relu: (back,)})


def test_a_rule_that_returns_its_own_result_is_refused() -> None:
    with pytest.raises(VerifyError, match="by itself"):
        rewrite(graph_of(lambda x: x.exp(), F), {Exp: (lambda ctx, op: op.results,)})


def test_what_a_declining_rule_emitted_is_forgotten() -> None:
    def emits(ctx: Context, op: Exp) -> None:
        ctx.expr(op.x).relu()

    g = graph_of(lambda x: x.exp(), F)
    assert rewrite(g, {Exp: (emits,)}) is g


def test_impure_ops_are_not_dropped() -> None:
    def to_zero(ctx: Context, op: Add) -> Sequence[Value]:
        return [ctx.full(0.0, op.result.type)]

    def f(x: Expr) -> Expr:
        (called,) = x.emit(HostCall((x.value,), fn=abs, types=(x.type,)))
        return x + called

    after = rewrite(graph_of(f, F), {Add: (to_zero,)})
    assert sorted(op.name for op in after.nodes) == ["full", "host_call"]


def _visits(length: int) -> int:
    """Rule calls on a chain of alternating ops in which everything is rewritten."""
    count = 0

    def counting(ctx: Context, op: Op) -> Sequence[Value] | None:
        nonlocal count
        count += 1
        return double_neg(ctx, op)  # type: ignore[arg-type]

    def chain(x: Expr) -> Expr:
        for i in range(length):
            x = -x if i % 3 else x.relu()
        return x

    rewrite(graph_of(chain, F), {Neg: (counting,), Relu: (counting_none,)})
    return count


def counting_none(ctx: Context, op: Op) -> None:
    return None


def test_work_grows_linearly() -> None:
    small, large = _visits(500), _visits(4000)
    assert large <= 8.5 * small


def test_many_readers_of_one_value() -> None:
    def f(x: Expr) -> list[Expr]:
        y = x.neg().neg()
        return [y.exp() for _ in range(2000)]

    after = rewrite(graph_of(f, F), {Neg: (double_neg,)})
    assert after.count() == {"exp": 2000}


def _sum(graph: Graph, target: Any) -> Graph:
    def fold_add(ctx: Context, op: Add) -> Sequence[Value] | None:
        a, b = ctx.scalar(op.lhs), ctx.scalar(op.rhs)
        return None if a is None or b is None else [ctx.full(a + b, op.result.type)]

    return rewrite(graph, {Add: (fold_add,)})


def test_scalars_are_seen_through_full() -> None:
    before = graph_of(lambda x: x * (x.full_like(1.0) + 2.0), F)
    after = check_pass(_sum, before, graph_of(lambda x: x * x.full_like(3.0), F), CPU)
    assert [op.value for op in after.nodes if isinstance(op, Full)] == [3.0]
