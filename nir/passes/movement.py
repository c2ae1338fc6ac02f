"""Rules of `simplify` for ops that only move elements, and for the products that absorb them."""

from __future__ import annotations

from collections.abc import Sequence

from nir.ir.dim import Dim, Shape, prod
from nir.ir.op import Value
from nir.ops import (
    Broadcast,
    Concat,
    Dilate,
    Flip,
    Full,
    Matmul,
    Pad,
    Reshape,
    Slice,
    Sum,
    Transpose,
)
from nir.ops.expr import Expr
from nir.passes.rewrite import Context, Rules

Out = Sequence[Expr | Value] | None


def squeezed(shape: Sequence[Dim]) -> tuple[Dim, ...]:
    """``shape`` without its axes of size 1."""
    return tuple(d for d in shape if d != 1)


def inverse(perm: Sequence[int]) -> tuple[int, ...]:
    """The permutation that undoes ``perm``."""
    return tuple(sorted(range(len(perm)), key=perm.__getitem__))


# ---- transpose ---------------------------------------------------------------------------------


def transpose(ctx: Context, op: Transpose) -> Out:
    shape = op.x.type.shape
    if op.perm == tuple(range(len(op.perm))):
        return [op.x]
    moved = [a for a in op.perm if shape[a] != 1]
    if moved == sorted(moved):  # only axes of size 1 change places
        return [ctx.emit(Reshape(op.x, tuple(shape[a] for a in op.perm)))]
    match ctx.producer(op.x):
        case Transpose(x=x, perm=inner):
            return [ctx.emit(Transpose(x, tuple(inner[a] for a in op.perm)))]
        case Full(value=value):
            return [ctx.full(value, op.result.type)]
        case Broadcast() as b:
            return [transpose_of_broadcast(ctx, b, op.perm)]
        case Reshape(x=x) if squeezed(x.type.shape) == squeezed(shape) and ctx.uses(op.x) == 1:
            return _transpose_of_unit_reshape(ctx, op, x)
        case Matmul() as m if ctx.uses(op.x) == 1 and _swaps_last(op.perm):
            swapped = Matmul(m.rhs, m.lhs, not m.transpose_rhs, not m.transpose_lhs)
            return None if m.rhs.type.layout else [ctx.emit(swapped)]
    return None


def transpose_of_broadcast(ctx: Context, b: Broadcast, perm: tuple[int, ...]) -> Value:
    """Moving the small operand, or nothing at all, instead of the repeated one."""
    places = [perm.index(a) for a in b.axes]
    order = sorted(range(len(places)), key=places.__getitem__)
    small = b.x if order == sorted(order) else ctx.emit(Transpose(b.x, tuple(order)))
    shape = tuple(b.shape[a] for a in perm)
    return ctx.emit(Broadcast(small, shape, tuple(sorted(places))))


def _transpose_of_unit_reshape(ctx: Context, op: Transpose, x: Value) -> Out:
    """Axes of size 1 are added or dropped after the transpose, so that the transposes meet."""
    # Number the axes that carry elements: they are the same ones, in order, on both sides.
    outer = [a for a, d in enumerate(op.x.type.shape) if d != 1]
    inner = [a for a, d in enumerate(x.type.shape) if d != 1]
    ones = [a for a, d in enumerate(x.type.shape) if d == 1]
    order = [outer.index(a) for a in op.perm if a in outer]
    perm = (*(inner[i] for i in order), *ones)
    return [ctx.emit(Reshape(ctx.emit(Transpose(x, perm)), op.result.type.shape))]


def _swaps_last(perm: tuple[int, ...]) -> bool:
    n = len(perm)
    return n >= 2 and perm == (*range(n - 2), n - 1, n - 2)


# ---- reshape and broadcast ---------------------------------------------------------------------


def reshape(ctx: Context, op: Reshape) -> Out:
    if op.shape == op.x.type.shape:
        return [op.x]
    match ctx.producer(op.x):
        case Reshape(x=x):
            return [ctx.emit(Reshape(x, op.shape))]
        case Full(value=value):
            return [ctx.full(value, op.result.type)]
        case Broadcast(x=x, shape=shape, axes=axes):
            return reshape_of_broadcast(ctx, op, x, shape, axes)
    return None


