"""Elementwise methods and operators of `Tensor`, and the matrix product."""

from __future__ import annotations

import builtins
from typing import TYPE_CHECKING, Any

from nir import ops
from nir.frontend import arith
from nir.frontend.arith import NUMBERS
from nir.frontend.methods.base import TensorBase
from nir.ir.op import Op
from nir.ir.types import bool_

if TYPE_CHECKING:
    from nir.frontend.tensor import Tensor


class Elementwise(TensorBase):
    """Operands broadcast and promote as in PyTorch."""

    __slots__ = ()

    def _unary(self, op: type[Op]) -> Tensor:
        return self._new(arith.one(op, self._cell))

    def _binary(
        self,
        op: type[Op],
        other: Any,
        reflected: builtins.bool = False,
        as_float: builtins.bool = False,
    ) -> Tensor:
        y: Any = other if isinstance(other, NUMBERS) else arith.cell_of(other, self.dtype)
        x: Any = self._cell
        return self._new(arith.binary(op, *((y, x) if reflected else (x, y)), as_float=as_float))

    def neg(self) -> Tensor:
        return self._unary(ops.Neg)

    def abs(self) -> Tensor:
        return self._unary(ops.Abs)

    def sign(self) -> Tensor:
        return self._unary(ops.Sign)

    def exp(self) -> Tensor:
        return self._unary(ops.Exp)

    def expm1(self) -> Tensor:
        return self._unary(ops.Expm1)

    def log(self) -> Tensor:
        return self._unary(ops.Log)

    def log1p(self) -> Tensor:
        return self._unary(ops.Log1p)

    def sqrt(self) -> Tensor:
        return self._unary(ops.Sqrt)

    def rsqrt(self) -> Tensor:
        return self._unary(ops.Rsqrt)

    def tanh(self) -> Tensor:
        return self._unary(ops.Tanh)

    def sigmoid(self) -> Tensor:
        return self._unary(ops.Sigmoid)

    def erf(self) -> Tensor:
        return self._unary(ops.Erf)

    def sin(self) -> Tensor:
        return self._unary(ops.Sin)

    def cos(self) -> Tensor:
        return self._unary(ops.Cos)

    def floor(self) -> Tensor:
        return self._unary(ops.Floor)

    def ceil(self) -> Tensor:
        return self._unary(ops.Ceil)

    def round(self) -> Tensor:
        return self._unary(ops.Round)

    def trunc(self) -> Tensor:
        return self._unary(ops.Trunc)

    def relu(self) -> Tensor:
        return self._unary(ops.Relu)

    def logical_not(self) -> Tensor:
        return self._unary(ops.LogicalNot)

    def isnan(self) -> Tensor:
        return self._unary(ops.IsNan)

    def add(self, other: Any) -> Tensor:
        return self._binary(ops.Add, other)

    def sub(self, other: Any) -> Tensor:
        return self._binary(ops.Sub, other)

    def mul(self, other: Any) -> Tensor:
        return self._binary(ops.Mul, other)

    def maximum(self, other: Any) -> Tensor:
        return self._binary(ops.Maximum, other)

    def minimum(self, other: Any) -> Tensor:
        return self._binary(ops.Minimum, other)

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

    def floor_divide(self, other: Any) -> Tensor:
        return self._binary(ops.FloorDiv, other)

    def remainder(self, other: Any) -> Tensor:
        return self._binary(ops.Mod, other)

    def logical_and(self, other: Any) -> Tensor:
        return self._binary(ops.LogicalAnd, other)

    def logical_or(self, other: Any) -> Tensor:
        return self._binary(ops.LogicalOr, other)

    def logical_xor(self, other: Any) -> Tensor:
        return self._binary(ops.LogicalXor, other)

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

    def __floordiv__(self, other: Any) -> Tensor:
        return self._binary(ops.FloorDiv, other)

    def __rfloordiv__(self, other: Any) -> Tensor:
        return self._binary(ops.FloorDiv, other, reflected=True)

    def __mod__(self, other: Any) -> Tensor:
        return self._binary(ops.Mod, other)

    def __rmod__(self, other: Any) -> Tensor:
        return self._binary(ops.Mod, other, reflected=True)

    def __lshift__(self, other: Any) -> Tensor:
        return self._binary(ops.ShiftLeft, other)

    def __rlshift__(self, other: Any) -> Tensor:
        return self._binary(ops.ShiftLeft, other, reflected=True)

    def __rshift__(self, other: Any) -> Tensor:
        return self._binary(ops.ShiftRight, other)

    def __rrshift__(self, other: Any) -> Tensor:
        return self._binary(ops.ShiftRight, other, reflected=True)

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

    def __lt__(self, other: Any) -> Tensor:
        return self._binary(ops.Lt, other)

    def __le__(self, other: Any) -> Tensor:
        return self._binary(ops.Le, other)

    def __gt__(self, other: Any) -> Tensor:
        return self._binary(ops.Gt, other)

    def __ge__(self, other: Any) -> Tensor:
        return self._binary(ops.Ge, other)

    def __eq__(self, other: object) -> Tensor:  # type: ignore[override]
        return self._binary(ops.Eq, other)

    def __ne__(self, other: object) -> Tensor:  # type: ignore[override]
        return self._binary(ops.Ne, other)

    __hash__ = object.__hash__

    def __neg__(self) -> Tensor:
        return self._unary(ops.Neg)

    def __pos__(self) -> Tensor:
        return self._same()

    def __abs__(self) -> Tensor:
        return self._unary(ops.Abs)

    def __invert__(self) -> Tensor:
        return self._unary(ops.LogicalNot if self.dtype == bool_ else ops.BitNot)

    def __pow__(self, other: Any) -> Tensor:
        match other:
            case 2:
                return self * self
            case 1:
                return self._same()
            case 3:
                return self * self * self
            case 0.5 if self.dtype.is_float:
                return self.sqrt()
        return self._binary(ops.Pow, other, as_float=True)

    def __rpow__(self, other: Any) -> Tensor:
        return self._binary(ops.Pow, other, reflected=True, as_float=True)

    def pow(self, other: Any) -> Tensor:
        return self.__pow__(other)

    def __truediv__(self, other: Any) -> Tensor:
        return self._binary(ops.Div, other, as_float=True)

    def __rtruediv__(self, other: Any) -> Tensor:
        return self._binary(ops.Div, other, reflected=True, as_float=True)

    def div(self, other: Any) -> Tensor:
        return self.__truediv__(other)

    def clamp(self, min: Any = None, max: Any = None) -> Tensor:
        # By comparison, not maximum: at a bound the whole gradient flows, as in PyTorch.
        out = self._same()
        if min is not None:
            out = self._where(out < min, min, out)
        if max is not None:
            out = self._where(out > max, max, out)
        return out

    clip = clamp

    def isinf(self) -> Tensor:
        return self.abs() == builtins.float("inf")

    def isfinite(self) -> Tensor:
        return self.abs() < builtins.float("inf")

    def reciprocal(self) -> Tensor:
        return 1 / self

    def square(self) -> Tensor:
        return self * self

    def silu(self) -> Tensor:
        return self * self.sigmoid()

    def where(self, condition: Tensor, other: Any) -> Tensor:
        return self._where(condition, self, other)

    def masked_fill(self, mask: Tensor, value: Any) -> Tensor:
        return self._where(mask, value, self)

    def __matmul__(self, other: Tensor) -> Tensor:
        return self._new(arith.matmul(self._cell, arith.cell_of(other, self.dtype)))

    def __rmatmul__(self, other: Any) -> Tensor:
        return self._new(arith.matmul(arith.cell_of(other, self.dtype), self._cell))

    def matmul(self, other: Tensor) -> Tensor:
        return self @ other

    mm = bmm = matmul
