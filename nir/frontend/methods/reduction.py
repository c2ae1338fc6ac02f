"""Reductions of `Tensor`, and indexing by tensors."""

from __future__ import annotations

import builtins
from typing import TYPE_CHECKING, Any

from nir import ops
from nir.frontend.methods.elementwise import Elementwise
from nir.frontend.methods.movement import Movement
from nir.ir.dim import prod
from nir.ir.op import Op
from nir.ir.types import bool_, i64

if TYPE_CHECKING:
    from nir.frontend.tensor import Tensor


class Reduction(Movement, Elementwise):
    """``dim`` is an axis, several, or None for all; ``keepdim`` keeps them with size 1."""

    __slots__ = ()

    def _reduce(self, op: type[Op], dim: Any, keepdim: builtins.bool) -> Tensor:
        axes = self._axes(dim)
        out = self._apply(op, axes=axes)
        if keepdim:
            out = out.reshape(*(1 if a in axes else d for a, d in enumerate(self.shape)))
        return out

    def sum(self, dim: Any = None, keepdim: builtins.bool = False) -> Tensor:
        x = self.to(i64) if not self.dtype.is_float else self._same()
        return x._reduce(ops.Sum, dim, keepdim)

    def mean(self, dim: Any = None, keepdim: builtins.bool = False) -> Tensor:
        return self._reduce(ops.Mean, dim, keepdim)

    def prod(self, dim: Any = None, keepdim: builtins.bool = False) -> Tensor:
        x = self.to(i64) if not self.dtype.is_float else self._same()
        return x._reduce(ops.Prod, dim, keepdim)

    def amax(self, dim: Any = None, keepdim: builtins.bool = False) -> Tensor:
        return self._reduce(ops.Max, dim, keepdim)

    def amin(self, dim: Any = None, keepdim: builtins.bool = False) -> Tensor:
        return self._reduce(ops.Min, dim, keepdim)

    def max(self, dim: builtins.int | None = None, keepdim: builtins.bool = False) -> Any:
        """The largest; with ``dim``, (values, indices) along it."""
        return self._extreme(ops.Max, ops.ArgMax, dim, keepdim)

    def min(self, dim: builtins.int | None = None, keepdim: builtins.bool = False) -> Any:
        """The smallest; with ``dim``, (values, indices) along it."""
        return self._extreme(ops.Min, ops.ArgMin, dim, keepdim)

    def _extreme(
        self, op: type[Op], arg: type[Op], dim: builtins.int | None, keepdim: builtins.bool
    ) -> Any:
        if dim is None:
            return self._reduce(op, None, keepdim)
        return self._reduce(op, dim, keepdim), self._arg(arg, dim, keepdim)

    def _arg(self, op: type[Op], dim: builtins.int | None, keepdim: builtins.bool) -> Tensor:
        x = self.flatten() if dim is None else self._same()
        a = 0 if dim is None else self._axis(dim)
        out = x._apply(op, axis=a)
        return out.unsqueeze(a) if keepdim and dim is not None else out

    def argmax(self, dim: builtins.int | None = None, keepdim: builtins.bool = False) -> Tensor:
        return self._arg(ops.ArgMax, dim, keepdim)

    def argmin(self, dim: builtins.int | None = None, keepdim: builtins.bool = False) -> Tensor:
        return self._arg(ops.ArgMin, dim, keepdim)

    def any(self, dim: Any = None, keepdim: builtins.bool = False) -> Tensor:
        return self.to(bool_)._reduce(ops.Max, dim, keepdim)

    def all(self, dim: Any = None, keepdim: builtins.bool = False) -> Tensor:
        return self.to(bool_)._reduce(ops.Min, dim, keepdim)

    def var(
        self, dim: Any = None, correction: builtins.int = 1, keepdim: builtins.bool = False
    ) -> Tensor:
        """The mean squared distance from the mean, with n - ``correction`` in place of n."""
        moved = self - self.mean(self._axes(dim), keepdim=True)
        count = prod(self.shape[a] for a in self._axes(dim))
        total = (moved * moved).sum(self._axes(dim), keepdim)
        return total / self._source(
            ops.Full, value=count - correction, shape=total.shape, dtype=self.dtype
        )

    def std(
        self, dim: Any = None, correction: builtins.int = 1, keepdim: builtins.bool = False
    ) -> Tensor:
        return self.var(dim, correction, keepdim).sqrt()

    def norm(self, dim: Any = None, keepdim: builtins.bool = False) -> Tensor:
        return (self * self).sum(dim, keepdim).sqrt()

    def logsumexp(self, dim: Any, keepdim: builtins.bool = False) -> Tensor:
        return self._reduce(ops.LogSumExp, dim, keepdim)

    def cumsum(self, dim: builtins.int) -> Tensor:
        return self._apply(ops.CumSum, axis=self._axis(dim))

    def softmax(self, dim: builtins.int) -> Tensor:
        return self._apply(ops.Softmax, axis=self._axis(dim))

    def log_softmax(self, dim: builtins.int) -> Tensor:
        return self._apply(ops.LogSoftmax, axis=self._axis(dim))

    # ---- indexing by tensors -------------------------------------------------------------------

    def gather(self, dim: builtins.int, index: Tensor) -> Tensor:
        return self._apply(ops.TakeAlong, index, axis=self._axis(dim))

    def index_select(self, dim: builtins.int, index: Tensor) -> Tensor:
        return self._apply(ops.Take, index, axis=self._axis(dim))

    def take(self, index: Tensor, dim: builtins.int) -> Tensor:
        return self.index_select(dim, index)

    def scatter_add(self, dim: builtins.int, index: Tensor, src: Tensor) -> Tensor:
        return self._apply(ops.ScatterAddAlong, index, src, axis=self._axis(dim))

    def index_add(self, dim: builtins.int, index: Tensor, source: Tensor) -> Tensor:
        return self._apply(ops.ScatterAdd, index, source, axis=self._axis(dim))