def reshape_of_broadcast(
    ctx: Context, op: Reshape, x: Value, shape: Shape, axes: tuple[int, ...]
) -> Out:
    """reshape(broadcast(x)) is broadcast(reshape(x)) where repeated axes stay apart from x's."""
    groups = axis_groups(shape, op.shape)
    if groups is None:
        return None
    sizes: list[Dim] = []
    places: list[int] = []
    for old, new in groups:
        own = [a for a in old if a in axes]
        repeated = [a for a in old if a not in axes and shape[a] != 1]
        if repeated and any(shape[a] != 1 for a in own):
            return None
        if not repeated:
            sizes.extend(op.shape[a] for a in new)
            places.extend(new)
    small = ctx.emit(Reshape(x, tuple(sizes)))
    return [ctx.emit(Broadcast(small, op.shape, tuple(places)))]


def axis_groups(old: Shape, new: Shape) -> list[tuple[list[int], list[int]]] | None:
    """The finest pairing of runs of axes with equal products: [2,3,B] and [6,B] pair 01-0, 2-1.

    None where sizes cannot be matched in order, as between B*4 and 2*B*2 split differently.
    """
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        left, right = [], []
        a: Dim = 1
        b: Dim = 1
        # Take at least one axis that carries elements on each side, then grow the smaller run.
        while i < len(old) and a == 1:
            left.append(i)
            a, i = a * old[i], i + 1
        while j < len(new) and b == 1:
            right.append(j)
            b, j = b * new[j], j + 1
        while a != b:
            grow_left = _grows(a, b)
            if grow_left is None:
                return None
            if grow_left:
                if i == len(old):
                    return None
                left.append(i)
                a, i = a * old[i], i + 1
            else:
                if j == len(new):
                    return None
                right.append(j)
                b, j = b * new[j], j + 1
        if (a == 0) or (b == 0):
            return None
        groups.append((left, right))
    return groups


def _grows(a: Dim, b: Dim) -> bool | None:
    """Whether run ``a`` must take the next axis to catch up with ``b``; None if it is unclear."""
    if isinstance(a, int) and isinstance(b, int):
        return a < b
    if isinstance(a, int):
        return True
    if isinstance(b, int):
        return False
    degree_a, degree_b = _degree(a), _degree(b)
    if degree_a != degree_b:
        return degree_a < degree_b
    lead_a, lead_b = a.terms[0], b.terms[0]
    return lead_a[1] < lead_b[1] if lead_a[0] == lead_b[0] and lead_a[1] != lead_b[1] else None


def _degree(d: Dim) -> int:
    return 0 if isinstance(d, int) else max(sum(p for _, p in m) for m, _ in d.terms)


def broadcast(ctx: Context, op: Broadcast) -> Out:
    if op.axes == tuple(range(len(op.shape))):
        return [op.x]
    match ctx.producer(op.x):
        case Broadcast(x=x, axes=inner):
            return [ctx.emit(Broadcast(x, op.shape, tuple(op.axes[a] for a in inner)))]
        case Full(value=value):
            return [ctx.full(value, op.result.type)]
        case Reshape(shape=shape) if 1 in shape:
            # Axes of size 1 come from the broadcast itself.
            keep = [a for a, d in enumerate(shape) if d != 1]
            small = ctx.emit(Reshape(op.x, squeezed(shape)))
            return [ctx.emit(Broadcast(small, op.shape, tuple(op.axes[a] for a in keep)))]
    return None


# ---- slice, flip, pad, concat, dilate ----------------------------------------------------------


def slice_(ctx: Context, op: Slice) -> Out:
    shape = op.x.type.shape
    if op.sizes == shape and all(s == 0 for s in op.starts) and all(s == 1 for s in op.steps):
        return [op.x]
    match ctx.producer(op.x):
        case Full(value=value):
            return [ctx.full(value, op.result.type)]
        case Slice(x=x, starts=starts, steps=steps):
            at = tuple(s + o * k for s, o, k in zip(starts, op.starts, steps, strict=True))
            step = tuple(a * b for a, b in zip(steps, op.steps, strict=True))
            return [ctx.emit(Slice(x, at, op.sizes, step))]
        case Broadcast(x=x, axes=axes):
            starts, sizes = (tuple(f[a] for a in axes) for f in (op.starts, op.sizes))
            part = ctx.emit(Slice(x, starts, sizes, tuple(op.steps[a] for a in axes)))
            return [ctx.emit(Broadcast(part, op.sizes, axes))]
        case Pad(x=x, low=low) if all(s == 1 for s in op.steps):
            inside = [
                _within(s - lo, n, d)
                for s, lo, n, d in zip(op.starts, low, op.sizes, x.type.shape, strict=True)
            ]
            if all(inside):
                at = tuple(s - lo for s, lo in zip(op.starts, low, strict=True))
                return [ctx.emit(Slice(x, at, op.sizes, op.steps))]
        case Concat(xs=xs, axis=axis):
            return _slice_of_concat(ctx, op, xs, axis)
    return None


