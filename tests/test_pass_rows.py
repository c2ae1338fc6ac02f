"""Rows: reshapes behind linear layers move out of the way of epilogues."""

from __future__ import annotations

import numpy as np
import pytest

from nir.ir.graph import Graph
from nir.ir.interp import run
from nir.ops.expr import Expr
from nir.passes.pipeline import run_pipeline
from nir.passes.rows import rows
from tests.pass_harness import CPU, graph_of, random_inputs


def linear(x: Expr, w: Expr, shape: tuple[object, ...]) -> Expr:
    flat = x.reshape((shape[0] * shape[1], x.shape[-1]))  # type: ignore[operator]
    return flat.matmul(w).reshape(shape)


def layer(x: Expr, w: Expr, b: Expr, gain: Expr) -> Expr:
    """Linear, bias, activation, residual and a norm, as front ends trace them."""
    y = linear(x, w, x.shape)
    y = (y + b.broadcast(x.shape, (2,))).tanh()
    y = y + x
    mean = y.sum((2,)) / 8
    centred = y - mean.broadcast(x.shape, (0, 1))
    return centred * gain.broadcast(x.shape, (2,))


SPECS = ("f32[3,5,8]", "f32[8,8]", "f32[8]", "f32[8]")


def unchanged(graph: Graph) -> Graph:
    after = rows(graph, CPU)
    inputs = random_inputs(graph)
    for a, b in zip(run(graph, inputs), run(after, inputs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    return after


def axes_of(graph: Graph, name: str) -> list[int]:
    return [op.results[0].type.ndim for op in graph.nodes if op.name == name]


def test_a_layer_runs_over_rows() -> None:
    after = unchanged(graph_of(layer, *SPECS))
    assert axes_of(after, "tanh") == [2]
    assert axes_of(after, "add") == [2, 2]
    assert axes_of(after, "sum") == [1]
    assert axes_of(after, "mul") == [2]
    assert after.nodes[-1].name == "reshape"


def test_symbolic_rows() -> None:
    after = unchanged(graph_of(layer, "f32[B,5,8]", *SPECS[1:]))
    assert axes_of(after, "tanh") == [2]


def test_bias_and_activation_become_an_epilogue() -> None:
    def fn(x: Expr, w: Expr, b: Expr) -> Expr:
        return (linear(x, w, x.shape) + b.broadcast(x.shape, (2,))).relu()

    lowered = run_pipeline(graph_of(fn, *SPECS[:3]), CPU)
    forms = [op.form for op in lowered.nodes if op.name == "fused"]  # type: ignore[attr-defined]
    assert forms == ["epilogue"]


def test_sums_over_rows_and_columns() -> None:
    def fn(x: Expr, w: Expr) -> list[Expr]:
        y = linear(x, w, x.shape)
        return [y.sum((2,)), y.sum((0, 1)), y.sum((1,))]

    after = unchanged(graph_of(fn, *SPECS[:2]))
    assert axes_of(after, "sum") == [1, 1, 2]


@pytest.mark.parametrize("other", ["f32[3,5,1]", "f32[5,8]"])
def test_what_is_spread_over_some_rows_stays(other: str) -> None:
    """Numbers that differ between the rows of a batch cannot be told from rows alone."""

    def fn(x: Expr, w: Expr, z: Expr) -> Expr:
        y = linear(x, w, x.shape)
        if z.type.ndim == 2:
            return y * z.broadcast(x.shape, (1, 2))
        return y * z.reshape((3, 5)).broadcast(x.shape, (0, 1))

    unchanged(graph_of(fn, *SPECS[:2], other))


def test_heads_are_left_alone() -> None:
    def fn(x: Expr, w: Expr) -> Expr:
        return linear(x, w, x.shape).reshape((3, 5, 2, 4)).transpose((0, 2, 1, 3)).exp()

    after = unchanged(graph_of(fn, *SPECS[:2]))
    assert axes_of(after, "exp") == [4]


@pytest.mark.parametrize("layout", ["HWIO", "OIHW"])
def test_a_convolution_of_one_tap_is_a_layer_of_pixels(layout: str) -> None:
    w = "f32[1,1,6,4]" if layout == "HWIO" else "f32[4,6,1,1]"

    def forward(x: Expr, w: Expr, b: Expr) -> Expr:
        y = x.conv2d(w, weight_layout=layout)
        return (y + b.broadcast(y.shape, (3,))).relu()

    after = unchanged(graph_of(forward, "f32[2,3,5,6]", w, "f32[4]"))
    assert after.count()["matmul"] == 1 and "conv2d" not in after.count()
    assert axes_of(after, "relu") == [2]

    def back(dy: Expr, w: Expr) -> Expr:
        return dy.conv2d_input_grad(w, input_size=(3, 5), weight_layout=layout)

    after = unchanged(graph_of(back, "f32[2,3,5,4]", w))
    assert after.count()["matmul"] == 1 and "conv2d_input_grad" not in after.count()


@pytest.mark.parametrize("layout", ["HWIO", "OIHW"])
@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
def test_the_gradient_of_one_tap_is_a_product_over_pixels(
    layout: str, stride: tuple[int, int]
) -> None:
    def back(x: Expr, dy: Expr) -> Expr:
        return x.conv2d_weight_grad(dy, kernel_size=(1, 1), stride=stride, weight_layout=layout)

    size = "3,2" if stride != (1, 1) else "5,6"
    after = unchanged(graph_of(back, "f32[2,5,6,6]", f"f32[2,{size},4]"))
    assert after.count()["matmul"] == 1 and "conv2d_weight_grad" not in after.count()
    assert after.count().get("slice", 0) == (stride != (1, 1))


@pytest.mark.parametrize("window", [{"stride": (2, 2)}, {"padding": ((1, 1), (0, 0))}])
def test_other_convolutions_of_one_tap_stay(window: dict[str, tuple[object, ...]]) -> None:
    graph = graph_of(lambda x, w: x.conv2d(w, **window), "f32[2,4,4,6]", "f32[1,1,6,4]")
    assert unchanged(graph).count()["conv2d"] == 1
