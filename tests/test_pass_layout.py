"""layout: transposes meet and vanish; a ResNet written in NCHW keeps none but its input's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pass_harness import (
    CPU,
    NCHW,
    NHWC,
    check_pass,
    conv_nchw,
    graph_of,
    random_inputs,
    resnet9_loss,
    resnet9_step,
)

from nir.ir.dim import symbol
from nir.ir.graph import Graph
from nir.ir.interp import run
from nir.passes.cse import cse
from nir.passes.decompose import decompose
from nir.passes.fold import fold
from nir.passes.layout import layout
from nir.passes.simplify import simplify

B = symbol("B")
X, Y = "f32[B,3,4,5]", "f32[B,4,5,3]"  # NCHW, and the same as NHWC
Fn = Callable[..., Any]

CASES: dict[str, tuple[tuple[str, ...], Fn, Fn | None]] = {
    "sink a unary op": (
        (X,),
        lambda x: x.transpose(NHWC).relu(),
        lambda x: x.relu().transpose(NHWC),
    ),
    "cancel across unary ops": (
        (X,),
        lambda x: x.transpose(NHWC).relu().exp().transpose(NCHW),
        lambda x: x.relu().exp(),
    ),
    "sink two operands": (
        (X, X),
        lambda a, b: a.transpose(NHWC) + b.transpose(NHWC),
        lambda a, b: (a + b).transpose(NHWC),
    ),
    "operands of different orders stay": (
        ("f32[4,4]", "f32[4,4]"),
        lambda a, b: a.transpose((1, 0)) + b,
        None,
    ),
    "a scalar does not block": (
        (X,),
        lambda x: x.transpose(NHWC) * 2.0,
        lambda x: (x * 2.0).transpose(NHWC),
    ),
    "a channel vector does not block": (
        (Y, "f32[3]"),
        lambda y, b: y.transpose(NCHW) + b.broadcast((B, 3, 4, 5), (1,)),
        lambda y, b: (y + b.broadcast((B, 4, 5, 3), (3,))).transpose(NCHW),
    ),
    "iota turns with the rest": (
        (X,),
        lambda x: x.transpose(NHWC) * x.iota((B, 4, 5, 3), 2, x.dtype),
        lambda x: (x * x.iota((B, 3, 4, 5), 3, x.dtype)).transpose(NHWC),
    ),
    "hoist to the inverse above": (
        (X, Y),
        lambda x, y: (x + y.transpose(NCHW)).relu().transpose(NHWC),
        lambda x, y: (x.transpose(NHWC) + y).relu(),
    ),
    "two readers: nothing to gain": (
        (X, Y),
        lambda x, y: (s := x + y.transpose(NCHW), s.transpose(NHWC)),
        None,
    ),
    "reduce as it lies": (
        (X,),
        lambda x: x.transpose(NHWC).sum((0, 1, 2)),
        lambda x: x.sum((0, 2, 3)),
    ),
    "a reduction leaves a smaller transpose": (
        ("f32[B,3,4]",),
        lambda x: x.transpose((2, 1, 0)).max((1,)),
        lambda x: x.max((1,)).transpose((1, 0)),
    ),
    "arg_max as it lies": (
        ("f32[B,3,4]",),
        lambda x: x.transpose((0, 2, 1)).arg_max(1),
        lambda x: x.arg_max(2),
    ),
    "cum_sum as it lies": (
        (X,),
        lambda x: x.transpose(NHWC).cum_sum(3),
        lambda x: x.cum_sum(1).transpose(NHWC),
    ),
    "softmax over channels": (
        (Y,),
        lambda y: y.transpose(NCHW).softmax(1),
        lambda y: y.softmax(3).transpose(NCHW),
    ),
    "mean over pixels": (
        (Y,),
        lambda y: y.transpose(NCHW).mean((2, 3)),
        lambda y: y.mean((1, 2)),
    ),
    "pad as it lies": (
        (X,),
        lambda x: x.transpose(NHWC).pad((0, 1, 2, 0), (0, 3, 4, 5), 1.0),
        lambda x: x.pad((0, 0, 1, 2), (0, 5, 3, 4), 1.0).transpose(NHWC),
    ),
    "slice as it lies": (
        (X,),
        lambda x: x.transpose(NHWC).slice((0, 1, 2, 0), (B, 2, 1, 3), (1, 1, 2, 1)),
        lambda x: x.slice((0, 0, 1, 2), (B, 3, 2, 1), (1, 1, 1, 2)).transpose(NHWC),
    ),
    "dilate as it lies": (
        (X,),
        lambda x: x.transpose(NHWC).dilate((1, 2, 3, 1)),
        lambda x: x.dilate((1, 1, 2, 3)).transpose(NHWC),
    ),
    "flip as it lies": (
        (X,),
        lambda x: x.transpose(NHWC).flip((1, 3)),
        lambda x: x.flip((1, 2)).transpose(NHWC),
    ),
    "concat as they lie": (
        (X, X),
        lambda a, b: a.transpose(NHWC).concat((b.transpose(NHWC),), axis=3),
        lambda a, b: a.concat((b,), axis=1).transpose(NHWC),
    ),
    "weights are read as stored": (
        (Y, "f32[6,3,2,2]"),
        lambda x, w: x.conv2d(w.transpose((2, 3, 1, 0))),
        lambda x, w: x.conv2d(w, weight_layout="OIHW"),
    ),
    "weights in another order stay": (
        (Y, "f32[3,6,2,2]"),
        lambda x, w: x.conv2d(w.transpose((2, 3, 0, 1))),
        None,
    ),
    "the input gradient reads them too": (
        ("f32[B,3,4,6]", "f32[6,3,2,2]"),
        lambda dy, w: dy.conv2d_input_grad(w.transpose((2, 3, 1, 0)), input_size=(4, 5)),
        lambda dy, w: dy.conv2d_input_grad(w, input_size=(4, 5), weight_layout="OIHW"),
    ),
    "weight gradients are written as stored": (
        (Y, "f32[B,3,4,6]"),
        lambda x, dy: x.conv2d_weight_grad(dy, kernel_size=(2, 2)).transpose((3, 2, 0, 1)),
        lambda x, dy: x.conv2d_weight_grad(dy, kernel_size=(2, 2), weight_layout="OIHW"),
    ),
    "a weight gradient read both ways keeps a transpose": (
        (Y, "f32[B,3,4,6]"),
        lambda x, dy: (
            g := x.conv2d_weight_grad(dy, kernel_size=(2, 2)),
            g.transpose((3, 2, 0, 1)),
        ),
        None,
    ),
}


def assert_agree(before: Graph, after: Graph, atol: float = 1e-5, **sizes: int) -> None:
    # Inputs are not negative: Adam takes the root of its second moment.
    arrays = [abs(a) for a in random_inputs(before, 0, sizes)]
    for a, b in zip(run(before, arrays), run(after, arrays), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=atol)


@pytest.mark.parametrize("name", CASES)
def test_rule(name: str) -> None:
    specs, before, expected = CASES[name]
    graph = graph_of(before, *specs)
    after = check_pass(layout, graph, expected and graph_of(expected, *specs))
    assert_agree(graph, after)


def test_a_chain_of_convolutions_keeps_the_outer_transposes() -> None:
    def f(x: Any, w1: Any, w2: Any) -> Any:
        y = conv_nchw(conv_nchw(x, w1, padding=1).relu(), w2, padding=1)
        return y + x

    g = graph_of(f, "f32[B,3,6,6]", "f32[3,3,3,3]", "f32[3,3,3,3]")
    after = layout(simplify(g, CPU), CPU)
    assert after.count()["transpose"] <= 2
    assert_agree(g, after)


def test_an_input_in_nchw_inside_a_residual_block() -> None:
    def f(x: Any, w1: Any, w2: Any) -> Any:
        y = (x + conv_nchw(x, w1, padding=1)).relu()
        return conv_nchw(y, w2, padding=1).mean((2, 3))

    g = graph_of(f, "f32[B,3,6,6]", "f32[3,3,3,3]", "f32[3,3,3,3]")
    after = cse(layout(decompose(simplify(g, CPU), CPU), CPU), CPU)
    # The input is turned once, for both of its readers.
    assert after.count()["transpose"] == 1
    assert_agree(g, after)


def _lowered(graph: Graph) -> Graph:
    for run_pass in (simplify, fold, cse, layout, decompose, simplify, fold, layout, cse):
        graph = run_pass(graph, CPU)
    return graph


@pytest.mark.parametrize("make", [resnet9_loss, resnet9_step])
def test_resnet9_in_nchw(make: Callable[[], Graph]) -> None:
    graph = make()
    assert graph.count()["transpose"] > 30
    after = _lowered(graph)
    transposes = [op for op in after.nodes if op.name == "transpose"]
    # Only the images that come in as NCHW are turned, once.
    assert [op.operands for op in transposes] == [(after.inputs[0],)]
    # The gradients of biases before a batch norm are rounding errors: they are 0 but for those.
    assert_agree(graph, after, atol=1e-3, B=4)
