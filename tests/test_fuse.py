"""Fusion: which ops meet in one region, in which form, and what memory planning may share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from backend_harness import check
from pass_harness import CPU, graph_of, linear, random_inputs, resnet9_step

from nir.errors import VerifyError
from nir.frozen import replace
from nir.ir.compare import compare
from nir.ir.graph import Graph, MemoryPlan, Placement
from nir.ir.types import bool_, f32
from nir.ir.verify import verify
from nir.ops.expr import Expr
from nir.ops.fused import Fused, accumulator_result
from nir.passes.fuse import _Fusion, fuse
from nir.passes.memory import plan_memory
from nir.passes.pipeline import PIPELINE, run_pipeline

F = "f32[B,40]"


def fused(fn: Callable[..., Any], *specs: str) -> Graph:
    """The graph through every pass up to `fuse`, which verifies and means the same."""
    graph = graph_of(fn, *specs)
    after = run_pipeline(graph, CPU, passes=PIPELINE[:-1], verify=random_inputs(graph, 1))
    verify(after)
    return after


def forms(graph: Graph) -> list[str]:
    return [op.form if isinstance(op, Fused) else op.name for op in graph.nodes]


def regions(graph: Graph) -> list[Fused]:
    return [op for op in graph.nodes if isinstance(op, Fused)]


def inside(region: Fused) -> list[str]:
    return [op.name for op in region.body.nodes]


# ---- forms -------------------------------------------------------------------------------------


def test_elementwise_ops_become_one_map() -> None:
    graph = fused(lambda x, y: (x.exp() + y).tanh() * x, F, F)
    assert forms(graph) == ["map"]
    assert inside(*regions(graph)) == ["exp", "add", "tanh", "mul"]


def test_softmax_and_layer_norm_are_one_row_region() -> None:
    assert forms(fused(lambda x: x.softmax(1), F)) == ["row"]
    norm = fused(lambda x, s, b: x.layer_norm(s, b, eps=1e-5).relu(), F, "f32[40]", "f32[40]")
    assert forms(norm) == ["row"]
    assert inside(*regions(norm)).count("sum") == 2


def test_what_comes_before_and_after_the_rows_joins_them() -> None:
    graph = fused(lambda x, y: (x * y).sum((1,)).sqrt(), F, F)
    assert forms(graph) == ["row"]
    assert inside(*regions(graph)) == ["mul", "sum", "sqrt"]
    # Rows that nothing reduces to are values of their own, read by the map.
    graph = fused(lambda x, v: x.tanh() * v.exp().broadcast(x.shape, (0,)), F, "f32[B]")
    assert forms(graph) == ["map", "map"]


def test_leading_reductions_are_columns_in_chunks() -> None:
    graph = fused(lambda x: (x * x).sum((0,)), F)
    assert forms(graph) == ["column", "column"]
    first, last = regions(graph)
    assert inside(first) == ["mul", "reduce_partial"] and inside(last) == ["sum"]


def test_column_reductions_of_one_tensor_share_a_region() -> None:
    graph = fused(lambda x, y: ((x * y).sum((0,)), x.max((0,))), F, F)
    first = regions(graph)[0]
    assert inside(first).count("reduce_partial") == 2


def test_vector_arithmetic_joins_the_column_before_it() -> None:
    graph = fused(lambda x, p: p - x.sum((0,)) * 0.5, F, "f32[40]")
    assert forms(graph) == ["column", "column"]
    assert inside(regions(graph)[1])[0] == "sum" and inside(regions(graph)[1])[-1] == "sub"


# ---- epilogues ---------------------------------------------------------------------------------


def test_bias_and_activation_are_the_epilogue_of_a_product() -> None:
    graph = fused(lambda x, w, b: linear(x, w, b).relu(), F, "f32[30,40]", "f32[30]")
    assert forms(graph) == ["epilogue"]
    (region,) = regions(graph)
    # The product comes first and reads the first inputs, in its own order.
    assert inside(region)[0] == "matmul"
    assert region.body.nodes[0].operands == region.body.inputs[:2]
    assert region.inputs == tuple(graph.inputs)


def test_operands_of_an_epilogue_keep_their_order() -> None:
    def fn(x: Expr, w: Expr, a: Expr, b: Expr, c: Expr) -> Expr:
        y = x.matmul(w)
        return (a - y) / b - c

    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):

        def permuted(x: Expr, w: Expr, *rest: Expr, order: Any = order) -> Expr:
            return fn(x, w, *(rest[i] for i in order))

        graph = graph_of(permuted, "f32[B,8]", "f32[8,40]", F, F, F)
        inputs = [abs(a) + np.float32(0.5) for a in random_inputs(graph, 2)]
        assert "epilogue" in forms(fused(permuted, "f32[B,8]", "f32[8,40]", F, F, F))
        check(graph, inputs)


def test_a_product_that_is_read_elsewhere_is_stored_by_its_epilogue() -> None:
    graph = fused(lambda x, w: (x.matmul(w).relu(), x.matmul(w)), F, "f32[40,100]")
    (region,) = regions(graph)
    assert region.form == "epilogue" and len(region.results) == 2
    assert region.body.outputs[accumulator_result(region)] is region.body.nodes[0].results[0]


def test_no_epilogue_where_nothing_stored_has_the_products_dtype() -> None:
    # Found by fuzzing: the sum in front of the comparison is not stored, so nothing could hold
    # what the product accumulates.
    def fn(x: Expr, w: Expr) -> Expr:
        y = x.matmul(w)
        return y.ceil().gt(y)

    graph = fused(fn, F, "f32[40,100]")
    assert forms(graph)[-2:] == ["matmul", "map"]
    assert graph.outputs[0].type.dtype is bool_


def test_an_epilogue_never_reads_its_product_elsewhere() -> None:
    graph = fused(lambda x, w: x.matmul(w) + x.matmul(w).flip((1,)), F, "f32[40,40]")
    assert "epilogue" not in forms(graph)


# ---- several results, views, cycles ------------------------------------------------------------


def test_one_region_stores_several_results() -> None:
    graph = fused(lambda x: (x.exp(), x.exp() * 2.0, (x.exp() * 2.0).tanh()), F)
    assert forms(graph) == ["map"]
    assert len(graph.nodes[0].results) == 3


def test_views_are_read_in_place() -> None:
    def fn(x: Expr, v: Expr) -> Expr:
        y = x.slice((0, 3), (x.shape[0], 40), (1, 2)).flip((1,))
        return y.tanh() + v.broadcast(y.shape, (1,))

    graph = fused(fn, "f32[B,90]", "f32[40]")
    assert forms(graph) == ["map"]
    assert {"slice", "flip", "broadcast"} <= set(inside(*regions(graph)))


def test_a_view_that_a_kernel_reads_is_stored() -> None:
    graph = fused(lambda x, w: x.flip((0,)).matmul(w), F, "f32[40,100]")
    assert "flip" in str([inside(r) for r in regions(graph)]) or "flip" in forms(graph)
    check(graph_of(lambda x, w: x.flip((0,)).matmul(w), F, "f32[40,100]"),
          random_inputs(graph, 3, {"B": 9}))  # fmt: skip


def test_cheap_arithmetic_is_repeated_rather_than_stored() -> None:
    graph = fused(lambda x, w: (x.relu().matmul(w).sum((0,)), x.relu().sum((0,))), F, "f32[40,9]")
    check(graph_of(lambda x: ((x * 2.0).sum((0,)), (x * 2.0).sum((1,))), F),
          [np.linspace(-1, 1, 400, dtype=np.float32).reshape(10, 40)])  # fmt: skip
    verify(graph)


@pytest.mark.parametrize("stored", [False, True])
def test_rows_whose_reduction_cannot_join_are_maps(stored: bool) -> None:
    def fn(x: Expr) -> list[Expr]:
        total = x.sum((1,))
        root = total.abs().sqrt()
        late = total.cum_sum(0)  # a kernel between the sum and the map
        y = x * root.broadcast(x.shape, (0,)) + late.broadcast(x.shape, (0,))
        return [y, root] if stored else [y]

    graph = fused(fn, F)
    assert "cum_sum" in forms(graph) and forms(graph)[-1] == "map"
    check(graph_of(fn, F), random_inputs(graph, 8, {"B": 7}))


@pytest.mark.parametrize("kernel", ["matmul", "softmax", "cum_sum"])
def test_no_region_depends_on_itself(kernel: str) -> None:
    """a feeds a kernel whose result meets a again: a and the meeting are two regions."""

    def fn(x: Expr, w: Expr) -> Expr:
        a = x.exp()
        match kernel:
            case "matmul":
                y = a.matmul(w)
            case "softmax":
                y = a.softmax(1)
            case _:
                y = a.cum_sum(0)
        return (a + y).tanh() * a

    graph = fused(fn, F, "f32[40,40]")
    verify(graph)  # every value is made before it is read
    check(graph_of(fn, F, "f32[40,40]"), random_inputs(graph, 4, {"B": 5}))


def test_deep_diamonds_stay_free_of_cycles() -> None:
    def fn(x: Expr, w: Expr) -> Expr:
        for i in range(12):
            side = x.tanh()
            x = side.matmul(w) * 0.1 + side + (x.sum((1,)).broadcast(x.shape, (0,)) if i % 3 else x)
        return x

    graph = graph_of(fn, F, "f32[40,40]")
    check(graph, [x * np.float32(0.1) for x in random_inputs(graph, 5, {"B": 6})])


def loss_and_gradient(v: Expr, x: Expr) -> list[Expr]:
    """count -> its root -> the gradient's region, with the sums of rows -> the region of loss."""
    count = v.sum((0,))
    e = x.exp()
    rows = e.sum((1,))
    loss = rows.log().sum((0,)) / count
    grad = e / rows.broadcast(x.shape, (0,)) * count.sqrt().broadcast(x.shape, ())
    return [loss, grad]


