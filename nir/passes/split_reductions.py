"""Reductions in the forms that loops have: over trailing axes ("row") or leading ones ("column").

A long column reduction (a bias gradient, batch-norm statistics) is split in two: `ReducePartial`
reduces chunks of rows, which threads share, and a small reduction joins the partial results. The
chunk depends on the shape alone, so the bits do not depend on the number of threads. Reductions
over other axes become sequences of the two forms; where axes in the middle are left, a transpose
brings them to the front, which a loop follows by strides.

requires: `decompose`.  ensures: the axes of each Sum, Prod, Max and Min are leading or trailing,
and no column reduction has many rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nir.ir.dim import Dim, prod
from nir.ir.graph import Graph
from nir.ir.op import Value
from nir.ir.program import Target
from nir.ops import Max, Min, Prod, Sum, Transpose
from nir.ops.fused import ReducePartial
from nir.passes.rewrite import Context, Rules, everywhere, rewrite

# Elements of a chunk: 64 KB of f32 stay in L2 and outweigh the cost of waking a thread.
_CHUNK_ELEMENTS = 1 << 14
_MIN_CHUNK = 16
_MAX_CHUNK = 1024
# From here on a row is worth the tree that joins its lanes.
_LONG_ROW = 256


def split_reductions(graph: Graph, target: Target) -> Graph:
    """``graph`` with every reduction in row or column form, long ones in two steps."""
    return everywhere(graph, lambda g: rewrite(g, RULES))


def chunk_rows(rows: Dim, columns: Dim) -> int | None:
    """Rows of a chunk of a reduction of ``rows`` rows of ``columns`` columns; None: no split."""
    wide = columns if isinstance(columns, int) else 256
    chunk = _MIN_CHUNK
    while chunk < _MAX_CHUNK and chunk * wide < _CHUNK_ELEMENTS:
        chunk *= 2
    # At least a few chunks, or nothing is gained. A symbolic number of rows may be large.
    return None if isinstance(rows, int) and rows < 4 * chunk else chunk


def leading_or_trailing(axes: tuple[int, ...], ndim: int) -> str | None:
    """ "row", "column", or None for axes that are neither all trailing nor all leading."""
    if axes == tuple(range(ndim - len(axes), ndim)):
        return "row"
    return "column" if axes == tuple(range(len(axes))) else None


def split(ctx: Context, op: Any) -> Sequence[Value] | None:
    """One step of bringing a reduction into form."""
    x, axes, ndim = op.x, op.axes, op.x.type.ndim
    match leading_or_trailing(axes, ndim):
        case "row" if len(axes) == ndim and ndim > 1:
            return _split_full(ctx, op)
        case "row":
            return None
        case "column":
            return _split_column(ctx, op)
    trailing = _run(reversed(range(ndim)), axes)
    if trailing:
        inner = ctx.emit(type(op)(x, tuple(sorted(trailing))))
        return [ctx.emit(type(op)(inner, tuple(a for a in axes if a not in trailing)))]
    # Axes in the middle: bring all of them to the front, in order.
    perm = (*axes, *(a for a in range(ndim) if a not in axes))
    front = ctx.emit(Transpose(x, perm))
    return [ctx.emit(type(op)(front, tuple(range(len(axes)))))]


def _run(order: Any, axes: tuple[int, ...]) -> list[int]:
    found: list[int] = []
    for a in order:
        if a not in axes:
            break
        found.append(a)
    return found


def _split_column(ctx: Context, op: Any) -> Sequence[Value] | None:
    leading = len(op.axes)
    if isinstance(ctx.producer(op.x), ReducePartial):
        return None
    shape = op.x.type.shape
    chunk = chunk_rows(prod(shape[:leading]), prod(shape[leading:]))
    if chunk is None:
        return None
    partial = ctx.emit(ReducePartial(op.x, op.name, chunk, leading))
    return [ctx.emit(type(op)(partial, (0,)))]


def _split_full(ctx: Context, op: Any) -> Sequence[Value] | None:
    """A reduction to a scalar: long rows each, or else chunks of short ones, then their results."""
    shape = op.x.type.shape
    if isinstance(shape[-1], int) and shape[-1] >= _LONG_ROW:
        inner = ctx.emit(type(op)(op.x, (len(shape) - 1,)))
        return [ctx.emit(type(op)(inner, tuple(range(len(shape) - 1))))]
    if isinstance(ctx.producer(op.x), ReducePartial):
        return None
    chunk = chunk_rows(prod(shape[:-1]), shape[-1])
    if chunk is None:
        return None
    partial = ctx.emit(ReducePartial(op.x, op.name, chunk, op.x.type.ndim - 1))
    return [ctx.emit(type(op)(partial, (0, 1)))]


RULES: Rules = {cls: (split,) for cls in (Sum, Prod, Max, Min)}
