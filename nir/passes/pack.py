"""Packing: the right operands of products and the weights of convolutions in the kernels' layout.

GEMM kernels read B in panels of 16 columns. The packing is an op of its own, so that what depends
on weights alone can move out of a loop, or be done when weights are bound: `pack` writes one for
every product. A pack reads its source in the order in which it is stored, so a transposed operand
needs no transpose.

What is then still packed at each run, beside its product, `unpack` takes back: the kernel brings
rows or columns of B into panels as it goes, which is cheaper than to write all of B and read it
again.

A convolution of few channels reads an NCHW image plane by plane, so that the transpose of a front
end's input goes too. That is decided here, when all transposes that meet have cancelled.
Depthwise convolutions read plain weights, channels last. With numerics "fast" a 3 x 3
convolution of enough channels is computed by Winograd's algorithm, and its weights packed for that.

requires: covered.  ensures: no product reads what a pack in the same graph makes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from nir.frozen import replace
from nir.ir.graph import Graph
from nir.ir.op import Value
from nir.ir.program import Target
from nir.ops import (
    Conv2d,
    Conv2dInputGrad,
    Conv2dWeightGrad,
    Matmul,
    Pack,
    PackConv2d,
    Transpose,
)
from nir.passes.algorithm import algorithm
from nir.passes.rewrite import Context, Rules, everywhere, in_regions, rewrite

# Rows of A from which packing B pays in any case: some tiles of 14 rows read each panel then.
_ROWS_THAT_SHARE = 64
# Below, kernels join taps that lie side by side, and one plane's taps are as good as all channels'.
_FEW_CHANNELS = 16
_NHWC_OF_NCHW = (0, 2, 3, 1)
_HWIO_OF_OIHW = (2, 3, 1, 0)
_WINDOWS = (Conv2d, Conv2dInputGrad)


def pack(graph: Graph, target: Target) -> Graph:
    """``graph`` with explicit packs; as it is for a target without a kernel that packs."""
    rules = {cls: found for cls, found in RULES.items() if _NEEDS[cls].name in target.kernels}
    winograd = functools.partial(pack_winograd, target)
    rules |= {cls: (winograd, *found) for cls, found in rules.items() if cls in _WINDOWS}
    if Conv2dWeightGrad in rules:
        rules[Conv2dWeightGrad] = (*rules[Conv2dWeightGrad], functools.partial(sum_patches, target))
    inside = rules | {cls: (pack_shared,) for cls in (Matmul,) if cls in rules}
    return rewrite(in_regions(graph, lambda g: rewrite(g, inside)), rules)


def pack_matmul(ctx: Context, op: Matmul) -> Sequence[Value] | None:
    if op.rhs.type.layout:
        return None
    packed = ctx.emit(Pack(op.rhs, op.transpose_rhs))
    return [ctx.emit(replace(op, rhs=packed, transpose_rhs=False))]


def pack_shared(ctx: Context, op: Matmul) -> Sequence[Value] | None:
    """In a loop, where only what does not change is packed once: products of few rows stay."""
    rows = op.result.type.shape[-2]
    few = isinstance(rows, int) and rows < _ROWS_THAT_SHARE
    return None if few and not op.transpose_rhs else pack_matmul(ctx, op)


def unpack(graph: Graph, target: Target) -> Graph:
    """``graph`` without the packs of matrices that stayed beside their products."""
    return everywhere(graph, lambda g: rewrite(g, {Matmul: (read_as_stored,)}))


def read_as_stored(ctx: Context, op: Matmul) -> Sequence[Value] | None:
    """A product reads the matrix that a pack beside it reads."""
    match ctx.producer(op.rhs):
        case Pack(w=w, transpose=transpose):
            return [ctx.emit(replace(op, rhs=w, transpose_rhs=transpose))]
    return None


def pack_conv2d(ctx: Context, op: Any) -> Sequence[Value] | None:
    if op.weight_layout in ("packed", "winograd"):
        return None
    o, i, kh, kw = op.w.type.shape
    if op.weight_layout == "HWIO":
        kh, kw, i, o = op.w.type.shape
    if op.groups == o and i == 1:
        return depthwise_channels_last(ctx, op)
    planar = op.x_layout if isinstance(op, Conv2d) else "NHWC"
    packed = ctx.emit(
        PackConv2d(op.w, op.weight_layout, op.groups, isinstance(op, Conv2dInputGrad), planar)
    )
    return [ctx.emit(replace(op, w=packed, weight_layout="packed", kernel_size=(kh, kw)))]


def sum_patches(target: Target, ctx: Context, op: Any) -> Sequence[Value] | None:
    """The gradient of a weight by Winograd's algorithm."""
    if op.winograd or algorithm(op, target) != "winograd":
        return None
    return [ctx.emit(replace(op, winograd=True))]


def depthwise_channels_last(ctx: Context, op: Any) -> Sequence[Value] | None:
    """Channels side by side, as the kernel reads them, rather than turned in each of its calls."""
    if op.weight_layout == "HWIO":
        return None
    w = ctx.emit(Transpose(op.w, _HWIO_OF_OIHW))
    return [ctx.emit(replace(op, w=w, weight_layout="HWIO"))]


def pack_winograd(target: Target, ctx: Context, op: Any) -> Sequence[Value] | None:
    if algorithm(op, target) != "winograd":
        return None
    packed = ctx.emit(
        PackConv2d(op.w, op.weight_layout, 1, isinstance(op, Conv2dInputGrad), winograd=True)
    )
    return [ctx.emit(replace(op, w=packed, weight_layout="winograd", kernel_size=(3, 3)))]


def read_nchw(ctx: Context, op: Any) -> Sequence[Value] | None:
    """A convolution reads an image of few channels as the front end has it."""
    match ctx.producer(op.x):
        case Transpose(x=x, perm=perm) if perm == _NHWC_OF_NCHW:
            channels = x.type.shape[1]
            few = isinstance(channels, int) and channels < _FEW_CHANNELS
            unpacked = isinstance(op, Conv2dWeightGrad) or op.weight_layout in ("HWIO", "OIHW")
            if few and unpacked and op.groups == 1 and op.x_layout == "NHWC":
                return [ctx.emit(replace(op, x=x, x_layout="NCHW"))]
    return None


RULES: Rules = {
    Matmul: (pack_matmul,),
    Conv2d: (read_nchw, pack_conv2d),
    Conv2dInputGrad: (pack_conv2d,),
    Conv2dWeightGrad: (read_nchw,),
}
# The op that the target has to cover for the rules of each class.
_NEEDS: dict[type, Any] = {
    Matmul: Pack,
    Conv2d: PackConv2d,
    Conv2dInputGrad: PackConv2d,
    Conv2dWeightGrad: Conv2dWeightGrad,
}
