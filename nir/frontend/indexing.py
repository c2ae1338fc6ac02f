"""Indexing: x[...] by integers, slices, None, Ellipsis and integer tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nir import ops
from nir.errors import DTypeError, IndexRangeError, ShapeError, TraceError
from nir.frontend import emit
from nir.frontend.lazy import Cell
from nir.ir.dim import Dim, Poly, Shape, dominates, prod
from nir.ir.location import caller
from nir.ir.types import bool_, i64


@dataclass
class _Plan:
    """An index, taken apart: one slice, one flip, one reshape, then the index tensors."""

    starts: list[Dim] = field(default_factory=list)
    sizes: list[Dim] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    flips: list[int] = field(default_factory=list)
    shape: list[Dim] = field(default_factory=list)  # integers dropped, None come in
    takes: list[tuple[int, Cell]] = field(default_factory=list)  # (axis of shape, indices)


def index(x: Cell, items: Sequence[Any]) -> Cell:
    """x[items]; index tensors are cells."""
    plan = _plan(x, _expanded(x, list(items)))
    out = x
    if tuple(plan.sizes) != x.shape or any(s != 1 for s in plan.steps):
        out = emit.one(
            ops.Slice,
            out,
            starts=tuple(plan.starts),
            sizes=tuple(plan.sizes),
            steps=tuple(plan.steps),
        )
    if plan.flips:
        out = emit.one(ops.Flip, out, axes=tuple(plan.flips))
    if out.shape != tuple(plan.shape):
        out = emit.one(ops.Reshape, out, shape=tuple(plan.shape))
    return _take(out, plan.takes) if plan.takes else out


def _expanded(x: Cell, items: list[Any]) -> list[Any]:
    """The items with Ellipsis written out, one for each axis (and None)."""
    for i in items:
        if isinstance(i, Cell) and i.dtype == bool_:
            raise TraceError(
                "a bool mask as an index gives a size that depends on values: use nir.where, "
                "masked_fill or a product with the mask",
                caller(),
            )
    used = sum(i is not None and i is not Ellipsis for i in items)
    dots = [k for k, i in enumerate(items) if i is Ellipsis]
    if used > x.ndim or len(dots) > 1:
        what = f"{used} indices" if used > x.ndim else "more than one ..."
        raise ShapeError(f"index: {what} for {x.type}", caller())
    at = dots[0] if dots else len(items)
    items[at : at + 1] = [slice(None)] * (x.ndim - used)
    return items


def _plan(x: Cell, items: list[Any]) -> _Plan:
    plan = _Plan()
    axis = 0
    for i in items:
        if i is None:
            plan.shape.append(1)
            continue
        n = x.shape[axis]
        start: Dim = 0
        size, step = n, 1
        match i:
            case slice():
                start, size, step, flipped = _slice(i, n, axis)
                if flipped:
                    plan.flips.append(axis)
                plan.shape.append(size)
            case Cell():
                if not i.dtype.is_integer:
                    raise DTypeError(f"index: expected integer indices, got {i.type}", caller())
                plan.takes.append((len(plan.shape), i))
                plan.shape.append(n)
            case _:
                start, size = _position(i, n, axis, x), 1
        plan.starts.append(start)
        plan.sizes.append(size)
        plan.steps.append(step)
        axis += 1
    return plan


def _position(i: Any, n: Dim, axis: int, x: Cell) -> Dim:
    if isinstance(i, Poly):
        return i
    if isinstance(i, (bool, float)) or not hasattr(i, "__index__"):
        raise ShapeError(
            f"index: expected integers, slices, None, ... or integer tensors, got {i!r}", caller()
        )
    k: int = i.__index__()
    if isinstance(n, int) and not -n <= k < n:
        raise IndexRangeError(
            f"index: expected an index from {-n} to {n - 1} on axis {axis} of {x.type}, got {k}",
            caller(),
        )
    return n + k if k < 0 else k


def _slice(s: slice, n: Dim, axis: int) -> tuple[Dim, Dim, int, bool]:
    """(start, size, step, reversed) of a slice of an axis of size n."""
    step = 1 if s.step is None else s.step
    if step == 0:
        raise ShapeError(f"index: the slice step on axis {axis} is 0", caller())
    if isinstance(n, int) and not isinstance(s.start, Poly) and not isinstance(s.stop, Poly):
        picked = range(*s.indices(n))
        if not picked:
            return 0, 0, abs(step), False
        return min(picked[0], picked[-1]), len(picked), abs(step), step < 0
    if s.start is None and s.stop is None and step == -1:
        return 0, n, 1, True
    if step < 1:
        raise ShapeError(
            f"index: expected a positive step for the symbolic axis {axis} of size {n}, got {step}",
            caller(),
        )
    start, stop = _end(s.start, n, 0), _end(s.stop, n, n)
    # Python clips slices to the axis. Here the size would depend on how, so a slice must fit the
    # axis whatever the size, or follow its end (x[1:], x[:-1]) and be checked by the run.
    if not dominates(n, stop) or not dominates(start, 0):
        raise ShapeError(
            f"index: the slice {s.start}:{s.stop} may leave the symbolic axis {axis} of size {n}",
            caller(),
        )
    return start, (stop - start + step - 1) // step, step, False


def _end(at: Any, n: Dim, default: Dim) -> Dim:
    if at is None:
        return default
    return n + at if isinstance(at, int) and at < 0 else at


def _take(x: Cell, takes: list[tuple[int, Cell]]) -> Cell:
    """x at index tensors; several broadcast together, and their axes become one place.

    As in numpy, that place is the first axis where the indexed axes are not neighbours.
    """
    if len(takes) == 1:
        ((axis, indices),) = takes
        return emit.one(ops.Take, x, indices, axis=axis)
    axes = [a for a, _ in takes]
    place = axes[0]
    if axes != list(range(place, place + len(axes))):
        rest = tuple(a for a in range(x.ndim) if a not in axes)
        x = emit.one(ops.Transpose, x, perm=(*axes, *rest))
        place = 0
    sizes = x.shape[place : place + len(axes)]
    shape = emit.broadcast_shapes("index", *(i.shape for _, i in takes))
    flat = emit.one(
        ops.Reshape, x, shape=(*x.shape[:place], prod(sizes), *x.shape[place + len(axes) :])
    )
    total: Cell | None = None
    for (_, i), n in zip(takes, sizes, strict=True):
        own = _checked(emit.broadcast(emit.cast(i, i64), shape, "index"), n, prod(sizes))
        size = emit.full(n, shape, i64)
        total = own if total is None else emit.one(
            ops.Add, emit.one(ops.Mul, total, size), own
        )  # fmt: skip
    assert total is not None
    return emit.one(ops.Take, flat, total, axis=place)


def _checked(i: Cell, n: Dim, total: Dim) -> Cell:
    """Indices with negative ones counted from the end.

    One out of range becomes so large that it is out of range of all axes together, and the run
    raises IndexRangeError: taken as it is, it would name another element.
    """
    size, zero = emit.full(n, i.shape, i64), emit.full(0, i.shape, i64)
    wrapped = emit.one(ops.Where, emit.one(ops.Lt, i, zero), emit.one(ops.Add, i, size), i)
    inside = emit.one(
        ops.LogicalAnd, emit.one(ops.Ge, wrapped, zero), emit.one(ops.Lt, wrapped, size)
    )
    return emit.one(ops.Where, inside, wrapped, emit.full(2 * total, i.shape, i64))


def static(shape: Shape, what: str) -> tuple[int, ...]:
    """``shape`` as numbers; TraceError names a symbolic size."""
    for d in shape:
        if not isinstance(d, int):
            raise TraceError(f"{what} needs a known size, got the symbolic {d}", caller())
    return shape  # type: ignore[return-value]
