"""Attention reads heads where projections leave them, and its gradients lie as one projection's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pass_harness import graph_of, random_inputs

from nir.ir.compare import compare
from nir.ir.graph import Graph
from nir.ir.program import Target
from nir.ops import Attention, AttentionGrad, Concat, Pad, Slice, Transpose
from nir.ops.expr import Expr
from nir.ops.vjp import gradient
from nir.passes.layout import layout

_PERMS = {"BTHD": (0, 2, 1, 3), "TBHD": (1, 2, 0, 3)}


def _self_attention(order: str, causal: bool) -> Graph:
    """x [., ., 48] of two heads of 8 features -> the sum of squares of what they attend to."""

    def f(x: Expr) -> list[Expr]:
        a, b, _ = x.shape
        perm = _PERMS[order]
        back = tuple(perm.index(i) for i in range(4))
        heads = [
            x.slice((0, 0, 16 * i), (a, b, 16), (1, 1, 1)).reshape((a, b, 2, 8)).transpose(perm)
            for i in range(3)
        ]
        out, _ = heads[0].attention(heads[1], heads[2], None, causal, 0.35)
        y = out.transpose(back).reshape((a, b, 16))
        return [(y * y).sum((0, 1, 2)), y]

    return graph_of(f, "f32[3,5,48]")


def _stacked_attention(order: str, causal: bool) -> Graph:
    """The same with q, k and v as parts along an axis of their own."""

    def f(x: Expr) -> list[Expr]:
        a, b, _ = x.shape
        perm = _PERMS[order]
        back = tuple(perm.index(i) for i in range(4))
        split = x.reshape((a, b, 3, 2, 8))
        parts = split.transpose((2, *(i if i < 2 else i + 1 for i in perm)))
        shape = parts.shape[1:]
        heads = [
            parts.slice((i, 0, 0, 0, 0), (1, *shape), (1,) * 5).reshape(shape) for i in range(3)
        ]
        out, _ = heads[0].attention(heads[1], heads[2], None, causal, 0.35)
        y = out.transpose(back).reshape((a, b, 16))
        return [(y * y).sum((0, 1, 2)), y]

    return graph_of(f, "f32[3,5,48]")


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("order", _PERMS)
@pytest.mark.parametrize("make", [_self_attention, _stacked_attention])
def test_nothing_is_copied_round_attention(
    make: Callable[[str, bool], Graph], order: str, causal: bool
) -> None:
    graph = gradient(make(order, causal))
    after = layout(graph, Target("interp"))
    assert compare(graph, after, random_inputs(graph)) is None
    (forward,) = (op for op in after.nodes if isinstance(op, Attention))
    (backward,) = (op for op in after.nodes if isinstance(op, AttentionGrad))
    assert forward.orders == backward.orders == (order,) * 4
    assert forward.first == backward.first == (0, 2, 4) and forward.heads == backward.heads == 2
    assert backward.joined
    # What is left turns the small delta alone.
    left = [op for op in after.nodes if isinstance(op, (Transpose, Slice, Concat, Pad))]
    assert all(isinstance(op, Transpose) and op.x.type.ndim == 3 for op in left)


def test_cotangents_of_slices_that_touch_are_one_concat() -> None:
    def f(x: Expr) -> list[Expr]:
        parts = [x.slice((0, i), (4, n), (1, 1)) for i, n in ((0, 2), (2, 3), (5, 1))]
        a, b, c = ((p * p).sum((0, 1)) for p in parts)
        return [a + b + c]

    graph = gradient(graph_of(f, "f32[4,6]"))
    kinds = {type(op) for op in graph.nodes}
    assert Concat in kinds and Pad not in kinds