def _within(start: Dim, size: Dim, extent: Dim) -> bool:
    """start .. start + size lies in 0 .. extent, for every assignment of sizes."""
    if start == 0 and size == extent:
        return True
    if not isinstance(start, int) or start < 0:
        return False
    room = extent - start - size
    return isinstance(room, int) and room >= 0


def _slice_of_concat(ctx: Context, op: Slice, xs: tuple[Value, ...], axis: int) -> Out:
    if op.steps[axis] != 1:
        return None
    offset: Dim = 0
    for x in xs:
        extent = x.type.shape[axis]
        start = op.starts[axis] - offset
        if _within(start, op.sizes[axis], extent):
            starts = (*op.starts[:axis], start, *op.starts[axis + 1 :])
            return [ctx.emit(Slice(x, starts, op.sizes, op.steps))]
        offset = offset + extent
    return None


def flip(ctx: Context, op: Flip) -> Out:
    axes = tuple(a for a in op.axes if op.x.type.shape[a] != 1)
    if not axes:
        return [op.x]
    match ctx.producer(op.x):
        case Full():
            return [op.x]
        case Flip(x=x, axes=inner):
            both = tuple(sorted(set(axes) ^ set(inner)))
            return [ctx.emit(Flip(x, both)) if both else x]
        case Broadcast(x=x, axes=kept) if not set(axes) <= set(kept):
            own = tuple(kept.index(a) for a in axes if a in kept)
            part = ctx.emit(Flip(x, own)) if own else x
            return [ctx.emit(Broadcast(part, op.result.type.shape, kept))]
    return [ctx.emit(Flip(op.x, axes))] if axes != op.axes else None


def pad(ctx: Context, op: Pad) -> Out:
    if all(d == 0 for d in (*op.low, *op.high)):
        return [op.x]
    match ctx.producer(op.x):
        case Full(value=value) if _same_number(value, op.value):
            return [ctx.full(value, op.result.type)]
        case Pad(x=x, low=low, high=high, value=value) if _same_number(value, op.value):
            return [
                ctx.emit(
                    Pad(
                        x,
                        tuple(a + b for a, b in zip(low, op.low, strict=True)),
                        tuple(a + b for a, b in zip(high, op.high, strict=True)),
                        op.value,
                    )
                )
            ]
    return None


def _same_number(a: object, b: object) -> bool:
    """Equal, with -0 apart from 0."""
    return (
        isinstance(a, (bool, int, float))
        and isinstance(b, (bool, int, float))
        and (float(a).hex() == float(b).hex())
    )


def concat(ctx: Context, op: Concat) -> Out:
    xs = tuple(x for x in op.xs if x.type.shape[op.axis] != 0)
    if len(xs) == 1:
        return [xs[0]]
    if xs and len(xs) < len(op.xs):
        return [ctx.emit(Concat(xs, op.axis))]
    flat: list[Value] = []
    for x in op.xs:
        inner = ctx.producer(x)
        nested = isinstance(inner, Concat) and inner.axis == op.axis and ctx.uses(x) == 1
        flat.extend(inner.xs if nested and isinstance(inner, Concat) else (x,))
    if len(flat) > len(op.xs):
        return [ctx.emit(Concat(tuple(flat), op.axis))]
    return _concat_of_slices(ctx, op)


