"""Rows: what follows a product of many rows runs over the same rows.

A linear layer on [N, T, K] is one product of N T rows, [N T, K] x [K, M], and a reshape. The ops
behind it (bias, activation, residual, norm) do not care how rows are counted, so the reshape moves
behind them, as far as they agree. Then they follow the product directly, and become its epilogue.
A 1 x 1 convolution is such a layer too, of pixels, and so is the gradient of its weight: the kernel
of products packs its operands.

requires: nothing.  ensures: nothing; values do not change, only how leading axes are split.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from nir.ir.dim import Shape, prod
from nir.ir.graph import Graph
from nir.ir.op import OPS, Op, Value
from nir.ir.program import Target
from nir.ops import (
    Broadcast,
    Conv2d,
    Conv2dInputGrad,
    Conv2dWeightGrad,
    Full,
    Matmul,
    Max,
    Min,
    Prod,
    Reshape,
    Slice,
    Sum,
    Transpose,
)
from nir.passes.algorithm import algorithm
from nir.passes.movement import MOVEMENT, reshape_of_broadcast
from nir.passes.rewrite import Context, Rules, everywhere, merge_rules, rewrite


def rows(graph: Graph, target: Target) -> Graph:
    """``graph`` with what follows products of many rows in two axes, (rows, columns)."""
    multiply = functools.partial(multiply_pixels, target)
    sums = functools.partial(sum_products, target)
    pixels: Rules = {Conv2d: (multiply,), Conv2dInputGrad: (multiply,), Conv2dWeightGrad: (sums,)}
    rules = merge_rules(RULES, pixels)
    return everywhere(graph, lambda g: rewrite(g, rules))


def multiply_pixels(target: Target, ctx: Context, op: Any) -> Sequence[Value] | None:
    """A 1 x 1 convolution of stride 1, or its image gradient, as a product of rows."""
    x, w = op.operands[0], op.w.type.shape
    if algorithm(op, target) != "product" or isinstance(ctx.producer(x), Transpose):
        return None  # a convolution can read an image that is stored as NCHW
    oihw = op.weight_layout == "OIHW"
    matrix = ctx.emit(Reshape(op.w, w[:2] if oihw else w[2:]))
    pixels = ctx.emit(Reshape(x, (prod(x.type.shape[:3]), x.type.shape[3])))
    transposed = oihw != isinstance(op, Conv2dInputGrad)
    y = ctx.emit(Matmul(pixels, matrix, transpose_rhs=transposed))
    return [ctx.emit(Reshape(y, op.result.type.shape))]


def sum_products(target: Target, ctx: Context, op: Conv2dWeightGrad) -> Sequence[Value] | None:
    """The gradient of a 1 x 1 weight: x' dy over all pixels, of x those that the window meets."""
    x, dy, (h, w) = op.x, op.dy, op.stride
    if algorithm(op, target) != "product" or isinstance(ctx.producer(x), Transpose):
        return None
    if op.stride != (1, 1):
        shape = (*dy.type.shape[:3], x.type.shape[3])
        x = ctx.emit(Slice(x, (0, 0, 0, 0), shape, (1, h, w, 1)))
    pixels, slopes = (
        ctx.emit(Reshape(v, (prod(v.type.shape[:3]), v.type.shape[3]))) for v in (x, dy)
    )
    if op.weight_layout == "OIHW":
        pixels, slopes = slopes, pixels
    product = ctx.emit(Matmul(pixels, slopes, transpose_lhs=True))
    return [ctx.emit(Reshape(product, op.result.type.shape))]


def sink_elementwise(ctx: Context, op: Op) -> Sequence[Value] | None:
    """f(reshape(a), reshape(b), free) is reshape(f(a, b, free'))."""
    for v in op.operands:
        source = _rows_of(ctx, v)
        if source is not None:
            break
    else:
        return None
    shape = source.type.shape
    moved: dict[Value, Value] = {}
    for v in dict.fromkeys(op.operands):
        new = _in_rows(ctx, v, shape)
        if new is None:
            return None
        moved[v] = new
    y = ctx.emit(op.map_operands(moved.__getitem__))
    return [ctx.emit(Reshape(y, op.results[0].type.shape))]


def sink_reduction(ctx: Context, op: Any) -> Sequence[Value] | None:
    """A reduction over columns, or over all rows, counts rows in any way."""
    source = _rows_of(ctx, op.x)
    if source is None or source.type.ndim != 2:
        return None
    last = op.x.type.ndim - 1
    if op.axes == (last,):
        return [ctx.emit(Reshape(ctx.emit(type(op)(source, (1,))), op.result.type.shape))]
    if op.axes == tuple(range(last)):
        return [ctx.emit(type(op)(source, (0,)))]
    return None


def _rows_of(ctx: Context, v: Value) -> Value | None:
    """The rows, or one number for each row, that ``v`` splits into more axes, if an op made them.

    They are made by a product, a reduction, or elementwise ops behind these.
    """
    match ctx.producer(v):
        case Reshape(x=x, shape=shape):
            pass
        case _:
            return None
    made = ctx.producer(x)
    if made is None or not (isinstance(made, Matmul) or made.kind in ("elementwise", "reduction")):
        return None
    match x.type.shape:
        case (_, columns) if len(shape) > 2 and columns == shape[-1] and made.kind != "reduction":
            return x
        case (_,) if len(shape) > 1 and not isinstance(made, Matmul):
            return x
    return None


def _in_rows(ctx: Context, v: Value, shape: Shape) -> Value | None:
    """``v`` as a matrix of ``shape``; None where a loop that computes it would be torn apart."""
    match ctx.producer(v):
        case Reshape(x=x) if x.type.shape == shape:
            return x
        case Full(value=value):
            return ctx.full(value, v.type.with_(shape=shape))
        case Broadcast(x=x, shape=old, axes=axes):
            found = reshape_of_broadcast(ctx, Reshape(v, shape), x, old, axes)
            return None if found is None else found[0]  # type: ignore[return-value]
        case Op(kind="elementwise" | "reduction" | "source" | "movement") if ctx.uses(v) == 1:
            return None
    return ctx.emit(Reshape(v, shape))


RULES: Rules = merge_rules(
    MOVEMENT,
    {
        **{cls: (sink_elementwise,) for cls in OPS.values() if cls.kind == "elementwise"},
        **{cls: (sink_reduction,) for cls in (Sum, Prod, Max, Min)},
    },
)
