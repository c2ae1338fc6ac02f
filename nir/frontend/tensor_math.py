"""Arithmetic, elementwise functions and reductions of Tensors: PyTorch's names and rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from nir import ops
from nir.errors import DTypeError, ShapeError
from nir.frontend import emit
from nir.frontend.lazy import Cell
from nir.ir.dim import Poly, prod
from nir.ir.location import caller
from nir.ir.op import Op
from nir.ir.types import bool_, f32, i64

if TYPE_CHECKING:
    from nir.frontend.tensor import Tensor

# One axis, several, or None for all.
Axes: TypeAlias = "int | Sequence[int] | None"


class MathMethods:
    """What Tensor computes element by element or over axes."""

    _cell: Cell

    def _new(self, cell: Cell) -> Tensor:
        raise NotImplementedError

    def _unary(self, op: type[Op], floating: bool = False) -> Tensor:
        """``floating``: integers become f32 first, as in PyTorch."""
        x = self._cell
        return self._new(
            emit.one(op, emit.cast(x, f32) if floating and not x.dtype.is_float else x)
        )

    def _binary(self, op: type[Op], other: Any, reflected: bool = False) -> Tensor:
        y = operand(other)
        if y is None:
            return NotImplemented  # type: ignore[no-any-return]
        return self._new(emit.binary(op, *((y, self._cell) if reflected else (self._cell, y))))

    # ---- operators -----------------------------------------------------------------------------

    def __neg__(self) -> Tensor:
        return self._unary(ops.Neg)

    def __pos__(self) -> Tensor:
        return self._new(self._cell)

    def __abs__(self) -> Tensor:
        return self._unary(ops.Abs)

    def __invert__(self) -> Tensor:
        return self._unary(ops.LogicalNot if self._cell.dtype == bool_ else ops.BitNot)

    def __add__(self, other: Any) -> Tensor:
        return self._binary(ops.Add, other)

    def __radd__(self, other: Any) -> Tensor:
        return self._binary(ops.Add, other, reflected=True)

    def __sub__(self, other: Any) -> Tensor:
        return self._binary(ops.Sub, other)

    def __rsub__(self, other: Any) -> Tensor:
        return self._binary(ops.Sub, other, reflected=True)

    def __mul__(self, other: Any) -> Tensor:
        return self._binary(ops.Mul, other)

    def __rmul__(self, other: Any) -> Tensor:
        return self._binary(ops.Mul, other, reflected=True)

    def __truediv__(self, other: Any) -> Tensor:
        return self._binary(ops.Div, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return self._binary(ops.Div, other, reflected=True)

    def __floordiv__(self, other: Any) -> Tensor:
        return self._binary(ops.FloorDiv, other)

    def __rfloordiv__(self, other: Any) -> Tensor:
        return self._binary(ops.FloorDiv, other, reflected=True)

    def __mod__(self, other: Any) -> Tensor:
        return self._binary(ops.Mod, other)

    def __rmod__(self, other: Any) -> Tensor:
        return self._binary(ops.Mod, other, reflected=True)

    def __pow__(self, other: Any) -> Tensor:
        if isinstance(other, emit.NUMBERS):
            return self._new(emit.power(self._cell, other))
        return self._binary(ops.Pow, other)

    def __rpow__(self, other: Any) -> Tensor:
        return self._binary(ops.Pow, other, reflected=True)

    def __matmul__(self, other: Any) -> Tensor:
        y = operand(other)
        return self._new(emit.matmul(self._cell, y)) if isinstance(y, Cell) else NotImplemented

    def __rmatmul__(self, other: Any) -> Tensor:
        y = operand(other)
        return self._new(emit.matmul(y, self._cell)) if isinstance(y, Cell) else NotImplemented

    def __and__(self, other: Any) -> Tensor:
        return self._binary(ops.BitAnd, other)

    def __rand__(self, other: Any) -> Tensor:
        return self._binary(ops.BitAnd, other, reflected=True)

    def __or__(self, other: Any) -> Tensor:
        return self._binary(ops.BitOr, other)

    def __ror__(self, other: Any) -> Tensor:
        return self._binary(ops.BitOr, other, reflected=True)

    def __xor__(self, other: Any) -> Tensor:
        return self._binary(ops.BitXor, other)

    def __rxor__(self, other: Any) -> Tensor:
        return self._binary(ops.BitXor, other, reflected=True)

    def __lshift__(self, other: Any) -> Tensor:
        return self._binary(ops.ShiftLeft, other)

    def __rshift__(self, other: Any) -> Tensor:
        return self._binary(ops.ShiftRight, other)

    def __eq__(self, other: object) -> Tensor:  # type: ignore[override]
        return self._binary(ops.Eq, other)

    def __ne__(self, other: object) -> Tensor:  # type: ignore[override]
        return self._binary(ops.Ne, other)

    def __lt__(self, other: Any) -> Tensor:
        return self._binary(ops.Lt, other)

    def __le__(self, other: Any) -> Tensor:
        return self._binary(ops.Le, other)

    def __gt__(self, other: Any) -> Tensor:
        return self._binary(ops.Gt, other)

    def __ge__(self, other: Any) -> Tensor:
        return self._binary(ops.Ge, other)

    __hash__ = object.__hash__

    # ---- named arithmetic ----------------------------------------------------------------------

    def add(self, other: Any, alpha: float = 1) -> Tensor:
        return self._binary(ops.Add, other if alpha == 1 else other * alpha)

    def sub(self, other: Any, alpha: float = 1) -> Tensor:
        return self._binary(ops.Sub, other if alpha == 1 else other * alpha)

    def mul(self, other: Any) -> Tensor:
        return self._binary(ops.Mul, other)

    def div(self, other: Any) -> Tensor:
        return self._binary(ops.Div, other)

    def pow(self, exponent: Any) -> Tensor:
        return self.__pow__(exponent)

    def matmul(self, other: Any) -> Tensor:
        """(..., M, K) x (..., K, N), batch axes broadcast; a 1-d operand is a row or a column."""
        return self.__matmul__(other)

    def maximum(self, other: Any) -> Tensor:
        """The larger; nan if either is nan."""
        return self._binary(ops.Maximum, other)

    def minimum(self, other: Any) -> Tensor:
        """The smaller; nan if either is nan."""
        return self._binary(ops.Minimum, other)

    def clamp(self, min: Any = None, max: Any = None) -> Tensor:
        """Between ``min`` and ``max``, of which one may be None."""
        out = self._new(self._cell)
        out = out if min is None else out.maximum(min)
        return out if max is None else out.minimum(max)

    clip = clamp

    def eq(self, other: Any) -> Tensor:
        return self._binary(ops.Eq, other)

    def ne(self, other: Any) -> Tensor:
        return self._binary(ops.Ne, other)

    def lt(self, other: Any) -> Tensor:
        return self._binary(ops.Lt, other)

    def le(self, other: Any) -> Tensor:
        return self._binary(ops.Le, other)

    def gt(self, other: Any) -> Tensor:
        return self._binary(ops.Gt, other)

    def ge(self, other: Any) -> Tensor:
        return self._binary(ops.Ge, other)

    def logical_not(self) -> Tensor:
        return self._new(emit.one(ops.LogicalNot, emit.cast(self._cell, bool_)))

    def logical_and(self, other: Tensor) -> Tensor:
        return self._logical(ops.LogicalAnd, other)

    def logical_or(self, other: Tensor) -> Tensor:
        return self._logical(ops.LogicalOr, other)

    def logical_xor(self, other: Tensor) -> Tensor:
        return self._logical(ops.LogicalXor, other)

    def _logical(self, op: type[Op], other: Tensor) -> Tensor:
        return self._new(emit.one(op, *emit.together(op.name, self._cell, other._cell, to=bool_)))

    # ---- elementwise ---------------------------------------------------------------------------

    def neg(self) -> Tensor:
        return -self

    def abs(self) -> Tensor:
        return self._unary(ops.Abs)

    def sign(self) -> Tensor:
        """-1, 0 or 1; nan for nan."""
        return self._unary(ops.Sign)

    def exp(self) -> Tensor:
        return self._unary(ops.Exp, floating=True)

    def expm1(self) -> Tensor:
        """e**x - 1, accurate near 0."""
        return self._unary(ops.Expm1, floating=True)

    def log(self) -> Tensor:
        return self._unary(ops.Log, floating=True)

    def log1p(self) -> Tensor:
        """log(1 + x), accurate near 0."""
        return self._unary(ops.Log1p, floating=True)

    def sqrt(self) -> Tensor:
        return self._unary(ops.Sqrt, floating=True)

    def rsqrt(self) -> Tensor:
        """1 / sqrt(x)."""
        return self._unary(ops.Rsqrt, floating=True)

    def tanh(self) -> Tensor:
        return self._unary(ops.Tanh, floating=True)

    def sigmoid(self) -> Tensor:
        """1 / (1 + e**-x)."""
        return self._unary(ops.Sigmoid, floating=True)

    def erf(self) -> Tensor:
        return self._unary(ops.Erf, floating=True)

    def sin(self) -> Tensor:
        return self._unary(ops.Sin, floating=True)

    def cos(self) -> Tensor:
        return self._unary(ops.Cos, floating=True)

    def floor(self) -> Tensor:
        return self._rounded(ops.Floor)

    def ceil(self) -> Tensor:
        return self._rounded(ops.Ceil)

    def round(self) -> Tensor:
        """The nearest integer, halves to even."""
        return self._rounded(ops.Round)

    def trunc(self) -> Tensor:
        return self._rounded(ops.Trunc)

    def _rounded(self, op: type[Op]) -> Tensor:
        return self._unary(op) if self._cell.dtype.is_float else self._new(self._cell)

    def relu(self) -> Tensor:
        """max(x, 0); the derivative at 0 is 0."""
        return self._unary(ops.Relu)

    def silu(self) -> Tensor:
        """x sigmoid(x)."""
        return self * self.sigmoid()

    def square(self) -> Tensor:
        return self * self

    def reciprocal(self) -> Tensor:
        return 1.0 / self

    def isnan(self) -> Tensor:
        return self._unary(ops.IsNan) if self._cell.dtype.is_float else self != self

    def isinf(self) -> Tensor:
        return self.abs() == float("inf")

    def isfinite(self) -> Tensor:
        return self.abs() < float("inf")

    def masked_fill(self, mask: Tensor, value: Any) -> Tensor:
        """``value`` where ``mask`` holds, x elsewhere; x keeps its dtype."""
        x, v = self._cell, operand(value)
        if v is None:
            raise DTypeError(f"masked_fill: expected a number or a tensor, got {value!r}", caller())
        fill = (
            emit.cast(v, x.dtype) if isinstance(v, Cell) else emit.full(v, (), x.dtype, lift=True)
        )
        return self._new(emit.where(mask._cell, fill, x))

    # ---- reductions ----------------------------------------------------------------------------

    def _axes(self, dim: Axes, what: str) -> tuple[int, ...]:
        ndim = self._cell.ndim
        if dim is None:
            return tuple(range(ndim))
        given = (dim,) if not isinstance(dim, Sequence) else tuple(dim)
        axes = sorted(emit.axis_of(d, ndim, what) for d in given)
        if len(set(axes)) != len(axes):
            raise ShapeError(f"{what}: an axis occurs twice in {given}", caller())
        return tuple(axes)

    def _reduce(self, op: type[Op], dim: Axes, keepdim: bool, x: Cell | None = None) -> Tensor:
        axes = self._axes(dim, op.name)
        return self._kept(emit.one(op, x or self._cell, axes=axes), axes, keepdim)

    def _kept(self, out: Cell, axes: Sequence[int], keepdim: bool) -> Tensor:
        """``out``, with the reduced axes as axes of size 1 if they are to be kept."""
        if keepdim:
            shape = tuple(1 if a in axes else d for a, d in enumerate(self._cell.shape))
            out = emit.one(ops.Reshape, out, shape=shape)
        return self._new(out)

    def sum(self, dim: Axes = None, keepdim: bool = False) -> Tensor:
        """The sum; of integers and bools in i64."""
        x = self._cell
        return self._reduce(ops.Sum, dim, keepdim, x if x.dtype.is_float else emit.cast(x, i64))

    def prod(self, dim: Axes = None, keepdim: bool = False) -> Tensor:
        """The product; of integers and bools in i64."""
        x = self._cell
        return self._reduce(ops.Prod, dim, keepdim, x if x.dtype.is_float else emit.cast(x, i64))

    def mean(self, dim: Axes = None, keepdim: bool = False) -> Tensor:
        """The mean, of floats."""
        return self._reduce(ops.Mean, dim, keepdim)

    def var(self, dim: Axes = None, correction: int = 1, keepdim: bool = False) -> Tensor:
        """The sum of squared distances from the mean, divided by n - ``correction``."""
        axes = self._axes(dim, "var")
        moved = self - self.mean(axes, keepdim=True)
        total = (moved * moved).sum(axes, keepdim)
        count = prod(self._cell.shape[a] for a in axes) - correction
        if isinstance(count, int):
            return total / max(count, 0)
        return total / self._new(emit.full(count, (), total.dtype))

    def std(self, dim: Axes = None, correction: int = 1, keepdim: bool = False) -> Tensor:
        """The square root of `var`."""
        return self.var(dim, correction, keepdim).sqrt()

    def norm(self, dim: Axes = None, keepdim: bool = False) -> Tensor:
        """The square root of the sum of squares."""
        return (self * self).sum(dim, keepdim).sqrt()

    def amax(self, dim: Axes = None, keepdim: bool = False) -> Tensor:
        """The largest; ties share the gradient evenly."""
        return self._reduce(ops.Max, dim, keepdim)

    def amin(self, dim: Axes = None, keepdim: bool = False) -> Tensor:
        """The smallest; ties share the gradient evenly."""
        return self._reduce(ops.Min, dim, keepdim)

    def max(self, dim: int | None = None, keepdim: bool = False) -> Any:
        """The largest of all; with ``dim``, (values, first indices) along it."""
        return self._extreme(ops.Max, ops.ArgMax, dim, keepdim)

    def min(self, dim: int | None = None, keepdim: bool = False) -> Any:
        """The smallest of all; with ``dim``, (values, first indices) along it."""
        return self._extreme(ops.Min, ops.ArgMin, dim, keepdim)

    def _extreme(self, op: type[Op], arg: type[Op], dim: int | None, keepdim: bool) -> Any:
        if dim is None:
            return self._reduce(op, None, keepdim)
        # The value at the index, not the extreme: only the first of several ties has a gradient.
        where = self._arg(arg, dim, keepdim=True)
        axis = emit.axis_of(dim, self._cell.ndim, op.name)
        values = emit.one(ops.TakeAlong, self._cell, where._cell, axis=axis)
        if keepdim:
            return self._new(values), where
        shape = tuple(d for a, d in enumerate(self._cell.shape) if a != axis)
        return tuple(
            self._new(emit.one(ops.Reshape, c, shape=shape)) for c in (values, where._cell)
        )

    def argmax(self, dim: int | None = None, keepdim: bool = False) -> Tensor:
        """Index (i64) of the largest: the first of ties; of all elements, flattened, if no dim."""
        return self._arg(ops.ArgMax, dim, keepdim)

    def argmin(self, dim: int | None = None, keepdim: bool = False) -> Tensor:
        """Index (i64) of the smallest: the first of ties; of all elements, flattened, if no dim."""
        return self._arg(ops.ArgMin, dim, keepdim)

    def _arg(self, op: type[Op], dim: int | None, keepdim: bool) -> Tensor:
        x = self._cell
        if dim is None:
            flat = emit.one(ops.Reshape, x, shape=(x.type.size,))
            return self._kept(emit.one(op, flat, axis=0), range(x.ndim), keepdim)
        axis = emit.axis_of(dim, x.ndim, op.name)
        return self._kept(emit.one(op, x, axis=axis), (axis,), keepdim)

    def sort(
        self, dim: int = -1, descending: bool = False, stable: bool = True
    ) -> tuple[Tensor, Tensor]:
        """(sorted values, i64 indices) along ``dim``; nan counts as the largest.

        Equals keep their order, whatever ``stable`` says.
        """
        return self._ordered(ops.Sort, dim, descending=descending)

    def argsort(self, dim: int = -1, descending: bool = False, stable: bool = True) -> Tensor:
        """The i64 indices of `sort`."""
        return self.sort(dim, descending)[1]

    def topk(
        self, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
    ) -> tuple[Tensor, Tensor]:
        """(values, i64 indices) of the ``k`` largest or smallest along ``dim``.

        The largest come in descending, the smallest in ascending order, whatever ``sorted`` says;
        of equals the first ones; nan counts as the largest. Raises ShapeError where the axis is
        shorter than k.
        """
        return self._ordered(ops.TopK, dim, k=k, largest=largest)

    def _ordered(self, op: type[Op], dim: int, **attributes: Any) -> tuple[Tensor, Tensor]:
        axis = emit.axis_of(dim, self._cell.ndim, op.name)
        values, indices = emit.apply(op, self._cell, axis=axis, **attributes)
        return self._new(values), self._new(indices)

    def any(self, dim: Axes = None, keepdim: bool = False) -> Tensor:
        return self._reduce(ops.Max, dim, keepdim, emit.cast(self._cell, bool_))

    def all(self, dim: Axes = None, keepdim: bool = False) -> Tensor:
        return self._reduce(ops.Min, dim, keepdim, emit.cast(self._cell, bool_))

    def logsumexp(self, dim: Axes, keepdim: bool = False) -> Tensor:
        """log(sum(exp(x))), without overflow."""
        return self._reduce(ops.LogSumExp, dim, keepdim)

    def cumsum(self, dim: int) -> Tensor:
        """Sums of the elements up to and with each one."""
        x = self._cell
        x = x if x.dtype.is_float else emit.cast(x, i64)
        return self._new(emit.one(ops.CumSum, x, axis=emit.axis_of(dim, x.ndim, "cumsum")))

    def softmax(self, dim: int) -> Tensor:
        """exp(x) / sum(exp(x)) along ``dim``."""
        return self._along(ops.Softmax, dim)

    def log_softmax(self, dim: int) -> Tensor:
        """x - logsumexp(x) along ``dim``."""
        return self._along(ops.LogSoftmax, dim)

    def _along(self, op: type[Op], dim: int) -> Tensor:
        return self._new(emit.one(op, self._cell, axis=emit.axis_of(dim, self._cell.ndim, op.name)))


def operand(x: Any) -> Cell | emit.Number | None:
    """``x`` as an operand: a cell, a number (or a symbolic size), or None if it is neither."""
    if isinstance(x, MathMethods):
        return x._cell
    if isinstance(x, (*emit.NUMBERS, Poly)):
        return x
    if isinstance(x, np.ndarray | np.generic):
        return emit.stored(np.asarray(x))
    return None
