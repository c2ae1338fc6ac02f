"""`Tensor`: n-dimensional arrays with PyTorch's methods, computed when they are looked at.

Every op is recorded (see `nir.frontend.lazy`); shapes and dtypes are known at once, values when
`numpy`, `item`, `print`, `bool` or an array protocol asks for them. Broadcasting and promotion
follow PyTorch: Python numbers take the tensor's dtype where their kind allows it.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np

from nir import ops
from nir.errors import DeviceError, DTypeError, NirError, ShapeError, StaleTensorError, TraceError
from nir.frontend import arith, lazy
from nir.frontend.arith import NUMBERS, shown
from nir.frontend.gradients import gradients, leaves_of, register_leaf
from nir.frontend.lazy import Cell
from nir.ir.dim import Dim, exact_div, prod
from nir.ir.location import caller
from nir.ir.op import Op
from nir.ir.types import DType, TensorType, bool_, dtype, f32, i64


class Tensor:
    """An array of one dtype. Immutable but for rebinding: in-place methods give it a new value.

    ``data`` is anything numpy can make an array of; float64 from Python numbers becomes f32, as in
    PyTorch; a float64 array stays f64.
    """

    __slots__ = ("__dict__", "__weakref__", "_cell", "_grad")
    __array_priority__ = 1000

    def __init__(
        self, data: Any, *, dtype: Any = None, requires_grad: builtins.bool = False
    ) -> None:
        self._grad: Tensor | None = None
        if isinstance(data, Tensor):
            t = data.detach() if dtype is None else data.detach().to(dtype)
            self._cell = _own_cell(t._cell)
        else:
            self._cell = arith.stored(_as_array(data, dtype))
        if requires_grad:
            self.requires_grad_(True)

    @classmethod
    def _of(cls, cell: Cell) -> Tensor:
        t = object.__new__(Tensor)
        t._cell, t._grad = cell, None
        return t

    # ---- facts ---------------------------------------------------------------------------------

    @property
    def type(self) -> TensorType:
        return self._cell.value.type

    @property
    def shape(self) -> tuple[Dim, ...]:
        return self.type.shape

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    @property
    def device(self) -> str:
        return self.type.device

    @property
    def ndim(self) -> builtins.int:
        return len(self.shape)

    def dim(self) -> builtins.int:
        return len(self.shape)

    def size(self, dim: builtins.int | None = None) -> Any:
        return self.shape if dim is None else self.shape[self._axis(dim)]

    def numel(self) -> Dim:
        return prod(self.shape)

    def __len__(self) -> builtins.int:
        if not self.shape:
            raise TypeError("a 0-d tensor has no length")
        return self._static(self.shape[0], "len()")

    def _static(self, d: Dim, what: str) -> builtins.int:
        if not isinstance(d, int):
            raise TraceError(f"{what} needs a known size, got the symbolic {d}", caller())
        return d

    # ---- values --------------------------------------------------------------------------------

    def _view(self) -> np.ndarray:
        """The values where they are stored; runs what is needed first."""
        if self._cell.stale is None and self._cell.data is None:
            lazy.realize([self._cell])
        if self._cell.stale is not None:
            raise StaleTensorError(
                f"this tensor's buffer was donated at {self._cell.stale} and holds something else",
                caller(),
            )
        data = self._cell.data
        assert data is not None
        shape = tuple(self._static(d, "a value") for d in self.shape)
        view: np.ndarray = data.numpy(self.dtype.numpy, shape)
        return view

    def numpy(self) -> np.ndarray:
        """The values as an array of their own."""
        return np.array(self._view())

    def __array__(self, dtype: Any = None, copy: builtins.bool | None = None) -> np.ndarray:
        out = self.numpy()
        return out if dtype is None else out.astype(dtype)

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self._view().__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[builtins.int, builtins.int]:
        return (1, 0)

    def item(self) -> Any:
        """The only element as a Python number."""
        if self.numel() != 1:
            raise ShapeError(f"item: expected one element, got shape {shown(self.shape)}", caller())
        self._look("item()", "tensor arithmetic")
        return self._view().reshape(()).item()

    def tolist(self) -> Any:
        return self._view().tolist()

    def __bool__(self) -> builtins.bool:
        self._look("bool()", "where() or nir.cond()")
        return bool(self.item())

    def __int__(self) -> builtins.int:
        self._look("int()", "tensor arithmetic")
        return int(self.item())

    def __float__(self) -> builtins.float:
        self._look("float()", "tensor arithmetic")
        return float(self.item())

    def __index__(self) -> builtins.int:
        if not self.dtype.is_integer:
            raise TypeError(f"only integer tensors are indices, got {self.type}")
        return int(self)

    def _look(self, what: str, instead: str) -> None:
        if self._cell.data is None and self._is_traced():
            raise TraceError(
                f"{what} of a traced tensor ({self.type}): Python control flow cannot depend on "
                f"its value while the function is traced; use {instead}",
                caller(),
            )

    def _is_traced(self) -> builtins.bool:
        return any(c.data is None for c in lazy.walk([self._cell])[1])

    def __repr__(self) -> str:
        if self._cell.data is None and self._is_traced():
            return f"tensor(<traced {self.type}>)"
        text = np.array2string(self._view(), separator=", ", prefix="tensor(")
        kind = "" if self.dtype in (f32, i64, bool_) else f", dtype={self.dtype}"
        return f"tensor({text}{kind}{', requires_grad=True' if self.requires_grad else ''})"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else repr(self)

    # ---- gradients -----------------------------------------------------------------------------

    @property
    def requires_grad(self) -> builtins.bool:
        return self._cell.tracks

    def requires_grad_(self, requires_grad: builtins.bool = True) -> Self:
        """Let gradients flow into this tensor (or no longer)."""
        if requires_grad and not self.dtype.is_float:
            raise DTypeError(f"requires_grad_: expected a float tensor, got {self.type}", caller())
        if not requires_grad:
            self._cell = self.detach()._cell
        elif not self._cell.tracks:
            self._cell = _own_cell(self._cell)
            register_leaf(self._cell, self)
        return self

    @property
    def is_leaf(self) -> builtins.bool:
        return self._cell.leaf or not self._cell.tracks

    @property
    def grad(self) -> Tensor | None:
        return self._grad

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        self._grad = value

    def backward(self, gradient: Tensor | None = None) -> None:
        """Add d self / d leaf to ``grad`` of each leaf that requires a gradient.

        ``gradient`` is the cotangent of self; it may be left out for a scalar.
        """
        leaves = leaves_of(self._cell)
        seed = None if gradient is None else gradient._cell
        found = gradients(self._cell, [cell for cell, _ in leaves], seed)
        for (_, leaf), cell in zip(leaves, found, strict=True):
            if cell is not None:
                g = Tensor._of(cell).detach()
                leaf.grad = g if leaf.grad is None else leaf.grad + g

    def detach(self) -> Tensor:
        """The same values, through which no gradient flows."""
        if not self._cell.tracks:
            return Tensor._of(self._cell)
        if self._cell.data is not None:
            return Tensor._of(_own_cell(self._cell))
        (cell,) = lazy.record(ops.Reshape(self._cell.value, self.shape), [self._cell], tracks=False)
        return Tensor._of(cell)

    # ---- rebinding -----------------------------------------------------------------------------

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        tracks = self.requires_grad
        self._cell = _own_cell(value.detach()._cell)
        if tracks and self.dtype.is_float:
            register_leaf(self._cell, self)

    def copy_(self, source: Any) -> Self:
        """Give this tensor the values of ``source``, broadcast and cast to its own type."""
        cell = arith.cast(_cell(source, self.dtype), self.dtype)
        value = Tensor._of(arith.broadcast(cell, self.shape))
        if not self.requires_grad or not self.is_leaf:
            self._cell = _own_cell(value._cell)
        else:
            self._cell = _own_cell(value.detach()._cell)
            register_leaf(self._cell, self)
        return self

    def zero_(self) -> Self:
        return self.copy_(0)

    def fill_(self, value: builtins.float) -> Self:
        return self.copy_(value)

    def add_(self, other: Any, alpha: builtins.float = 1) -> Self:
        return self.copy_(self.detach() + (other if alpha == 1 else other * alpha))

    def sub_(self, other: Any, alpha: builtins.float = 1) -> Self:
        return self.add_(other, -alpha)

    def mul_(self, other: Any) -> Self:
        return self.copy_(self.detach() * other)

    def div_(self, other: Any) -> Self:
        return self.copy_(self.detach() / other)

    def __setitem__(self, index: Any, value: Any) -> None:
        raise NirError(
            "tensors are not assigned to by index: use where(), cat() or scatter_add()", caller()
        )

    # ---- types ---------------------------------------------------------------------------------

    def to(self, target: Any) -> Tensor:
        """This tensor in another dtype, or on another device ("cpu")."""
        if isinstance(target, str) and target.split(":")[0] in ("cpu", "cuda"):
            if target != self.device:
                raise DeviceError(
                    f"to: expected device 'cpu', got {target!r}: there is no such device", caller()
                )
            return self
        try:
            new = dtype(target)
        except TypeError as error:
            raise DTypeError(f"to: {error}", caller()) from None
        return self if new == self.dtype else Tensor._of(arith.cast(self._cell, new))

    def type_as(self, other: Tensor) -> Tensor:
        return self.to(other.dtype)

    def float(self) -> Tensor:
        return self.to("f32")

    def double(self) -> Tensor:
        return self.to("f64")

    def half(self) -> Tensor:
        return self.to("f16")

    def long(self) -> Tensor:
        return self.to("i64")

    def int(self) -> Tensor:
        return self.to("i32")

    def bool(self) -> Tensor:
        return self.to("bool")

    def cpu(self) -> Tensor:
        return self

    # ---- elementwise ---------------------------------------------------------------------------

    def _unary(self, op: type[Op]) -> Tensor:
        return Tensor._of(arith.one(op, self._cell))

    def _binary(
        self,
        op: type[Op],
        other: Any,
        reflected: builtins.bool = False,
        as_float: builtins.bool = False,
    ) -> Tensor:
        y: Any = other if isinstance(other, NUMBERS) else _cell(other, self.dtype)
        x: Any = self._cell
        return Tensor._of(arith.binary(op, *((y, x) if reflected else (x, y)), as_float=as_float))

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
        return self

    def __abs__(self) -> Tensor:
        return self._unary(ops.Abs)

    def __invert__(self) -> Tensor:
        return self._unary(ops.LogicalNot if self.dtype == bool_ else ops.BitNot)

    def __pow__(self, other: Any) -> Tensor:
        match other:
            case 2:
                return self * self
            case 1:
                return self
            case 3:
                return self * self * self
            case 0.5 if self.dtype.is_float:
                return self.sqrt()
        return self._binary(ops.Pow, other, as_float=True)

    def __rpow__(self, other: Any) -> Tensor:
        return self._binary(ops.Pow, other, reflected=True, as_float=True)

    def pow(self, other: Any) -> Tensor:
        return self**other

    def __truediv__(self, other: Any) -> Tensor:
        return self._binary(ops.Div, other, as_float=True)

    def __rtruediv__(self, other: Any) -> Tensor:
        return self._binary(ops.Div, other, reflected=True, as_float=True)

    def div(self, other: Any) -> Tensor:
        return self / other

    def clamp(self, min: Any = None, max: Any = None) -> Tensor:
        # By comparison, not maximum: at a bound the whole gradient flows, as in PyTorch.
        out = self
        if min is not None:
            out = where(out < min, min, out)
        if max is not None:
            out = where(out > max, max, out)
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
        return where(condition, self, other)

    def masked_fill(self, mask: Tensor, value: Any) -> Tensor:
        return where(mask, value, self)

    def __matmul__(self, other: Tensor) -> Tensor:
        return Tensor._of(arith.matmul(self._cell, _cell(other, self.dtype)))

    def __rmatmul__(self, other: Any) -> Tensor:
        return Tensor._of(arith.matmul(_cell(other, self.dtype), self._cell))

    def matmul(self, other: Tensor) -> Tensor:
        return self @ other

    mm = bmm = matmul

    # ---- shape ---------------------------------------------------------------------------------

    def _axis(self, dim: builtins.int, ndim: builtins.int | None = None) -> int:
        n = self.ndim if ndim is None else ndim
        if not -n <= dim < n:
            raise ShapeError(
                f"axis {dim} is out of range: expected {-n} to {n - 1} for shape {shown(self.shape)}",
                caller(),
            )
        return dim % n

    def _axes(self, dim: Any) -> tuple[int, ...]:
        if dim is None:
            return tuple(range(self.ndim))
        given = (dim,) if isinstance(dim, int) else tuple(dim)
        axes = sorted(self._axis(d) for d in given)
        if len(set(axes)) != len(axes):
            raise ShapeError(f"axis given twice in {given}", caller())
        return tuple(axes)

    def reshape(self, *shape: Any) -> Tensor:
        return apply(ops.Reshape, self, shape=self._resolve(_flat(shape)))

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
                f"reshape: {self.numel()} elements of {self.type} do not divide into {shown(shape)}",
                caller(),
            )
        return tuple(missing if isinstance(d, int) and d == -1 else d for d in shape)

    def permute(self, *dims: Any) -> Tensor:
        perm = tuple(self._axis(d) for d in _flat(dims))
        return apply(ops.Transpose, self, perm=perm)

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
        target = list(_flat(shape))
        offset = len(target) - self.ndim
        if offset < 0:
            raise ShapeError(f"expand: {shown(target)} has fewer axes than {self.type}", caller())
        for a, d in enumerate(self.shape):
            if isinstance(target[offset + a], int) and target[offset + a] == -1:
                target[offset + a] = d
        return Tensor._of(arith.broadcast(self._cell, tuple(target)))

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
        return apply(ops.Flip, self, axes=self._axes(_flat(dims)))

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
        return apply(ops.Slice, self, starts=starts, sizes=sizes, steps=(1,) * self.ndim)

    def roll(self, shifts: builtins.int, dims: builtins.int) -> Tensor:
        a = self._axis(dims)
        n = self._static(self.shape[a], "roll")
        k = shifts % n if n else 0
        pieces = [self.narrow(a, n - k, k)._cell, self.narrow(a, 0, n - k)._cell]
        return Tensor._of(arith.concat(pieces, a)) if k else self

    def tril(self, diagonal: builtins.int = 0) -> Tensor:
        return self._triangle(diagonal, lower=True)

    def triu(self, diagonal: builtins.int = 0) -> Tensor:
        return self._triangle(diagonal, lower=False)

    def _triangle(self, diagonal: builtins.int, lower: builtins.bool) -> Tensor:
        shape = self.shape[-2:]
        row = source(ops.Iota, shape=shape, axis=0, dtype=i64)
        column = source(ops.Iota, shape=shape, axis=1, dtype=i64)
        keep = column <= row + diagonal if lower else column >= row + diagonal
        return where(keep, self, 0)

    def __iter__(self) -> Iterator[Tensor]:
        return iter([self[i] for i in range(len(self))])

    def __getitem__(self, index: Any) -> Tensor:
        items = index if isinstance(index, tuple) else (index,)
        return Tensor._of(arith.index(self._cell, [_index_item(i) for i in items]))

    # ---- reductions ----------------------------------------------------------------------------

    def _reduce(self, op: type[Op], dim: Any, keepdim: builtins.bool) -> Tensor:
        axes = self._axes(dim)
        out = apply(op, self, axes=axes)
        if keepdim:
            out = out.reshape(*(1 if a in axes else d for a, d in enumerate(self.shape)))
        return out

    def sum(self, dim: Any = None, keepdim: builtins.bool = False) -> Tensor:
        x = self.to(i64) if not self.dtype.is_float else self
        return x._reduce(ops.Sum, dim, keepdim)

    def mean(self, dim: Any = None, keepdim: builtins.bool = False) -> Tensor:
        return self._reduce(ops.Mean, dim, keepdim)

    def prod(self, dim: Any = None, keepdim: builtins.bool = False) -> Tensor:
        x = self.to(i64) if not self.dtype.is_float else self
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
        x = self.flatten() if dim is None else self
        a = 0 if dim is None else self._axis(dim)
        out = apply(op, x, axis=a)
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
        return total / source(
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
        return apply(ops.CumSum, self, axis=self._axis(dim))

    def softmax(self, dim: builtins.int) -> Tensor:
        return apply(ops.Softmax, self, axis=self._axis(dim))

    def log_softmax(self, dim: builtins.int) -> Tensor:
        return apply(ops.LogSoftmax, self, axis=self._axis(dim))

    # ---- indexing by tensors -------------------------------------------------------------------

    def gather(self, dim: builtins.int, index: Tensor) -> Tensor:
        return apply(ops.TakeAlong, self, index, axis=self._axis(dim))

    def index_select(self, dim: builtins.int, index: Tensor) -> Tensor:
        return apply(ops.Take, self, index, axis=self._axis(dim))

    def take(self, index: Tensor, dim: builtins.int) -> Tensor:
        return self.index_select(dim, index)

    def scatter_add(self, dim: builtins.int, index: Tensor, src: Tensor) -> Tensor:
        return apply(ops.ScatterAddAlong, self, index, src, axis=self._axis(dim))

    def index_add(self, dim: builtins.int, index: Tensor, source: Tensor) -> Tensor:
        return apply(ops.ScatterAdd, self, index, source, axis=self._axis(dim))


# ---- recording ---------------------------------------------------------------------------------


def _as_array(data: Any, to: Any) -> np.ndarray:
    array = np.asarray(data)
    from_numbers = not (isinstance(data, np.ndarray | np.generic) or hasattr(data, "__array__"))
    if from_numbers and array.dtype == np.float64:
        # Python numbers: f32 for floats, as in PyTorch.
        array = array.astype(np.float32)
    try:
        return array.astype(dtype(to).numpy) if to is not None else array
    except TypeError as error:
        raise DTypeError(str(error), caller()) from None


def _cell(x: Any, like: DType) -> Cell:
    """``x`` as a cell; a Python number takes ``like`` where its kind allows."""
    if isinstance(x, Tensor):
        return x._cell
    if isinstance(x, NUMBERS):
        return arith.full(x, (), arith.weak(x, like))
    return arith.stored(_as_array(x, None))


def _own_cell(cell: Cell) -> Cell:
    """A cell of its own for the same value, so that marks on one do not show on the other."""
    if cell.data is not None or cell.record is None:
        new = Cell(cell.value.type, cell.data)
        new.stale, new.symbolic = cell.stale, cell.symbolic
        if cell.data is None:  # a traced input: its name and value stay
            new.value = cell.value
        return new
    (new,) = lazy.record(ops.Reshape(cell.value, cell.value.type.shape), [cell])
    return new


def _index_item(i: Any) -> Any:
    match i:
        case Tensor():
            return i._cell
        case list() | np.ndarray():
            return arith.stored(np.asarray(i))
    return i


def _flat(args: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(args[0]) if len(args) == 1 and isinstance(args[0], tuple | list) else tuple(args)


def apply(op: type[Op], *operands: Any, **attributes: Any) -> Any:
    """Record ``op`` on tensors as they are: a Tensor, or a tuple of them for several results."""
    cells = [
        x._cell if isinstance(x, Tensor) else [t._cell for t in x] if x is not None else None
        for x in operands
    ]
    results = tuple(Tensor._of(c) for c in arith.apply(op, *cells, **attributes))
    return results[0] if len(results) == 1 else results


def source(op: type[Op], **attributes: Any) -> Tensor:
    """Record an op without operands."""
    return Tensor._of(arith.one(op, **attributes))


def where(condition: Any, x: Any, y: Any) -> Tensor:
    """x where ``condition`` holds, else y; all broadcast."""
    c = condition._cell if isinstance(condition, Tensor) else arith.stored(np.asarray(condition))
    given = [v if isinstance(v, NUMBERS) else _cell(v, f32) for v in (x, y)]
    return Tensor._of(arith.where(c, given[0], given[1]))


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """The tensors one after the other along ``dim``."""
    if not tensors:
        raise ShapeError("cat: expected at least one tensor", caller())
    return Tensor._of(arith.concat([t._cell for t in tensors], tensors[0]._axis(dim)))