def test_a_path_back_through_a_region_further_down_is_seen() -> None:
    graph = fused(loss_and_gradient, "f32[B]", F)
    verify(graph)
    inputs = [abs(x) for x in random_inputs(graph, 3, {"B": 7})]
    check(graph_of(loss_and_gradient, "f32[B]", F), inputs)


def test_regions_that_wait_for_each_other_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Fusion, "reaches", lambda *args, **named: False)
    with pytest.raises(VerifyError, match="reads its own result"):
        fused(loss_and_gradient, "f32[B]", F)


def test_a_training_step_is_fused_whole() -> None:
    graph = run_pipeline(resnet9_step(), CPU, passes=PIPELINE[:-1])
    verify(graph)
    loose = [op for op in graph.nodes if op.kind in ("elementwise", "reduction")]
    assert loose == []
    found = forms(graph)
    # The images come in NCHW, and the first convolution reads them so.
    assert found.count("epilogue") >= 8 and found.count("transpose") == 0


# ---- memory: what may not be shared ------------------------------------------------------------


def _moved_onto(planned: Graph, result: Any, operand: Any) -> Graph:
    """The plan with ``result`` in the place of ``operand``."""
    assert planned.plan is not None
    number = planned.number
    place = planned.plan.placements[number[operand]]
    moved = {
        **planned.plan.placements,
        number[result]: Placement(place.kind, place.offset, place.of),
    }
    plan = MemoryPlan(planned.plan.arena, moved, planned.plan.donations)
    return planned.with_(plan=plan)


