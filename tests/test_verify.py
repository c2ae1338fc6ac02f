"""The verifier names the op, its line and its text, for each way in which a graph can be broken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from op_cases import CASES, Case, make_graph
from pass_harness import CPU, resnet9_step

from nir.errors import VerifyError
from nir.frozen import replace
from nir.ir.dim import symbol
from nir.ir.graph import Builder, Graph, MemoryPlan, Placement
from nir.ir.location import Location
from nir.ir.op import Value
from nir.ir.types import TensorType, f32
from nir.ir.verify import verify
from nir.ops import Add, Exp, Neg, Reshape, Scan, Sum
from nir.passes.pipeline import run_pipeline

B = symbol("B")


def t(*shape: Any) -> TensorType:
    return TensorType(f32, shape)


def at(line: int) -> frozenset[Location]:
    return frozenset({Location("model.py", line)})


def good() -> Graph:
    b = Builder("g")
    x = b.input(t(B, 4), "x")
    (e,) = b.emit(Exp(x), at(1))
    (n,) = b.emit(Neg(e), at(2))
    (s,) = b.emit(Add(n, x), at(3))
    return b.build([s])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_every_sample_of_every_op_is_sound(case: Case) -> None:
    verify(make_graph(case))


def test_a_planned_training_step_is_sound() -> None:
    step = resnet9_step()
    assert verify(step) is step
    verify(run_pipeline(step, CPU))


def with_node(graph: Graph, i: int, **changes: Any) -> Graph:
    nodes = list(graph.nodes)
    nodes[i] = replace(nodes[i], **changes)
    return graph.with_(nodes=nodes)


def _swap(graph: Graph) -> Graph:
    first, second, *rest = graph.nodes
    return graph.with_(nodes=(second, first, *rest))


_BROKEN: list[tuple[str, Callable[[Graph], Graph], str, str | None]] = [
    (
        "use before definition",
        _swap,
        "@g: neg: operand %1: f32[B,4] is not defined before it is used\n"
        "  %0 = neg(%1) : f32[B,4]",
        "model.py:2",
    ),
    (
        "a stranger",
        lambda g: with_node(g, 2, rhs=Value(77, t(B, 4))),
        "@g: add: operand %77: f32[B,4] is not defined before it is used\n"
        '  %2 = add(%1, %"?77") : f32[B,4]',
        "model.py:3",
    ),
    (
        "wrong result type",
        lambda g: with_node(g, 1, results=(Value(50, t(B, 5)),)),
        "@g: neg: the results are (f32[B,5]), the type rule gives (f32[B,4])\n"
        "  %1 = neg(%0) : f32[B,5]",
        "model.py:2",
    ),
    (
        "too many results",
        lambda g: with_node(g, 0, results=(g.nodes[0].result, Value(50, t(B, 4)))),
        "@g: exp: the results are (f32[B,4], f32[B,4]), the type rule gives (f32[B,4])\n"
        "  %0, %1 = exp(%x) : (f32[B,4], f32[B,4])",
        "model.py:1",
    ),
    (
        "operands that do not fit",
        lambda g: Graph("g", (g.inputs[0], v := Value(9, t(3))), [replace(g.nodes[2], lhs=v)],
                        g.outputs, ("x", "v")),
        "@g: add: expected operands of one shape, got f32[3], f32[B,4]\n"
        "  %0 = add(%v, %x) : f32[B,4]",
        "model.py:3",
    ),
    (
        "no location",
        lambda g: with_node(g, 1, locs=frozenset()),
        "@g: neg: it has no location\n  %1 = neg(%0) : f32[B,4]",
        None,
    ),
    (
        "an id twice",
        lambda g: with_node(g, 2, results=(Value(g.inputs[0].id, t(B, 4)),)),
        "@g: add: result %0: f32[B,4] is defined before\n  %2 = add(%1, %x) : f32[B,4]",
        "model.py:3",
    ),
    (
        "a result twice",
        lambda g: with_node(g, 1, results=g.nodes[0].results),
        "@g: neg: result %1: f32[B,4] is defined before\n  %1 = neg(%1) : f32[B,4]",
        "model.py:2",
    ),
    (
        "an undefined output",
        lambda g: g.with_(outputs=(Value(33, t(2)),)),
        "@g: output 0 (%33: f32[2]) is not defined",
        None,
    ),
    (
        "an input twice",
        lambda g: g.with_(inputs=g.inputs * 2, input_names=("x", "y")),
        "@g: input %0: f32[B,4] occurs twice",
        None,
    ),
    (
        "names",
        lambda g: g.with_(input_names=("x", "y")),
        "@g: expected 1 input names, got 2",
        None,
    ),
    (
        "donation",
        lambda g: g.with_(donate=((1, 0),)),
        "@g: donate[1->0] of 1 inputs and 1 outputs",
        None,
    ),
]  # fmt: skip


@pytest.mark.parametrize("_, mutate, message, line", _BROKEN, ids=[b[0] for b in _BROKEN])
def test_broken_graphs(
    _: str, mutate: Callable[[Graph], Graph], message: str, line: str | None
) -> None:
    verify(good())
    with pytest.raises(VerifyError) as caught:
        verify(mutate(good()))
    assert (caught.value.message, caught.value.location) == (message, line)


def test_regions_are_verified() -> None:
    body = Builder("body")
    c = body.input(t(4), "c")
    (d,) = body.emit(Neg(c), at(7))
    region = body.build([d])
    b = Builder("g")
    (out,) = b.emit(Scan((b.input(t(4), "x"),), (), (), region, 3, False), at(8))
    graph = b.build([out])
    verify(graph)
    broken = region.with_(nodes=[replace(region.nodes[0], locs=frozenset())])
    with pytest.raises(VerifyError) as caught:
        verify(with_node(graph, 0, body=broken))
    assert str(caught.value) == (
        "@g scan.body @body: neg: it has no location\n  %0 = neg(%c) : f32[4]"
    )


# ---- memory plans ------------------------------------------------------------------------------


def planned(places: dict[int, Placement | None], arena: Any = 4096, reuse: Any = ()) -> Graph:
    """exp, neg over it, a view of that, a sum, and the sum added to the exp."""
    b = Builder("g")
    x = b.input(t(B, 4), "x")
    (e,) = b.emit(Exp(x), at(1))
    (n,) = b.emit(Neg(e), at(2))
    (v,) = b.emit(Reshape(n, (4 * B,)), at(3))
    (s,) = b.emit(Sum(v, (0,)), at(4))
    (r,) = b.emit(Sum(e, (0,)), at(5))
    (o,) = b.emit(Reshape(r, (2, 2)), at(6))
    graph = b.build([s, o])
    usual: dict[int, Placement | None] = {
        1: Placement("arena", 0),
        2: Placement("arena", 16 * B),
        3: Placement("alias", 0, 2),
        4: Placement("output", 0, 0),
        5: Placement("output", 0, 1),
        6: Placement("output", 0, 1),
    }
    found = {k: p for k, p in {**usual, **places}.items() if p is not None}
    return graph.with_(plan=MemoryPlan(arena, found, reuse))


@pytest.mark.parametrize(
    "places, sizes",
    [
        ({}, None),
        ({3: Placement("arena", 16 * B)}, None),  # a view, by its offset
        ({2: Placement("arena", 0)}, {"B": 0}),  # nothing overlaps where there is nothing
    ],
)
def test_sound_plans(places: dict[int, Placement | None], sizes: dict[str, int] | None) -> None:
    verify(planned(places, 1 << 20), None if sizes is None else [sizes])


@pytest.mark.parametrize(
    "graph, message, line",
    [
        (
            planned({2: Placement("arena", 0)}),
            "@g: memory plan at B=1: neg: its result takes bytes 0 to 16 of arena, in which %0 "
            "(0 to 16) lives until node 4\n  %1 = neg(%0) : f32[B,4] in arena[0]",
            "model.py:2",
        ),
        (
            planned({2: Placement("arena", 8 * B)}),
            "@g: memory plan at B=7: neg: its result takes bytes 64 to 176 of arena, in which %0 "
            "(0 to 112) lives until node 4\n  %1 = neg(%0) : f32[B,4] in arena[8*B]",
            "model.py:2",
        ),
        (
            planned({2: None, 3: Placement("arena", 2048)}),
            "@g: memory plan at B=0: neg: its result has no place\n  %1 = neg(%0) : f32[B,4]",
            "model.py:2",
        ),
        (
            planned({}, arena=64),
            "@g: memory plan at B=1: neg: arena[16*B] ends at byte 80 of 64\n"
            "  %1 = neg(%0) : f32[B,4] in arena[16*B]",
            "model.py:2",
        ),
        (
            planned({2: Placement("alias", 0, 5)}),
            "@g: memory plan at B=0: neg: there is no place alias[%5]\n"
            "  %1 = neg(%0) : f32[B,4] in alias[%4]",
            "model.py:2",
        ),
        (
            planned({1: Placement("alias", 0, 0)}),
            "@g: memory plan at B=1: exp: its result takes bytes 0 to 16 of input, in which %x "
            "(0 to 16) lives until the end\n  %0 = exp(%x) : f32[B,4] in alias[%x]",
            "model.py:1",
        ),
        (
            planned({4: Placement("arena", 2048)}),
            "@g: memory plan at B=0: output 0 (%3) is not in output[0]",
            None,
        ),
        (
            planned({4: Placement("output", 0, 1), 5: Placement("output", 0, 1)}),
            "@g: memory plan at B=0: output 0 (%3) is not in output[0]",
            None,
        ),
    ],
)
def test_unsound_plans(graph: Graph, message: str, line: str | None) -> None:
    with pytest.raises(VerifyError) as caught:
        verify(graph)
    assert (caught.value.message, caught.value.location) == (message, line)
