"""Batch norm at inference folds into the convolution or product before it.

    s = weight / sqrt(var + eps)
    batch_norm(conv(x, w) + b) = conv(x, w * s) + ((b - mean) * s + bias)

The weights are scaled once per run, which costs as many multiplications as there are weights (and
none where they are constants), and the activations are spared a pass. This moves roundings: the
result differs from the unfolded one by the rounding of the products.

requires: nothing.  ensures: no BatchNormInference on the sole use of a Conv2d or Matmul whose
weights are inputs or constants.
"""

from __future__ import annotations

from collections.abc import Sequence

from nir.frozen import replace
from nir.ir.graph import Graph
from nir.ir.op import Op, Value
from nir.ir.program import Target
from nir.ops import (
    Add,
    BatchNormInference,
    Broadcast,
    Cast,
    Constant,
    Conv2d,
    Matmul,
    Reshape,
    Transpose,
)
from nir.ops.expr import Expr
from nir.passes.rewrite import Context, Rules, everywhere, rewrite


def batch_norm_fold(graph: Graph, target: Target) -> Graph:
    """``graph`` with inference batch norms folded into the weights before them."""
    return everywhere(graph, lambda g: rewrite(g, RULES))


def fold_batch_norm(ctx: Context, op: BatchNormInference) -> Sequence[Expr | Value] | None:
    linear, shift = _affine(ctx, op.x)
    if linear is None:
        return None
    channel = op.x.type.ndim - 1
    weight, bias, mean, var = ctx.exprs((op.weight, op.bias, op.mean, op.var))
    scale = weight * (var + op.eps).rsqrt()
    match linear:
        case Conv2d(w=w):
            axis = 0 if linear.weight_layout == "OIHW" else 3
            factor = scale.broadcast(w.type.shape, (axis,))
            scaled: Op = replace(linear, w=(ctx.expr(w) * factor).value)
        case Matmul(rhs=w, transpose_rhs=transposed):
            axis = w.type.ndim - (2 if transposed else 1)
            factor = scale.broadcast(w.type.shape, (axis,))
            scaled = replace(linear, rhs=(ctx.expr(w) * factor).value)
        case _:
            return None
    offset = bias - mean * scale if shift is None else bias + (ctx.expr(shift) - mean) * scale
    y = ctx.expr(ctx.emit(scaled))
    return [y + offset.broadcast(op.x.type.shape, (channel,))]


def _affine(ctx: Context, x: Value) -> tuple[Op | None, Value | None]:
    """The Conv2d or Matmul that makes ``x`` for this reader alone, and the bias added to it."""
    op = ctx.producer(x)
    shift: Value | None = None
    if isinstance(op, Add) and ctx.uses(x) == 1:
        for y, b in ((op.lhs, op.rhs), (op.rhs, op.lhs)):
            added = ctx.producer(b)
            if isinstance(added, Broadcast) and added.axes == (x.type.ndim - 1,):
                x, op, shift = y, ctx.producer(y), added.x
                break
    if ctx.uses(x) != 1:
        return None, None
    match op:
        case Conv2d(w=w) | Matmul(rhs=w) if _is_weight(ctx, w) and not w.type.layout:
            return op, shift
    return None, None


def _is_weight(ctx: Context, w: Value) -> bool:
    """An input or a constant, perhaps moved or cast."""
    op = ctx.producer(w)
    while isinstance(op, (Transpose, Reshape, Cast)):
        op = ctx.producer(op.x)
    return op is None or isinstance(op, Constant)


RULES: Rules = {BatchNormInference: (fold_batch_norm,)}
