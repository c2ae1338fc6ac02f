"""Attention reads and writes heads where projections leave them.

A projection gives [B, T, 3 H D]: its slices, the split into heads and the transposes to
(B, H, T, D) become the orders and first heads of `Attention`'s operands; the transposes of its
results go on towards the outputs. These rules run with those of `layout`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from nir.ir.op import Value
from nir.ops import Attention, AttentionGrad, Concat, Reshape, Slice, Transpose
from nir.ops.attention import AXES, order_from
from nir.passes.rewrite import Context, Rules

_Attention = Attention | AttentionGrad


def _put(entries: tuple[Any, ...], i: int, entry: Any) -> Any:
    return (*entries[:i], entry, *entries[i + 1 :])


def _with(op: Any, i: int, v: Value, **attributes: Any) -> Any:
    """``op`` with operand q, k, v or ct replaced."""
    return replace(op, **{("q", "k", "v", "ct")[i]: v}, **attributes)


def read_transposed(ctx: Context, op: _Attention) -> Sequence[Value] | None:
    """An operand is read in the order in which it lies; its gradient is written in that order."""
    given = (op.q, op.k, op.v, op.ct) if isinstance(op, AttentionGrad) else (op.q, op.k, op.v)
    for i, v in enumerate(given):
        match ctx.producer(v):
            case Transpose(x=x, perm=perm) if perm[3] == 3 and not getattr(op, "joined", False):
                order = "".join(op.orders[i][perm.index(a)] for a in range(4))
                new = _with(op, i, x, orders=_put(op.orders, i, order))
                results = list(ctx.emit_all(new))
                if isinstance(op, AttentionGrad) and i < 3:
                    back = tuple(order.index(a) for a in op.orders[i])
                    results[i] = ctx.emit(Transpose(results[i], back))
                return results
    return None


def read_slice(ctx: Context, op: _Attention) -> Sequence[Value] | None:
    """Heads are read where they lie among those of a joint projection."""
    for i, v in enumerate((op.q, op.k, op.v)):
        split = ctx.producer(v)
        part = ctx.producer(split.x) if isinstance(split, Reshape) else None
        if not isinstance(part, Slice) or op.orders[i][2:] != "HD":
            continue
        *lead, heads, d = v.type.shape
        whole, start = part.x.type.shape[-1], part.starts[-1]
        if not (isinstance(d, int) and isinstance(whole, int) and isinstance(start, int)):
            continue
        alone = part.result.type.shape == (*part.x.type.shape[:-1], heads * d)
        if not alone or part.steps[-1] != 1 or whole % d or start % d:
            continue
        every = ctx.emit(Reshape(part.x, (*lead, whole // d, d)))
        first = op.first[i] + start // d
        new = _with(op, i, every, first=_put(op.first, i, first), heads=op.sizes().h)
        return ctx.emit_all(new)
    return None


def write_as_read(ctx: Context, op: Attention) -> Sequence[Value] | None:
    """The result lies as the queries do, and a transpose behind it travels on."""
    order = op.orders[0]
    if op.orders[3] != AXES or order == AXES:
        return None
    out, lse = ctx.emit_all(replace(op, orders=_put(op.orders, 3, order)))
    return [ctx.emit(Transpose(out, order_from(order))), lse]


def join_gradients(ctx: Context, op: Concat) -> Sequence[Value] | None:
    """The gradients of q, k and v, side by side as the projection made them, are one result."""
    if len(op.xs) != 3:
        return None
    found: list[Value] = []
    for x in op.xs:
        match ctx.producer(x):
            case Reshape(x=inner):
                found.append(inner)
            case _:
                return None
    grad = ctx.producer(found[0])
    if (
        not isinstance(grad, AttentionGrad)
        or grad.joined
        or tuple(found) != grad.results
        or any(ctx.uses(v) != 1 for v in found)
        or len(set(grad.orders[:3])) != 1
        or grad.orders[0][2:] != "HD"
        or len({v.type.shape for v in found}) != 1
        or op.axis != op.xs[0].type.ndim - 1
    ):
        return None
    joined = ctx.emit(replace(grad, joined=True))
    return [ctx.emit(Reshape(joined, op.result.type.shape))]


RULES: Rules = {
    Attention: (read_transposed, read_slice, write_as_read),
    AttentionGrad: (read_transposed, read_slice),
    Concat: (join_gradients,),
}
