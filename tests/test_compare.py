"""Comparison of graphs: rounding passes, wrong meaning is named with op, line and ulp."""

from __future__ import annotations

import numpy as np
import pytest
from pass_harness import graph_of

from nir.ir.compare import agree, compare, in_precision, ulp_distance
from nir.ir.graph import Graph, MemoryPlan, Placement
from nir.ir.interp import random_inputs
from nir.ir.location import Location
from nir.ir.types import f64
from nir.ops.expr import Expr


def test_ulp_distance() -> None:
    one = np.float32(1)
    a = np.array([1, 1, 0, np.nan, np.nan, 1, np.inf, -1e-45, 3], np.float32)
    b = np.array(
        [np.nextafter(one, 2), 1, -0.0, np.nan, 1, np.nan, np.finfo(np.float32).max, 1e-45, -3],
        np.float32,
    )
    near = [1, 0, 0, 0, np.inf, np.inf, 1, 2]
    np.testing.assert_array_equal(ulp_distance(a, b)[:-1], near)
    assert ulp_distance(a, b)[-1] == 2 * 0x40400000
    wide = np.array([1.0]), np.array([np.nextafter(1.0, 2)])
    assert ulp_distance(*wide)[0] == 1


@pytest.mark.parametrize(
    "a, b, expected",
    [
        ([1.0, 2.0], [1.0, 2.0 + 4e-6], True),
        ([1.0, 2.0], [1.0, 2.001], False),
        ([1.0, 1e-9], [1.0, 2e-9], True),  # nothing on the scale of the whole
        ([np.nan], [np.nan], True),
        ([np.nan], [1.0], False),
        ([np.inf], [np.inf], True),
        ([np.inf], [-np.inf], False),
        ([np.inf], [3e38], False),
        ([0.0], [-0.0], True),
        ([], [], True),
    ],
)
def test_agreement(a: list[float], b: list[float], expected: bool) -> None:
    assert agree(np.array(a, np.float32), np.array(b, np.float32)) is expected


def test_agreement_of_shapes_and_integers() -> None:
    assert not agree(np.zeros(3), np.zeros((3, 1)))
    assert not agree(np.zeros(3), np.zeros(3, np.float32))
    assert not agree(np.array([3]), np.array([4]))
    assert agree(np.array([True]), np.array([True]))


def check(before: Graph, after: Graph) -> str | None:
    difference = compare(before, after, random_inputs(before, 1, {"B": 5}))
    return None if difference is None else str(difference)


def test_equal_meaning_agrees_though_rounding_differs() -> None:
    # 1e4 + x loses what the other order keeps: far from equal in f32, equal in f64.
    a = graph_of(lambda x: ((x + 1e4) - 1e4) * 1e3, "f32[B,4]")
    b = graph_of(lambda x: x * 1e3, "f32[B,4]")
    assert check(a, b) is None
    sums = graph_of(lambda x: x.sum((0, 1)), "f32[B,4]")
    assert check(sums, graph_of(lambda x: x.sum((1,)).sum((0,)), "f32[B,4]")) is None


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_cancellation_to_nothing_is_rounding(kind: str) -> None:
    # All that is left is noise, in either precision: 0 and 1e-7, or 0 and 1e-16.
    a = graph_of(lambda x: x.sum((0,)) - x.flip((0,)).sum((0,)), f"{kind}[B]")
    b = graph_of(lambda x: x.sum((0,)) - x.cum_sum(0).max((0,)), f"{kind}[B]")
    inputs = [np.abs(random_inputs(a, 1, {"B": 1001})[0])]
    assert compare(a, b, inputs) is None
    c = graph_of(lambda x: x.sum((0,)) - x.cum_sum(0).max((0,)) + 1e-6, f"{kind}[B]")
    assert compare(a, c, inputs) is not None


def test_another_meaning_is_named() -> None:
    def wrong(x: Expr) -> Expr:
        x.builder.locs = frozenset({Location("model.py", 16)})
        return (x * 1.0001).tanh()

    shown = check(graph_of(lambda x: x.tanh(), "f32[B,4]"), graph_of(wrong, "f32[B,4]"))
    assert shown is not None
    assert shown.startswith("tanh at model.py:16: expected ") and shown.endswith(" ulp)")
    assert "(output 0[" in shown


def test_the_first_op_that_differs_is_named() -> None:
    graph = graph_of(lambda x: (x.exp() + x.tanh()).sum((0,)), "f32[B,4]")
    exp, tanh, add, total = graph.nodes
    # The second graph makes the same values, one of them from the wrong op.
    wrong_tanh = type(exp)(exp.operands[0], results=tanh.results, locs=tanh.locs)
    broken = graph.with_(nodes=[exp, wrong_tanh, add, total])
    shown = check(graph, broken)
    assert shown is not None and shown.startswith("exp at ")


def test_integers_and_index_results_are_exact() -> None:
    a = graph_of(lambda x: x.arg_max(1), "f32[B,4]")
    b = graph_of(lambda x: x.arg_min(1), "f32[B,4]")
    assert check(a, a) is None
    assert check(a, b) is not None


def test_a_planned_graph_runs_in_its_arena() -> None:
    graph = graph_of(lambda x: x.exp().tanh(), "f32[B,4]")
    places = {1: Placement("arena"), 2: Placement("output")}
    assert check(graph, graph.with_(plan=MemoryPlan(4096, places))) is None


def test_precision_reaches_constants_attributes_and_regions() -> None:
    graph = graph_of(lambda x: x.cast(x.dtype).softmax(1) + x.full_like(0.1), "f32[B,4]")
    wide = in_precision(graph, f64)
    assert wide.output_types[0].dtype is f64
    assert {v.type.dtype for op in wide.nodes for v in op.results} == {f64}