def _concat_of_slices(ctx: Context, op: Concat) -> Out:
    """Neighbouring slices of one tensor are one slice."""
    merged: list[Value] = []
    previous: Slice | None = None
    for x in op.xs:
        piece = ctx.producer(x)
        if (
            isinstance(piece, Slice)
            and previous is not None
            and piece.x is previous.x
            and piece.steps == previous.steps
            and all(s == 1 for s in piece.steps)
            and _follows(previous, piece, op.axis)
        ):
            a = op.axis
            sizes = (
                *previous.sizes[:a],
                previous.sizes[a] + piece.sizes[a],
                *previous.sizes[a + 1 :],
            )
            previous = Slice(previous.x, previous.starts, sizes, previous.steps)
            merged[-1] = ctx.emit(previous)
        else:
            previous = piece if isinstance(piece, Slice) else None
            merged.append(x)
    if len(merged) == len(op.xs):
        return None
    return [merged[0] if len(merged) == 1 else ctx.emit(Concat(tuple(merged), op.axis))]


def _follows(first: Slice, second: Slice, axis: int) -> bool:
    for a, (s, n, t, m) in enumerate(
        zip(first.starts, first.sizes, second.starts, second.sizes, strict=True)
    ):
        if (t != s + n) if a == axis else (s != t or n != m):
            return False
    return True


def dilate(ctx: Context, op: Dilate) -> Out:
    return [op.x] if all(f == 1 for f in op.factors) else None


# ---- products ----------------------------------------------------------------------------------


def matmul_of_transpose(ctx: Context, op: Matmul) -> Out:
    """A transpose of the last two axes is a flag of the product."""
    lhs, rhs = op.lhs, op.rhs
    flags = [op.transpose_lhs, op.transpose_rhs]
    for i, v in enumerate((lhs, rhs)):
        match ctx.producer(v):
            case Transpose(x=x, perm=perm) if _swaps_last(perm):
                lhs, rhs = (x, rhs) if i == 0 else (lhs, x)
                flags[i] = not flags[i]
    if (lhs, rhs) == (op.lhs, op.rhs):
        return None
    return [ctx.emit(Matmul(lhs, rhs, *flags))]


def matmul_of_repeated(ctx: Context, op: Matmul) -> Out:
    """One matrix for every batch: the batch axes become rows of a single product."""
    match ctx.producer(op.rhs):
        case Broadcast(x=x, axes=axes) if x.type.ndim == 2 and not op.transpose_lhs:
            n = op.rhs.type.ndim
            if axes != (n - 2, n - 1):
                return None
        case _:
            return None
    *rows, k = op.lhs.type.shape
    flat = ctx.emit(Reshape(op.lhs, (prod(rows), k)))
    product = ctx.emit(Matmul(flat, x, False, op.transpose_rhs))
    return [ctx.emit(Reshape(product, op.result.type.shape))]


def sum_of_matmuls(ctx: Context, op: Sum) -> Out:
    """Products summed over their batch are one product over batch and k together."""
    match ctx.producer(op.x):
        case Matmul(lhs=a, rhs=b, transpose_lhs=True, transpose_rhs=False) if ctx.uses(op.x) == 1:
            pass
        case _:
            return None
    batch = op.x.type.ndim - 2
    if not batch or op.axes != tuple(range(batch)):
        return None
    rows = prod(a.type.shape[:-1])
    left = ctx.emit(Reshape(a, (rows, a.type.shape[-1])))
    right = ctx.emit(Reshape(b, (rows, b.type.shape[-1])))
    return [ctx.emit(Matmul(left, right, True, False))]


def sum_of_transpose(ctx: Context, op: Sum) -> Out:
    """A reduction reads the tensor as it lies where the axes that stay keep their order."""
    match ctx.producer(op.x):
        case Transpose(x=x, perm=perm):
            pass
        case _:
            return None
    kept = [perm[a] for a in range(len(perm)) if a not in op.axes]
    if kept != sorted(kept):
        return None
    return [ctx.emit(type(op)(x, tuple(sorted(perm[a] for a in op.axes))))]


MOVEMENT: Rules = {
    Transpose: (transpose,),
    Reshape: (reshape,),
    Broadcast: (broadcast,),
    Slice: (slice_,),
    Flip: (flip,),
    Pad: (pad,),
    Concat: (concat,),
    Dilate: (dilate,),
    Matmul: (matmul_of_transpose, matmul_of_repeated),
    Sum: (sum_of_transpose, sum_of_matmuls),
}
