"""Layout: the transposes that front ends bring meet, cancel and vanish.

Modules speak NCHW, convolutions and pooling NHWC, so a traced model has a transpose on each side of
every convolution. They travel towards the outputs through ops that do not care (`sink`), meet
their inverses and cancel (the movement rules of simplify run along); where that is blocked, one is
pulled up through a tree of elementwise ops to the inverse above it (`hoist`). What then remains
sits on inputs, weights and their gradients, and becomes an access order of the op beside it: `Pack`
reads weights in the order they are stored, and convolutions read or write theirs by strides.

Rules only apply where they lower the number of transposes or move one towards the outputs, so
they settle. Values do not change, only the order in which they lie.

requires: nothing.  ensures: no transpose between ops that agree on an order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nir.frozen import replace
from nir.ir.graph import Graph
from nir.ir.op import OPS, Op, Value
from nir.ir.program import Target
from nir.ops import (
    ArgMax,
    ArgMin,
    Broadcast,
    Concat,
    Constant,
    Conv2d,
    Conv2dInputGrad,
    Conv2dWeightGrad,
    CumSum,
    Dilate,
    Flip,
    Full,
    Iota,
    LogSoftmax,
    LogSumExp,
    Max,
    Mean,
    Min,
    Pad,
    Prod,
    Slice,
    Softmax,
    Sum,
    Transpose,
)
from nir.passes.attention import RULES as ATTENTION
from nir.passes.movement import MOVEMENT, inverse, transpose_of_broadcast
from nir.passes.rewrite import Context, Rules, everywhere, merge_rules, rewrite

# How much of an elementwise tree a hoisted transpose looks at.
_TREE_OPS = 64


def layout(graph: Graph, target: Target) -> Graph:
    """``graph`` with transposes cancelled, or moved to where they cost nothing or least."""
    return everywhere(graph, lambda g: rewrite(g, RULES))


def _is_free(op: Op | None) -> bool:
    """Ops whose transpose costs nothing: it is folded, or changes an attribute."""
    return isinstance(op, (Full, Iota, Constant, Broadcast))


def _moved(ctx: Context, v: Value, perm: tuple[int, ...]) -> Value:
    """transpose(v), straight through a transpose that undoes it and through free ops."""
    match ctx.producer(v):
        case Transpose(x=x, perm=inner):
            both = tuple(inner[a] for a in perm)
            return x if both == tuple(range(len(both))) else ctx.emit(Transpose(x, both))
        case Full(value=value, shape=shape, dtype=dtype):
            return ctx.emit(Full(value=value, shape=tuple(shape[a] for a in perm), dtype=dtype))
        case Iota(shape=shape, axis=axis, dtype=dtype):
            at = perm.index(axis)
            return ctx.emit(Iota(shape=tuple(shape[a] for a in perm), axis=at, dtype=dtype))
        case Broadcast() as b:
            return transpose_of_broadcast(ctx, b, perm)
    return ctx.emit(Transpose(v, perm))


# ---- towards the outputs -----------------------------------------------------------------------


def sink_elementwise(ctx: Context, op: Op) -> Sequence[Value] | None:
    """f(transpose(a), transpose(b), free) is transpose(f(a, b, free'))."""
    perms: dict[tuple[int, ...], int] = {}
    blocked = 0
    for v in dict.fromkeys(op.operands):
        match ctx.producer(v):
            case Transpose(x=x, perm=perm) if not _is_free(ctx.producer(x)):
                perms[perm] = perms.get(perm, 0) + 1
            case source if not (_is_free(source) or isinstance(source, Transpose)):
                blocked += 1
    if not perms:
        return None
    perm, agreeing = max(perms.items(), key=lambda item: item[1])
    blocked += sum(perms.values()) - agreeing
    if blocked and blocked + 1 >= agreeing:
        return None
    back = inverse(perm)
    moved = {v: _moved(ctx, v, back) for v in dict.fromkeys(op.operands)}
    return [ctx.emit(Transpose(ctx.emit(op.map_operands(moved.__getitem__)), perm))]


def sink_reduction(ctx: Context, op: Any) -> Sequence[Value] | None:
    """reduce(transpose(x)) is a transpose of the reduced tensor, which is smaller."""
    match ctx.producer(op.x):
        case Transpose(x=x, perm=perm):
            pass
        case _:
            return None
    y = ctx.emit(type(op)(x, tuple(sorted(perm[a] for a in op.axes))))
    kept = [perm[a] for a in range(len(perm)) if a not in op.axes]
    order = sorted(kept)
    return [_transposed(ctx, y, tuple(order.index(a) for a in kept))]


def _transposed(ctx: Context, v: Value, perm: tuple[int, ...]) -> Value:
    return v if perm == tuple(range(len(perm))) else ctx.emit(Transpose(v, perm))


def sink_arg_reduction(ctx: Context, op: Any) -> Sequence[Value] | None:
    match ctx.producer(op.x):
        case Transpose(x=x, perm=perm):
            axis = perm[op.axis]
            y = ctx.emit(replace(op, x=x, axis=axis))
            kept = [a for a in perm if a != axis]
            order = sorted(kept)
            return [_transposed(ctx, y, tuple(order.index(a) for a in kept))]
    return None


def sink_along_axis(ctx: Context, op: Any) -> Sequence[Value] | None:
    """Softmax and cumulative sums run along the axis where it lies."""
    match ctx.producer(op.x):
        case Transpose(x=x, perm=perm):
            return [ctx.emit(Transpose(ctx.emit(replace(op, x=x, axis=perm[op.axis])), perm))]
    return None


def sink_movement(ctx: Context, op: Any) -> Sequence[Value] | None:
    """Pad, slice, dilate and flip the tensor as it lies."""
    match ctx.producer(op.x):
        case Transpose(x=x, perm=perm):
            pass
        case _:
            return None
    back = inverse(perm)

    def order(per_axis: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(per_axis[a] for a in back)

    match op:
        case Pad():
            inner: Op = Pad(x, order(op.low), order(op.high), op.value)
        case Slice():
            inner = Slice(x, order(op.starts), order(op.sizes), order(op.steps))
        case Dilate():
            inner = Dilate(x, order(op.factors))
        case _:
            inner = Flip(x, tuple(sorted(perm[a] for a in op.axes)))
    return [ctx.emit(Transpose(ctx.emit(inner), perm))]


def sink_concat(ctx: Context, op: Concat) -> Sequence[Value] | None:
    sources = [ctx.producer(v) for v in op.xs]
    perms = {s.perm for s in sources if isinstance(s, Transpose)}
    if len(perms) != 1 or not all(isinstance(s, Transpose) or _is_free(s) for s in sources):
        return None
    (perm,) = perms
    back = inverse(perm)
    joined = Concat(tuple(_moved(ctx, v, back) for v in op.xs), perm[op.axis])
    return [ctx.emit(Transpose(ctx.emit(joined), perm))]


# ---- towards the inputs ------------------------------------------------------------------------


@dataclass(slots=True)
class _Tree:
    """What a transpose meets above it: ops that would move, inverses, and other tensors."""

    ops: int = 0
    cancels: int = 0
    blocked: int = 0


def hoist(ctx: Context, op: Transpose) -> Sequence[Value] | None:
    """transpose(tree of elementwise ops), where transposes at its leaves cancel with it."""
    top = ctx.producer(op.x)
    if top is None or top.kind != "elementwise" or ctx.uses(op.x) != 1:
        return None
    found = _Tree()
    leaves: set[Value] = set()
    if not _survey(ctx, top, op.perm, found, leaves):
        return None
    # The transpose itself goes, and those that cancel; one comes for each other leaf.
    if not found.cancels or found.blocked >= 1 + found.cancels:
        return None
    return [_rebuild(ctx, op.x, op.perm, {})]


def _survey(ctx: Context, op: Op, perm: tuple[int, ...], found: _Tree, seen: set[Value]) -> bool:
    found.ops += 1
    if found.ops > _TREE_OPS:
        return False
    for v in op.operands:
        if v in seen:
            continue
        seen.add(v)
        match ctx.producer(v):
            case Transpose(x=x, perm=inner) if inner == inverse(perm):
                found.cancels += ctx.uses(v) == 1 and not _is_free(ctx.producer(x))
            case source if _is_free(source):
                pass
            case Op(kind="elementwise") as inner_op if ctx.uses(v) == 1:
                if not _survey(ctx, inner_op, perm, found, seen):
                    return False
            case _:
                found.blocked += 1
    return True


def _rebuild(ctx: Context, v: Value, perm: tuple[int, ...], done: dict[Value, Value]) -> Value:
    if v not in done:
        op = ctx.producer(v)
        if op is not None and op.kind == "elementwise" and ctx.uses(v) == 1:
            done[v] = ctx.emit(op.map_operands(lambda u: _rebuild(ctx, u, perm, done)))
        else:
            done[v] = _moved(ctx, v, perm)
    return done[v]


# ---- into the ops beside ------------------------------------------------------------------------

_HWIO_OF_OIHW = (2, 3, 1, 0)
_OIHW_OF_HWIO = inverse(_HWIO_OF_OIHW)


def read_oihw(ctx: Context, op: Any) -> Sequence[Value] | None:
    """A convolution reads weights as they are stored."""
    match ctx.producer(op.w):
        case Transpose(x=w, perm=perm) if op.weight_layout == "HWIO" and perm == _HWIO_OF_OIHW:
            return [ctx.emit(replace(op, w=w, weight_layout="OIHW"))]
    return None


def write_oihw(ctx: Context, op: Transpose) -> Sequence[Value] | None:
    """A weight gradient is written as the weights are stored."""
    match ctx.producer(op.x):
        case Conv2dWeightGrad(weight_layout="HWIO") as g if (
            op.perm == _OIHW_OF_HWIO and ctx.uses(op.x) == 1
        ):
            return [ctx.emit(replace(g, weight_layout="OIHW"))]
    return None


_SINKS: Rules = {
    **{cls: (sink_elementwise,) for cls in OPS.values() if cls.kind == "elementwise"},
    **{cls: (sink_reduction,) for cls in (Sum, Mean, Prod, Max, Min, LogSumExp)},
    **{cls: (sink_arg_reduction,) for cls in (ArgMax, ArgMin)},
    **{cls: (sink_movement,) for cls in (Pad, Slice, Dilate, Flip)},
    **{cls: (sink_along_axis,) for cls in (CumSum, Softmax, LogSoftmax)},
    Concat: (sink_concat,),
    Transpose: (hoist, write_oihw),
    Conv2d: (read_oihw,),
    Conv2dInputGrad: (read_oihw,),
}

RULES: Rules = merge_rules(MOVEMENT, _SINKS, ATTENTION)
