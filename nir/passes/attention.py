"""Attention reads and writes heads where projections leave them.

A projection gives [B, T, 3 H D]: its slices, the split into heads and the transposes to
(B, H, T, D) become the orders and first heads of `Attention`'s operands; the transposes of its
results go on towards the outputs. These rules run with those of `layout`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nir.frozen import replace
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


def read_part(ctx: Context, op: _Attention) -> Sequence[Value] | None:
    """The same where the projection was split into [.., 3, H, D] and an axis picks the part."""
    for i, v in enumerate((op.q, op.k, op.v)):
        drop = ctx.producer(v)
        moved = ctx.producer(drop.x) if isinstance(drop, Reshape) else None
        part = ctx.producer(moved.x) if isinstance(moved, Transpose) else moved
        if not isinstance(part, Slice) or part.result.type.ndim != 5:
            continue
        perm = moved.perm if isinstance(moved, Transpose) else (0, 1, 2, 3, 4)
        x, sizes = part.x, part.result.type.shape
        cut = [a for a in range(5) if sizes[a] != x.type.shape[a]]
        if len(cut) != 1 or sizes[cut[0]] != 1 or any(n != 1 for n in part.steps):
            continue
        (unit,) = cut
        kept = [a for a in perm if a != unit]
        label = dict(zip(kept, op.orders[i], strict=True))
        heads, start = x.type.shape[3], part.starts[unit]
        fits = v.type.shape == tuple(sizes[a] for a in kept) and (unit, label.get(3)) == (2, "H")
        if not fits or label.get(4) != "D" or not isinstance(start, int):
            continue
        every = ctx.emit(Reshape(x, (*x.type.shape[:2], x.type.shape[2] * heads, sizes[4])))
        new = _with(
            op,
            i,
            every,
            orders=_put(op.orders, i, "".join(label[a] for a in sorted(kept))),
            first=_put(op.first, i, op.first[i] + start * heads),
            heads=op.sizes().h,
        )
        results = list(ctx.emit_all(new))
        if isinstance(op, AttentionGrad):
            back = tuple(new.orders[i].index(a) for a in op.orders[i])
            results[i] = ctx.emit(Transpose(results[i], back))
        return results
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
    if not isinstance(grad, AttentionGrad) or not _joins(ctx, grad, found):
        return None
    if op.axis != op.xs[0].type.ndim - 1:
        return None
    joined = ctx.emit(replace(grad, joined=True))
    return [ctx.emit(Reshape(joined, op.result.type.shape))]


def stack_gradients(ctx: Context, op: Concat) -> Sequence[Value] | None:
    """The same where they are stacked along an axis of their own."""
    if len(op.xs) != 3:
        return None
    found: list[Value] = []
    perms = set()
    for x in op.xs:
        unit = ctx.producer(x)
        if not isinstance(unit, Reshape) or x.type.ndim != 5 or x.type.shape[op.axis] != 1:
            return None
        shape = x.type.shape
        if unit.x.type.shape != (*shape[: op.axis], *shape[op.axis + 1 :]):
            return None
        turned = ctx.producer(unit.x)
        match turned:
            case Transpose(x=inner, perm=perm):
                found.append(inner)
                perms.add(perm)
            case _:
                found.append(unit.x)
                perms.add((0, 1, 2, 3))
    grad = ctx.producer(found[0])
    if len(perms) != 1 or not isinstance(grad, AttentionGrad) or not _joins(ctx, grad, found):
        return None
    (perm,) = perms
    joined = ctx.emit(replace(grad, joined=True))
    *lead, heads, d = found[0].type.shape
    split = ctx.emit(Reshape(joined, (*lead, 3, heads, d)))
    order = [a if a < 2 else a + 1 for a in perm]
    order.insert(op.axis, 2)
    return [ctx.emit(Transpose(split, tuple(order)))]


def _joins(ctx: Context, grad: AttentionGrad, found: Sequence[Value]) -> bool:
    """Whether ``found`` are the gradients of q, k and v, used once, that may lie in one tensor."""
    return (
        not grad.joined
        and tuple(found) == grad.results
        and all(ctx.uses(v) == 1 for v in found)
        and len(set(grad.orders[:3])) == 1
        and grad.orders[0][2:] == "HD"
        and len({v.type.shape for v in found}) == 1
    )


RULES: Rules = {
    Attention: (read_transposed, read_slice, read_part, write_as_read),
    AttentionGrad: (read_transposed, read_slice, read_part),
    Concat: (join_gradients, stack_gradients),
}