WRONG_IN_PLACE: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "product over its operand": (
        lambda x, w: x.exp().matmul(w).cum_sum(0).matmul(w),
        ("f32[6,40]", "f32[40,40]"),
    ),
    "reversed map over its operand": (
        lambda x: (x.cum_sum(0).flip((0,)) * x).cum_sum(0),
        ("f32[8,40]",),
    ),
    "epilogue accumulates over what it reads": (
        lambda x, w: (x.matmul(w) + x.cum_sum(0)).tanh().cum_sum(0),
        ("f32[6,40]", "f32[40,40]"),
    ),
}


@pytest.mark.parametrize("name", WRONG_IN_PLACE)
def test_a_wrong_reuse_in_place_is_named(name: str) -> None:
    fn, specs = WRONG_IN_PLACE[name]
    graph = graph_of(fn, *specs)
    planned = run_pipeline(graph, CPU)
    inputs = random_inputs(graph, 6)
    assert compare(graph, planned, inputs) is None
    found = 0
    for op in planned.nodes:
        for r in op.results:
            for x in op.operands:
                both = [planned.plan.placements.get(planned.number[v]) for v in (x, r)]  # type: ignore[union-attr]
                arena = all(p is not None and p.kind == "arena" for p in both)
                if not arena or both[0] == both[1] or x.type.nbytes != r.type.nbytes:
                    continue
                bad = _moved_onto(planned, r, x)
                if (x, r) in op.takes_over():
                    continue
                with pytest.raises(
                    VerifyError, match=r"memory plan.*written over|overwritten"
                ) as e:
                    compare(graph, bad, inputs)
                assert ".py:" in str(e.value)
                found += 1
    assert found, f"nothing to share in {[str(op) for op in planned.nodes]}"


def test_fuse_of_a_fused_graph_changes_nothing() -> None:
    graph = fused(lambda x, w: (x.matmul(w).relu() * 2.0).softmax(1), F, "f32[40,40]")
    assert forms(fuse(graph, CPU)) == forms(graph)


def test_wrong_forms_are_named() -> None:
    """A region whose operands are swapped or whose body reads another input changes results."""
    graph = graph_of(lambda x, y: (x - y).exp() / y, F, F)
    inputs = [abs(a) + np.float32(1) for a in random_inputs(graph, 7)]
    at = next(i for i, p in enumerate(PIPELINE) if p.name == "fuse")

    def swapped(g: Graph, target: Any) -> Graph:
        after = PIPELINE[at].run(g, target)
        (op,) = regions(after)
        return after.with_(nodes=[replace(op, inputs=op.inputs[::-1])])

    bug = (*PIPELINE[:at], replace(PIPELINE[at], run=swapped), *PIPELINE[at + 1 :])
    with pytest.raises(VerifyError, match=r"^pass fuse changed a result: fused at .*\.py:\d+"):
        run_pipeline(graph, CPU, verify=inputs, passes=bug)
    assert plan_memory(fused(lambda x: x.exp(), F), CPU).plan is not None
    assert graph.output_types[0].dtype is f32


def test_long_chains_become_loops_of_bounded_size() -> None:
    def chain(x: Expr) -> Expr:
        for _ in range(100):
            x = x.sin()
        return x

    sizes = [len(inside(r)) for r in regions(fused(chain, F))]
    assert sum(sizes) == 100
    assert max(sizes) == 32
