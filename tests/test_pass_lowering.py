"""batch_norm_fold, pack and split_reductions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pass_harness import CPU, check_pass, graph_of, random_inputs

from nir.frozen import replace
from nir.ir.dim import symbol
from nir.ir.graph import Graph
from nir.ir.interp import run
from nir.ir.program import Target
from nir.ops import Max, Min, Prod, ReducePartial, Sum
from nir.passes.batch_norm_fold import batch_norm_fold
from nir.passes.pack import pack, unpack
from nir.passes.split_reductions import chunk_rows, leading_or_trailing, split_reductions

B = symbol("B")


def assert_agree(before: Graph, after: Graph, rtol: float = 1e-4, **sizes: int) -> None:
    arrays = [abs(a) for a in random_inputs(before, 0, sizes)]
    for a, b in zip(run(before, arrays), run(after, arrays), strict=True):
        np.testing.assert_allclose(b, a, rtol=rtol, atol=1e-5)


# ---- batch norm --------------------------------------------------------------------------------

X, W, C = "f32[B,5,5,3]", "f32[2,2,3,4]", "f32[4]"
STATS = (C, C, C, C)


def scale_of(weight: Any, var: Any) -> Any:
    return weight * (var + 1e-5).rsqrt()


def test_batch_norm_folds_into_a_convolution() -> None:
    def before(x: Any, w: Any, *stats: Any) -> Any:
        return x.conv2d(w).batch_norm_inference(*stats, eps=1e-5)

    def expected(x: Any, w: Any, weight: Any, bias: Any, mean: Any, var: Any) -> Any:
        s = scale_of(weight, var)
        scaled = w * s.broadcast((2, 2, 3, 4), (3,))
        shift = bias - mean * s
        return x.conv2d(scaled) + shift.broadcast((B, 4, 4, 4), (3,))

    g = graph_of(before, X, W, *STATS)
    after = check_pass(batch_norm_fold, g, graph_of(expected, X, W, *STATS))
    assert_agree(g, after)


@pytest.mark.parametrize("bias_first", [False, True])
def test_a_bias_folds_along(bias_first: bool) -> None:
    def before(x: Any, w: Any, b: Any, *stats: Any) -> Any:
        y = x.conv2d(w)
        b = b.broadcast(y.shape, (3,))
        return (b + y if bias_first else y + b).batch_norm_inference(*stats, eps=1e-5)

    g = graph_of(before, X, W, C, *STATS)
    after = batch_norm_fold(g, CPU)
    assert after.count()["add"] == 3  # var + eps, the folded bias, and its use
    assert "batch_norm_inference" not in after.count()
    assert_agree(g, after)


@pytest.mark.parametrize("transposed", [False, True])
def test_batch_norm_folds_into_a_product(transposed: bool) -> None:
    def before(x: Any, w: Any, *stats: Any) -> Any:
        return x.matmul(w, transpose_rhs=transposed).batch_norm_inference(*stats, eps=1e-5)

    g = graph_of(before, "f32[B,3]", "f32[4,3]" if transposed else "f32[3,4]", *STATS)
    after = batch_norm_fold(g, CPU)
    assert "batch_norm_inference" not in after.count()
    assert_agree(g, after)


def test_batch_norm_stays_where_the_convolution_has_other_readers() -> None:
    def f(x: Any, w: Any, *stats: Any) -> Any:
        y = x.conv2d(w)
        return y.batch_norm_inference(*stats, eps=1e-5), y

    check_pass(batch_norm_fold, graph_of(f, X, W, *STATS), None)


def test_batch_norm_stays_where_weights_are_computed() -> None:
    def f(x: Any, w: Any, *stats: Any) -> Any:
        return x.conv2d(w.tanh()).batch_norm_inference(*stats, eps=1e-5)

    check_pass(batch_norm_fold, graph_of(f, X, W, *STATS), None)


def test_batch_norm_elsewhere_stays() -> None:
    g = graph_of(lambda x, *s: x.relu().batch_norm_inference(*s, eps=1e-5), "f32[B,4]", *STATS)
    check_pass(batch_norm_fold, g, None)


# ---- packing -----------------------------------------------------------------------------------


def test_a_product_reads_packed_weights() -> None:
    before = graph_of(lambda x, w: x.matmul(w), "f32[B,8]", "f32[8,5]")
    after = check_pass(
        pack, before, graph_of(lambda x, w: x.matmul(w.pack()), "f32[B,8]", "f32[8,5]")
    )
    assert_agree(before, after)


def test_a_transposed_operand_is_packed_as_it_lies() -> None:
    before = graph_of(lambda x, w: x.matmul(w, transpose_rhs=True), "f32[B,8]", "f32[5,8]")
    expected = graph_of(lambda x, w: x.matmul(w.pack(transpose=True)), "f32[B,8]", "f32[5,8]")
    assert_agree(before, check_pass(pack, before, expected))


@pytest.mark.parametrize("transpose", [False, True])
def test_a_product_beside_its_pack_reads_the_matrix(transpose: bool) -> None:
    w = "f32[5,8]" if transpose else "f32[8,5]"
    plain = graph_of(lambda x, w: x.matmul(w, transpose_rhs=transpose), "f32[B,8]", w)
    packed = graph_of(lambda x, w: x.matmul(w.pack(transpose=transpose)), "f32[B,8]", w)
    assert_agree(plain, check_pass(unpack, packed, plain))
    shown = graph_of(lambda x, w: (x.matmul(p := w.pack()), p), "f32[B,8]", "f32[8,5]")
    assert unpack(shown, CPU).count() == {"matmul": 1, "pack": 1}


@pytest.mark.parametrize("layout", ["HWIO", "OIHW"])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_read_packed_weights(layout: str, groups: int) -> None:
    shape = (2, 3, 4 // groups, 6) if layout == "HWIO" else (6, 4 // groups, 2, 3)
    w = f"f32[{','.join(map(str, shape))}]"
    kw = {"groups": groups, "weight_layout": layout}
    forward = graph_of(lambda x, w: x.conv2d(w, **kw), "f32[B,5,5,4]", w)
    after = pack(forward, CPU)
    assert after.count() == {"conv2d": 1, "pack_conv2d": 1}
    assert_agree(forward, after)
    assert pack(after, CPU) is after
    back = graph_of(
        lambda dy, w: dy.conv2d_input_grad(w, input_size=(5, 5), **kw), "f32[B,4,3,6]", w
    )
    after = pack(back, CPU)
    assert after.count() == {"conv2d_input_grad": 1, "pack_conv2d": 1}
    assert_agree(back, after)


@pytest.mark.parametrize("layout", ["HWIO", "OIHW"])
def test_square_windows_of_many_channels_become_winograd(layout: str) -> None:
    w = "f32[3,3,64,48]" if layout == "HWIO" else "f32[48,64,3,3]"
    kw = {"padding": ((1, 1), (1, 1)), "weight_layout": layout}
    forward = graph_of(lambda x, w: x.conv2d(w, **kw), "f32[8,9,8,64]", w)
    back = graph_of(
        lambda dy, w: dy.conv2d_input_grad(w, input_size=(9, 8), **kw), "f32[8,9,8,48]", w
    )
    for graph in (forward, back):
        after = pack(graph, CPU)
        assert [op.winograd for op in after.nodes if op.name == "pack_conv2d"] == [True]
        assert_agree(graph, after)
        assert pack(after, CPU) is after
        strict = pack(graph, replace(CPU, numerics="strict"))
        assert [op.winograd for op in strict.nodes if op.name == "pack_conv2d"] == [False]


def test_the_gradient_of_such_windows_too() -> None:
    def grad(x: Any, dy: Any) -> Any:
        return x.conv2d_weight_grad(
            dy, kernel_size=(3, 3), padding=((1, 1), (1, 1)), weight_layout="OIHW"
        )

    graph = graph_of(grad, "f32[B,16,16,64]", "f32[B,16,16,64]")
    assert pack(graph, CPU).nodes[-1].winograd
    assert pack(graph, replace(CPU, numerics="strict")) is graph
    assert_agree(graph, pack(graph, CPU), B=2)
    few = graph_of(grad, "f32[1,6,6,64]", "f32[1,6,6,64]")
    assert pack(few, CPU) is few


@pytest.mark.parametrize(
    ("x", "w", "kw"),
    [
        ("f32[1,7,7,512]", "f32[512,512,3,3]", {}),  # 16 patches do not pay for larger weights
        ("f32[4,14,14,64]", "f32[64,64,3,3]", {"stride": (2, 2)}),
        ("f32[4,14,14,64]", "f32[64,64,3,3]", {"dilation": (2, 2)}),
        ("f32[4,14,14,64]", "f32[64,32,3,3]", {"groups": 2}),
        ("f32[4,14,14,64]", "f32[64,64,3,1]", {}),
        ("f32[64,8,8,8]", "f32[8,8,3,3]", {}),  # few channels: the transforms outweigh the products
    ],
)
def test_other_windows_are_computed_as_defined(x: str, w: str, kw: dict[str, Any]) -> None:
    kw = {"padding": ((1, 1), (1, 1)), "weight_layout": "OIHW", **kw}
    after = pack(graph_of(lambda x, w: x.conv2d(w, **kw), x, w), CPU)
    assert [op.winograd for op in after.nodes if op.name == "pack_conv2d"] == [False]


def test_depthwise_weights_in_hwio_stay() -> None:
    g = graph_of(lambda x, w: x.conv2d(w, groups=4), "f32[B,5,5,4]", "f32[3,3,1,4]")
    check_pass(pack, g, None)


def test_a_target_that_does_not_pack() -> None:
    g = graph_of(lambda x, w: x.matmul(w), "f32[B,8]", "f32[8,5]")
    check_pass(pack, g, None, Target("interp"))


# ---- reductions --------------------------------------------------------------------------------


def test_chunks_depend_on_shapes_alone() -> None:
    assert chunk_rows(B * 64, 16) == 1024
    assert chunk_rows(B, 128) == 128
    assert chunk_rows(B, 100_000) == 16
    assert chunk_rows(B, symbol("C")) == 64
    assert chunk_rows(100, 128) is None  # too few rows to share


def test_leading_axes_are_reduced_in_chunks() -> None:
    before = graph_of(lambda x: x.sum((0, 1, 2)), "f32[B,8,8,16]")

    def expected(x: Any) -> Any:
        (part,) = x.emit(ReducePartial(x.value, "sum", 1024, 3))
        return part.sum((0,))

    after = check_pass(split_reductions, before, graph_of(expected, "f32[B,8,8,16]"))
    for batch in (0, 1, 16, 40):
        assert_agree(before, after, B=batch)


def test_scalars_are_reduced_by_rows_of_the_last_axis() -> None:
    before = graph_of(lambda x: x.sum((0, 1)), "f32[B,16]")

    def expected(x: Any) -> Any:
        (part,) = x.emit(ReducePartial(x.value, "sum", 1024, 1))
        return part.sum((0, 1))

    after = check_pass(split_reductions, before, graph_of(expected, "f32[B,16]"))
    for batch in (0, 1, 3000):
        assert_agree(before, after, B=batch)


@pytest.mark.parametrize("text", ["f32[B]", "f32[B,16]"])
def test_trailing_axes_stay(text: str) -> None:
    check_pass(split_reductions, graph_of(lambda x: x.sum((x.ndim - 1,)), text), None)


def test_few_rows_stay() -> None:
    check_pass(split_reductions, graph_of(lambda x: x.sum((0,)), "f32[8,16]"), None)


def test_outer_axes_are_reduced_after_inner_ones() -> None:
    before = graph_of(lambda x: x.max((0, 2, 3)), "f32[4,16,5,5]")
    expected = graph_of(lambda x: x.max((2, 3)).max((0,)), "f32[4,16,5,5]")
    assert_agree(before, check_pass(split_reductions, before, expected))


def test_middle_axes_come_to_the_front() -> None:
    before = graph_of(lambda x: x.min((1,)), "f32[4,5,6]")
    expected = graph_of(lambda x: x.transpose((1, 0, 2)).min((0,)), "f32[4,5,6]")
    assert_agree(before, check_pass(split_reductions, before, expected))


@pytest.mark.parametrize("cls", [Sum, Prod, Max, Min])
@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)])
def test_every_reduction_ends_in_rows_or_columns(cls: Any, axes: tuple[int, ...]) -> None:
    g = graph_of(lambda x: getattr(x, cls.name)(axes), "f32[B,6,S]")
    after = split_reductions(g, CPU)
    for op in after.nodes:
        if isinstance(op, cls):
            assert leading_or_trailing(op.axes, op.x.type.ndim)
    for batch, last in ((3, 4), (70, 5), (1, 1)):
        assert_agree(g, after, rtol=1e-3, B=batch, S=last)
