"""Shapes, indexing, gathering and splitting of Tensors: PyTorch's names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nir import ops
from nir.errors import NirError, ShapeError, TraceError
from nir.frontend import emit, indexing
from nir.frontend.emit import axis_of, shown
from nir.frontend.tensor_math import MathMethods
from nir.ir.dim import Dim, Poly, Shape, exact_div, prod
from nir.ir.location import caller
from nir.ir.op import Op
from nir.ir.types import i64

if TYPE_CHECKING:
    from nir.frontend.tensor import Tensor


def sizes(args: Sequence[Any]) -> tuple[Any, ...]:
    """Sizes or axes given one by one, or as one sequence."""
    first = args[0] if len(args) == 1 else args
    return tuple(first) if isinstance(first, Sequence) else tuple(args)


class ShapeMethods(MathMethods):
    """What Tensor does to shapes and with indices."""

    def _shaped(self, shape: Sequence[Dim]) -> Tensor:
        shape = tuple(shape)
        x = self._cell
        return self._new(x if x.shape == shape else emit.one(ops.Reshape, x, shape=shape))

    # ---- reshaping -----------------------------------------------------------------------------

    def reshape(self, *shape: Any) -> Tensor:
        """The same elements in another shape; one size may be -1."""
        wanted = sizes(shape)
        unknown = [i for i, d in enumerate(wanted) if isinstance(d, int) and d == -1]
        if len(unknown) > 1:
            raise ShapeError(f"reshape: expected at most one -1, got {shown(wanted)}", caller())
        if unknown:
            (at,) = unknown
            known = prod(d for i, d in enumerate(wanted) if i != at)
            size = self._cell.type.size
            missing = exact_div(size, known) if known != 0 else 0 if size == 0 else None
            if missing is None:
                raise ShapeError(
                    f"reshape: the {size} elements of {self._cell.type} do not fill "
                    f"{shown(wanted)}",
                    caller(),
                )
            wanted = (*wanted[:at], missing, *wanted[at + 1 :])
        return self._shaped(wanted)

    view = reshape

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Tensor:
        """Axes ``start_dim`` to ``end_dim`` as one."""
        shape = self._cell.shape
        if not shape:
            return self._shaped((1,))
        a, b = (axis_of(d, len(shape), "flatten") for d in (start_dim, end_dim))
        if a > b:
            raise ShapeError(f"flatten: start_dim {a} comes after end_dim {b}", caller())
        return self._shaped((*shape[:a], prod(shape[a : b + 1]), *shape[b + 1 :]))

    def unflatten(self, dim: int, sizes: Sequence[Any]) -> Tensor:
        """Axis ``dim`` as several, of which one size may be -1."""
        shape = self._cell.shape
        axis = axis_of(dim, len(shape), "unflatten")
        return self.reshape(*shape[:axis], *sizes, *shape[axis + 1 :])

    def squeeze(self, dim: Any = None) -> Tensor:
        """Without axes of size 1: all of them, or those among ``dim``."""
        axes = self._axes(dim, "squeeze")
        return self._shaped([d for a, d in enumerate(self._cell.shape) if a not in axes or d != 1])

    def unsqueeze(self, dim: int) -> Tensor:
        """With a new axis of size 1 at ``dim``."""
        shape = self._cell.shape
        axis = axis_of(dim, len(shape) + 1, "unsqueeze")
        return self._shaped((*shape[:axis], 1, *shape[axis:]))

    def expand(self, *shape: Any) -> Tensor:
        """Axes of size 1, and new ones in front, repeated to ``shape``; -1 keeps a size."""
        wanted = list(sizes(shape))
        offset = len(wanted) - self._cell.ndim
        for axis, d in enumerate(self._cell.shape, offset):
            if axis >= 0 and isinstance(wanted[axis], int) and wanted[axis] == -1:
                wanted[axis] = d
        return self._new(emit.broadcast(self._cell, tuple(wanted)))

    broadcast_to = expand

    def expand_as(self, other: Tensor) -> Tensor:
        return self.expand(other.shape)

    # ---- order ---------------------------------------------------------------------------------

    def permute(self, *dims: Any) -> Tensor:
        """Axis i of the result is axis dims[i]."""
        ndim = self._cell.ndim
        perm = tuple(axis_of(d, ndim, "permute") for d in sizes(dims))
        return self._new(emit.one(ops.Transpose, self._cell, perm=perm))

    def transpose(self, dim0: int, dim1: int) -> Tensor:
        """Two axes exchanged."""
        perm = list(range(self._cell.ndim))
        a, b = (axis_of(d, len(perm), "transpose") for d in (dim0, dim1))
        perm[a], perm[b] = b, a
        return self.permute(perm)

    swapaxes = transpose

    @property
    def T(self) -> Tensor:
        """All axes in reverse order."""
        return self.permute(tuple(reversed(range(self._cell.ndim))))

    @property
    def mT(self) -> Tensor:
        """The last two axes exchanged."""
        return self.transpose(-2, -1)

    def flip(self, *dims: Any) -> Tensor:
        """The order of the elements reversed along ``dims``."""
        return self._new(emit.one(ops.Flip, self._cell, axes=self._axes(sizes(dims), "flip")))

    def roll(self, shifts: int, dims: int) -> Tensor:
        """The elements moved on by ``shifts`` along ``dims``; those that leave come in again."""
        axis = axis_of(dims, self._cell.ndim, "roll")
        n = self._size(axis, "roll")
        k = shifts % n if n else 0
        if k == 0:
            return self._new(self._cell)
        parts = [self.narrow(axis, n - k, k), self.narrow(axis, 0, n - k)]
        return self._new(emit.concat([p._cell for p in parts], axis, "roll"))

    def repeat_interleave(self, repeats: int, dim: int) -> Tensor:
        """Each element ``repeats`` times in a row along ``dim``."""
        shape = self._cell.shape
        axis = axis_of(dim, len(shape), "repeat_interleave")
        wide = self.unsqueeze(axis + 1).expand(*shape[: axis + 1], repeats, *shape[axis + 1 :])
        return wide.flatten(axis, axis + 1)

    def repeat(self, *counts: Any) -> Tensor:
        """The whole tensor tiled ``counts`` times along each axis."""
        times = sizes(counts)
        if len(times) < self._cell.ndim:
            raise ShapeError(
                f"repeat: expected at least {self._cell.ndim} counts, got {times}", caller()
            )
        shape = (*(1,) * (len(times) - self._cell.ndim), *self._cell.shape)
        pairs = [x for d in shape for x in (1, d)]
        tiled = [x for n, d in zip(times, shape, strict=True) for x in (n, d)]
        out = [n * d for n, d in zip(times, shape, strict=True)]
        return self.reshape(pairs).expand(tiled).reshape(out)

    # ---- parts ---------------------------------------------------------------------------------

    def __getitem__(self, index: Any) -> Tensor:
        """x[...] by integers, slices with steps, None, Ellipsis and integer tensors.

        IndexRangeError: an integer out of range, at once; in an index tensor, when it is run.
        """
        items = index if isinstance(index, tuple) else (index,)
        return self._new(indexing.index(self._cell, [_item(i) for i in items]))

    def __setitem__(self, index: Any, value: Any) -> None:
        raise NirError(
            "tensors are not assigned to by index: use nir.where, nir.cat or index_add", caller()
        )

    def __len__(self) -> int:
        if not self._cell.shape:
            raise ShapeError("len: a 0-d tensor has no length", caller())
        return self._size(0, "len")

    def __iter__(self) -> Iterator[Tensor]:
        return iter([self[i] for i in range(self._size(0, "iteration"))])

    def _size(self, axis: int, what: str) -> int:
        if not self._cell.shape:
            raise ShapeError(f"{what}: a 0-d tensor has no axes", caller())
        d = self._cell.shape[axis]
        if isinstance(d, Poly):
            raise TraceError(
                f"{what} needs a known size, and axis {axis} of {self._cell.type} has the "
                f"symbolic {d}",
                caller(),
            )
        return d

    def narrow(self, dim: int, start: Dim, length: Dim) -> Tensor:
        """``length`` elements from ``start`` along ``dim``."""
        x = self._cell
        axis = axis_of(dim, x.ndim, "narrow")
        starts = tuple(start if a == axis else 0 for a in range(x.ndim))
        part = tuple(length if a == axis else d for a, d in enumerate(x.shape))
        steps = (1,) * x.ndim
        return self._new(emit.one(ops.Slice, x, starts=starts, sizes=part, steps=steps))

    def split(self, split_size: int | Sequence[int], dim: int = 0) -> tuple[Tensor, ...]:
        """Parts of ``split_size`` (the last may be smaller), or of the sizes in a list."""
        axis = axis_of(dim, self._cell.ndim, "split")
        n = self._size(axis, "split")
        if isinstance(split_size, int):
            parts = [min(split_size, n - i) for i in range(0, n, split_size)] or [0]
        else:
            parts = list(split_size)
        if sum(parts) != n:
            raise ShapeError(f"split: expected sizes that add up to {n}, got {parts}", caller())
        starts = [0, *np.cumsum(parts)[:-1].tolist()]
        return tuple(self.narrow(axis, s, m) for s, m in zip(starts, parts, strict=True))

    def chunk(self, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
        """``chunks`` parts of equal size, the last ones possibly smaller or missing."""
        n = self._size(axis_of(dim, self._cell.ndim, "chunk"), "chunk")
        return self.split(max(1, -(-n // chunks)), dim)

    def unbind(self, dim: int = 0) -> tuple[Tensor, ...]:
        """The slices along ``dim``."""
        axis = axis_of(dim, self._cell.ndim, "unbind")
        return tuple(part.squeeze(axis) for part in self.split(1, axis))

    def tril(self, diagonal: int = 0) -> Tensor:
        """0 above the ``diagonal`` of the last two axes."""
        return self._triangle(ops.Le, diagonal, "tril")

    def triu(self, diagonal: int = 0) -> Tensor:
        """0 below the ``diagonal`` of the last two axes."""
        return self._triangle(ops.Ge, diagonal, "triu")

    def _triangle(self, op: type[Op], diagonal: int, what: str) -> Tensor:
        shape: Shape = self._cell.shape[-2:]
        if len(shape) < 2:
            raise ShapeError(f"{what}: expected a matrix, got {self._cell.type}", caller())
        row, column = (emit.one(ops.Iota, shape=shape, axis=a, dtype=i64) for a in (0, 1))
        keep = emit.binary(op, column, emit.binary(ops.Add, row, diagonal))
        return self._new(emit.where(keep, self._cell, 0))

    # ---- by index tensors ----------------------------------------------------------------------

    def gather(self, dim: int, index: Tensor) -> Tensor:
        """out[..i..] = x[..index[..i..]..] along ``dim``; shapes agree elsewhere."""
        axis = axis_of(dim, self._cell.ndim, "gather")
        return self._new(emit.one(ops.TakeAlong, self._cell, index._cell, axis=axis))

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """x at ``index`` along ``dim``."""
        axis = axis_of(dim, self._cell.ndim, "index_select")
        return self._new(emit.one(ops.Take, self._cell, index._cell, axis=axis))

    def scatter_add(self, dim: int, index: Tensor, src: Tensor) -> Tensor:
        """x with src[..i..] added at index[..i..] along ``dim``; repeated indices add up."""
        axis = axis_of(dim, self._cell.ndim, "scatter_add")
        cells = self._cell, index._cell, src._cell
        return self._new(emit.one(ops.ScatterAddAlong, *cells, axis=axis))

    def index_copy(self, dim: int, index: Tensor, source: Tensor) -> Tensor:
        """x with the slices of ``source`` in the places ``index`` along ``dim``."""
        axis = axis_of(dim, self._cell.ndim, "index_copy")
        cells = self._cell, index._cell, source._cell
        return self._new(emit.one(ops.Put, *cells, axis=axis))

    def index_add(self, dim: int, index: Tensor, source: Tensor) -> Tensor:
        """x with the slices of ``source`` added at ``index`` along ``dim``."""
        axis = axis_of(dim, self._cell.ndim, "index_add")
        cells = self._cell, index._cell, source._cell
        return self._new(emit.one(ops.ScatterAdd, *cells, axis=axis))


def _item(i: Any) -> Any:
    """An index as `indexing` takes it: tensors, arrays and lists of integers as cells."""
    if isinstance(i, MathMethods):
        return i._cell
    if isinstance(i, list | np.ndarray):
        return emit.stored(np.asarray(i))
    return i
