"""Methods of `Tensor` that change its shape, and indexing."""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nir import ops
from nir.errors import ShapeError
from nir.frontend import arith
from nir.frontend.arith import shown
from nir.frontend.methods.base import TensorBase, flat
from nir.ir.dim import Dim, exact_div, prod
from nir.ir.location import caller
from nir.ir.types import i64

if TYPE_CHECKING:
    from nir.frontend.tensor import Tensor


class Movement(TensorBase):
    """The same elements in another shape or order."""

    __slots__ = ()

    def reshape(self, *shape: Any) -> Tensor:
        return self._apply(ops.Reshape, shape=self._resolve(flat(shape)))

    view = reshape

    def _resolve(self, shape: Sequence[Any]) -> tuple[Dim, ...]:
        if shape.count(-1) > 1:
            raise ShapeError(f"reshape: expected at most one -1, got {shown(shape)}", caller())
        if -1 not in shape:
            return tuple(shape)
        rest = prod(d for d in shape if not (isinstance(d, int) and d == -1))
        missing = exact_div(self.numel(), rest)
        if missing is None:
            raise ShapeError(
                f"reshape: {self.numel()} elements of {self.type} do not divide "
                f"into {shown(shape)}",
                caller(),
            )
        return tuple(missing if isinstance(d, int) and d == -1 else d for d in shape)

    def permute(self, *dims: Any) -> Tensor:
        perm = tuple(self._axis(d) for d in flat(dims))
        return self._apply(ops.Transpose, perm=perm)

    def transpose(self, dim0: builtins.int, dim1: builtins.int) -> Tensor:
        perm = list(range(self.ndim))
        a, b = self._axis(dim0), self._axis(dim1)
        perm[a], perm[b] = b, a
        return self.permute(*perm)

    swapaxes = transpose

    @property
    def T(self) -> Tensor:
        return self.permute(*reversed(range(self.ndim)))

    @property
    def mT(self) -> Tensor:
        return self.transpose(-1, -2)

    def flatten(self, start_dim: builtins.int = 0, end_dim: builtins.int = -1) -> Tensor:
        if self.ndim == 0:
            return self.reshape(1)
        a, b = self._axis(start_dim), self._axis(end_dim)
        return self.reshape(*self.shape[:a], prod(self.shape[a : b + 1]), *self.shape[b + 1 :])

    def squeeze(self, dim: Any = None) -> Tensor:
        axes = self._axes(dim)
        return self.reshape(*(d for a, d in enumerate(self.shape) if a not in axes or d != 1))

    def unsqueeze(self, dim: builtins.int) -> Tensor:
        a = self._axis(dim, self.ndim + 1)
        return self.reshape(*self.shape[:a], 1, *self.shape[a:])

    def expand(self, *shape: Any) -> Tensor:
        """Broadcast axes of size 1 (and new ones in front) to ``shape``; -1 keeps a size."""
        target = list(flat(shape))
        offset = len(target) - self.ndim
        if offset < 0:
            raise ShapeError(f"expand: {shown(target)} has fewer axes than {self.type}", caller())
        for a, d in enumerate(self.shape):
            if isinstance(target[offset + a], int) and target[offset + a] == -1:
                target[offset + a] = d
        return self._new(arith.broadcast(self._cell, tuple(target)))

    broadcast_to = expand

    def expand_as(self, other: Tensor) -> Tensor:
        return self.expand(other.shape)

    def repeat_interleave(self, repeats: builtins.int, dim: builtins.int) -> Tensor:
        a = self._axis(dim)
        wide = self.unsqueeze(a + 1)
        shape = (*self.shape[: a + 1], repeats, *self.shape[a + 1 :])
        return wide.expand(shape).reshape(
            *self.shape[:a], self.shape[a] * repeats, *self.shape[a + 1 :]
        )

    def flip(self, *dims: Any) -> Tensor:
        return self._apply(ops.Flip, axes=self._axes(flat(dims)))

    def split(self, size: Any, dim: builtins.int = 0) -> tuple[Tensor, ...]:
        """Pieces of ``size`` (the last may be smaller), or of the sizes of a list."""
        a = self._axis(dim)
        n = self._static(self.shape[a], "split")
        sizes = (
            [min(size, n - i) for i in range(0, n, size)] if isinstance(size, int) else list(size)
        )
        if sum(sizes) != n:
            raise ShapeError(f"split: sizes {sizes} do not add up to {n}", caller())
        starts = np.cumsum([0, *sizes[:-1]]).tolist()
        return tuple(self.narrow(a, s, m) for s, m in zip(starts, sizes, strict=True))

    def chunk(self, chunks: builtins.int, dim: builtins.int = 0) -> tuple[Tensor, ...]:
        n = self._static(self.shape[self._axis(dim)], "chunk")
        return self.split(-(-n // chunks), dim)

    def unbind(self, dim: builtins.int = 0) -> tuple[Tensor, ...]:
        a = self._axis(dim)
        return tuple(t.squeeze(a) for t in self.split(1, a))

    def narrow(self, dim: builtins.int, start: Dim, length: Dim) -> Tensor:
        a = self._axis(dim)
        starts = tuple(start if b == a else 0 for b in range(self.ndim))
        sizes = tuple(length if b == a else d for b, d in enumerate(self.shape))
        return self._apply(ops.Slice, starts=starts, sizes=sizes, steps=(1,) * self.ndim)

    def roll(self, shifts: builtins.int, dims: builtins.int) -> Tensor:
        a = self._axis(dims)
        n = self._static(self.shape[a], "roll")
        k = shifts % n if n else 0
        pieces = [self.narrow(a, n - k, k)._cell, self.narrow(a, 0, n - k)._cell]
        return self._new(arith.concat(pieces, a)) if k else self._same()

    def tril(self, diagonal: builtins.int = 0) -> Tensor:
        return self._triangle(diagonal, lower=True)

    def triu(self, diagonal: builtins.int = 0) -> Tensor:
        return self._triangle(diagonal, lower=False)

    def _triangle(self, diagonal: builtins.int, lower: builtins.bool) -> Tensor:
        shape = self.shape[-2:]
        row = self._source(ops.Iota, shape=shape, axis=0, dtype=i64)
        column = self._source(ops.Iota, shape=shape, axis=1, dtype=i64)
        keep = column <= row + diagonal if lower else column >= row + diagonal
        return self._where(keep, self, 0)

    def __iter__(self) -> Iterator[Tensor]:
        return iter([self[i] for i in range(len(self))])

    def __getitem__(self, index: Any) -> Tensor:
        items = index if isinstance(index, tuple) else (index,)
        return self._new(arith.index(self._cell, [arith.index_item(i) for i in items]))
