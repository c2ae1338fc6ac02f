"""cse and dce."""

from __future__ import annotations

from typing import Any

from pass_harness import CPU, check_pass, graph_of, spec

from nir.frozen import replace
from nir.ir.graph import Builder
from nir.ir.location import Location
from nir.ops import Cond, HostCall, Neg
from nir.ops.expr import Expr
from nir.passes.cse import cse
from nir.passes.dce import dce

F = "f32[B,4]"


def host(x: Expr) -> Expr:
    (out,) = x.emit(HostCall((x.value,), fn=abs, types=(x.type,)))
    return out


def test_equal_ops_merge() -> None:
    before = graph_of(lambda x: x.exp() * x.exp(), F)

    def expected(x: Expr) -> Expr:
        e = x.exp()
        return e * e

    check_pass(cse, before, graph_of(expected, F))


def test_chains_of_equal_ops_merge_in_one_run() -> None:
    after = cse(graph_of(lambda x: (x.exp().sin().cos(), x.exp().sin().cos()), F), CPU)
    assert after.count() == {"cos": 1, "exp": 1, "sin": 1}
    assert after.outputs[0] is after.outputs[1]


def test_commutative_operands_count_in_either_order() -> None:
    after = cse(graph_of(lambda x, y: (x + y, y + x, x - y, y - x), F, F), CPU)
    assert after.count() == {"add": 1, "sub": 2}


def test_attributes_and_types_keep_ops_apart() -> None:
    check_pass(cse, graph_of(lambda x: (x.sum((0,)), x.sum((1,))), F), None)
    # 0 and -0, 1 and True, are different numbers.
    check_pass(cse, graph_of(lambda x: (x + 0.0, x + -0.0), F), None)
    check_pass(cse, graph_of(lambda x: (x.full_like(1.0), x.full_like(True)), F), None)


def test_equal_nans_merge() -> None:
    nan = float("nan")
    after = cse(graph_of(lambda x: (x.full_like(nan), x.full_like(nan)), F), CPU)
    assert after.count() == {"full": 1}


def test_impure_ops_do_not_merge() -> None:
    check_pass(cse, graph_of(lambda x: host(x) + host(x), F), None)


def test_multiple_results_merge() -> None:
    def f(x: Expr, w: Expr, b: Expr) -> list[Expr]:
        return [*x.batch_norm(w, b, eps=1e-5), *x.batch_norm(w, b, eps=1e-5)]

    after = cse(graph_of(f, F, "f32[4]", "f32[4]"), CPU)
    assert after.count() == {"batch_norm": 1}
    assert after.outputs[:3] == after.outputs[3:]


def test_the_op_that_stays_takes_the_lines_of_all() -> None:
    b = Builder("g")
    x = b.input(spec(F))
    lines = [frozenset({Location("model.py", n)}) for n in range(3)]
    values = [b.emit(Neg(x), where)[0] for where in lines]
    (op,) = cse(b.build(values), CPU).nodes
    assert op.locs == lines[0] | lines[1] | lines[2]


def test_dead_ops_go() -> None:
    def f(x: Expr) -> Expr:
        x.exp().sin()
        return -x

    check_pass(dce, graph_of(f, F), graph_of(lambda x: -x, F))
    check_pass(dce, graph_of(lambda x: -x, F), None)


def test_impure_ops_and_what_feeds_them_stay() -> None:
    def f(x: Expr) -> Expr:
        host(x.exp())
        return -x

    check_pass(dce, graph_of(f, F), None)


def test_inputs_stay() -> None:
    after = dce(graph_of(lambda x, y: -x, F, F), CPU)
    assert len(after.inputs) == 2


def _region(*dead: str) -> Any:
    def body(x: Expr) -> Expr:
        for name in dead:
            getattr(x, name)()
        return x.exp() + x.exp()

    return graph_of(body, "f32[4]")


def test_regions_are_cleaned_too() -> None:
    def f(p: Expr, x: Expr) -> Expr:
        op = Cond(p.value, (x.value,), then_body=_region("sin"), else_body=_region())
        (out,) = x.emit(op)
        return out

    g = graph_of(f, "bool[]", "f32[4]")
    (op,) = dce(cse(g, CPU), CPU).nodes
    assert op.then_body.count() == {"add": 1, "exp": 1}  # type: ignore[attr-defined]
    assert op.else_body.count() == {"add": 1, "exp": 1}  # type: ignore[attr-defined]
    assert replace(op).results == g.outputs
