"""`Tensor`: n-dimensional arrays with PyTorch's methods, computed when they are looked at.

Every op is recorded (see `nir.frontend.lazy`); shapes and dtypes are known at once, values when
`numpy`, `item`, `print`, `bool` or an array protocol asks for them. Broadcasting and promotion
follow PyTorch: Python numbers take the tensor's dtype where their kind allows it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np

from nir import ops
from nir.errors import DeviceError, DTypeError, NirError, ShapeError, StaleTensorError, TraceError
from nir.frontend import lazy
from nir.frontend.lazy import Cell
from nir.ir.dim import Dim, exact_div, prod
from nir.ir.graph import Builder
from nir.ir.location import caller
from nir.ir.op import OPS, Op, Value
from nir.ir.types import DType, TensorType, bool_, dtype, f32, i64
from nir.ops.expr import Expr
from nir.ops.vjp import backward
from nir.runtime import Storage

Number = (bool, int, float)
_RANK = {"bool": 0, "uint": 1, "int": 1, "float": 2}
_HALF = {"f16", "bf16"}


class Tensor:
    """An array of one dtype. Immutable but for rebinding: in-place methods give it a new value.

    ``data`` is anything numpy can make an array of; float64 from Python numbers becomes f32, as in
    PyTorch; a float64 array stays f64.
    """

    __slots__ = ("_cell", "_grad", "__weakref__", "__dict__")
    __array_priority__ = 1000

    def __init__(self, data: Any, *, dtype: Any = None, requires_grad: bool = False) -> None:
        self._grad: Tensor | None = None
        if isinstance(data, Tensor):
            t = data.detach() if dtype is None else data.detach().to(dtype)
            self._cell = _own_cell(t._cell)
        else:
            self._cell = Cell(*_stored(_as_array(data, dtype)))
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
    def ndim(self) -> int:
        return len(self.shape)

    def dim(self) -> int:
        return len(self.shape)

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[self._axis(dim)]

    def numel(self) -> Dim:
        return prod(self.shape)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a 0-d tensor has no length")
        return self._static(self.shape[0], "len()")

    def _static(self, d: Dim, what: str) -> int:
        if not isinstance(d, int):
            raise TraceError(f"{what} needs a known size, got the symbolic {d}", caller())
        return d

    @property
    def requires_grad(self) -> bool:
        return self._cell.tracks

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Let gradients flow into this tensor (or no longer)."""
        if requires_grad and not self.dtype.is_float:
            raise DTypeError(f"requires_grad_: expected a float tensor, got {self.type}", caller())
        if requires_grad and self._cell.record is not None and not self._cell.tracks:
            lazy.realize([self._cell])
        self._cell.tracks = requires_grad
        if requires_grad and self._cell.record is None:
            self._cell.leaf = True
            register_leaf(self)
        return self

    @property
    def is_leaf(self) -> bool:
        return self._cell.leaf or not self._cell.tracks

    @property
    def grad(self) -> Tensor | None:
        return self._grad

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        self._grad = value

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        tracks = self.requires_grad
        self._cell = _own_cell(value.detach()._cell)
        if tracks and self.dtype.is_float:
            self.requires_grad_(True)

    # ---- values --------------------------------------------------------------------------------

    def _data(self) -> Storage:
        if self._cell.stale is not None or self._cell.data is None:
            lazy.realize([self._cell])
        _check_stale(self._cell)
        data: Storage = self._cell.data
        return data

    def numpy(self) -> np.ndarray:
        """The values as an array of their own."""
        return np.array(self._view())

    def _view(self) -> np.ndarray:
        shape = tuple(self._static(d, "a value") for d in self.shape)
        return self._data().numpy(self.dtype.numpy, shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        out = self.numpy()
        return out if dtype is None else out.astype(dtype)

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self._view().__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def item(self) -> Any:
        """The only element as a Python number."""
        if self.numel() != 1:
            raise ShapeError(f"item: expected one element, got shape {self.shape}", caller())
        return self._view().reshape(()).item()

    def tolist(self) -> Any:
        return self._view().tolist()

    def __bool__(self) -> bool:
        self._look("bool()", "where() or nir.cond()")
        return bool(self.item())

    def __int__(self) -> int:
        self._look("int()", "tensor arithmetic")
        return int(self.item())

    def __float__(self) -> float:
        self._look("float()", "tensor arithmetic")
        return float(self.item())

    def __index__(self) -> int:
        if not self.dtype.is_integer:
            raise TypeError(f"only integer tensors are indices, got {self.type}")
        return int(self)

    def _look(self, what: str, instead: str) -> None:
        if self._cell.data is None:
            for leaf in lazy.walk([self._cell])[1]:
                if leaf.symbolic is not None:
                    raise TraceError(
                        f"{what} of a traced tensor ({self.type}): Python control flow cannot depend "
                        f"on its value while the function is traced; use {instead}",
                        caller(),
                    )

    def __repr__(self) -> str:
        if self._cell.data is None and any(
            c.symbolic is not None or c.data is None for c in lazy.walk([self._cell])[1]
        ):
            return f"tensor(<traced {self.type}>)"
        text = np.array2string(self._view(), separator=", ", prefix="tensor(")
        kind = "" if self.dtype in (f32, i64, bool_) else f", dtype={self.dtype}"
        return f"tensor({text}{kind}{', requires_grad=True' if self.requires_grad else ''})"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else repr(self)

    # ---- gradients -----------------------------------------------------------------------------

    def backward(self, gradient: Tensor | None = None) -> None:
        """Add d self / d leaf to ``grad`` of each leaf that requires a gradient.

        ``gradient`` is the cotangent of self; it may be left out for a scalar.
        """
        leaves = leaves_of(self)
        grads = gradients(self, [t._cell for t in leaves], gradient)
        for leaf, g in zip(leaves, grads, strict=True):
            if g is not None:
                g = g.detach()
                leaf.grad = g if leaf.grad is None else leaf.grad + g

    def detach(self) -> Tensor:
        """The same values, through which no gradient flows."""
        if not self._cell.tracks:
            return Tensor._of(self._cell)
        if self._cell.data is not None:
            cell = Cell(self.type, self._cell.data)
            cell.stale = self._cell.stale
            return Tensor._of(cell)
        (cell,) = lazy.record(ops.Reshape(self._cell.value, self.shape), [self._cell], tracks=False)
        return Tensor._of(cell)

    def clone(self) -> Tensor:
        return apply(ops.Reshape, self, shape=self.shape)

    # ---- rebinding -----------------------------------------------------------------------------

    def copy_(self, source: Any) -> Self:
        """Give this tensor the values of ``source``, broadcast and cast to its own type."""
        value = _tensor(source, self.dtype, self.device).to(self.dtype).expand(self.shape)
        if not self.requires_grad or not self.is_leaf:
            self._cell = _own_cell(value._cell)
            return self
        self._cell = _own_cell(value.detach()._cell)
        self._cell.tracks = self._cell.leaf = True
        register_leaf(self)
        return self

    def zero_(self) -> Self:
        return self.copy_(0)

    def fill_(self, value: float) -> Self:
        return self.copy_(value)

    def add_(self, other: Any, alpha: float = 1) -> Self:
        return self.copy_(self.detach() + (other if alpha == 1 else other * alpha))

    def sub_(self, other: Any, alpha: float = 1) -> Self:
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
                    f"to: expected device 'cpu', got {target!r}: no such device", caller()
                )
            return self
        new = dtype(target)
        return self if new == self.dtype else apply(ops.Cast, self, dtype=new)

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

    # ---- arithmetic ----------------------------------------------------------------------------

    def __neg__(self) -> Tensor:
        return apply(ops.Neg, self)

    def __pos__(self) -> Tensor:
        return self

    def __abs__(self) -> Tensor:
        return apply(ops.Abs, self)

    def __invert__(self) -> Tensor:
        return apply(ops.LogicalNot if self.dtype == bool_ else ops.BitNot, self)

    def __pow__(self, other: Any) -> Tensor:
        match other:
            case 2:
                return self * self
            case 1:
                return self
            case 3 if self.dtype.is_float:
                return self * self * self
            case 0.5 if self.dtype.is_float:
                return self.sqrt()
        return binary(ops.Pow, self, other, as_float=True)

    def __rpow__(self, other: Any) -> Tensor:
        return binary(ops.Pow, other, self, as_float=True)

    def pow(self, other: Any) -> Tensor:
        return self**other

    def __truediv__(self, other: Any) -> Tensor:
        return binary(ops.Div, self, other, as_float=True)

    def __rtruediv__(self, other: Any) -> Tensor:
        return binary(ops.Div, other, self, as_float=True)

    def div(self, other: Any) -> Tensor:
        return self / other

    def __matmul__(self, other: Tensor) -> Tensor:
        return matmul(self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return matmul(_tensor(other, self.dtype, self.device), self)

    def matmul(self, other: Tensor) -> Tensor:
        return matmul(self, other)

    def mm(self, other: Tensor) -> Tensor:
        return matmul(self, other)

    def bmm(self, other: Tensor) -> Tensor:
        return matmul(self, other)

    __hash__ = object.__hash__

    def clamp(self, min: Any = None, max: Any = None) -> Tensor:
        # By comparison, not maximum: at a bound the whole gradient flows, as in PyTorch.
        out = self
        if min is not None:
            out = where(out < min, min, out)
        if max is not None:
            out = where(out > max, max, out)
        return out

    clip = clamp

    def isnan(self) -> Tensor:
        return apply(ops.IsNan, self)

    def isinf(self) -> Tensor:
        return self.abs() == float("inf")

    def isfinite(self) -> Tensor:
        return self.abs() < float("inf")

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

    # ---- shape ---------------------------------------------------------------------------------

    def _axis(self, dim: int, ndim: int | None = None) -> int:
        n = self.ndim if ndim is None else ndim
        if not -n <= dim < n:
            raise ShapeError(
                f"axis {dim} is out of range: expected {-n} to {n - 1} for shape {_shown(self.shape)}",
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
            raise ShapeError(f"reshape: expected at most one -1, got {_shown(shape)}", caller())
        if -1 not in shape:
            return tuple(shape)
        rest = prod(d for d in shape if not (isinstance(d, int) and d == -1))
        missing = exact_div(self.numel(), rest)
        if missing is None:
            raise ShapeError(
                f"reshape: {self.numel()} elements of {self.type} do not divide into {_shown(shape)}",
                caller(),
            )
        return tuple(missing if isinstance(d, int) and d == -1 else d for d in shape)

    def permute(self, *dims: Any) -> Tensor:
        perm = tuple(self._axis(d) for d in _flat(dims))
        return apply(ops.Transpose, self, perm=perm)

    def transpose(self, dim0: int, dim1: int) -> Tensor:
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

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Tensor:
        if self.ndim == 0:
            return self.reshape(1)
        a, b = self._axis(start_dim), self._axis(end_dim)
        return self.reshape(*self.shape[:a], prod(self.shape[a : b + 1]), *self.shape[b + 1 :])

    def squeeze(self, dim: Any = None) -> Tensor:
        axes = self._axes(dim)
        return self.reshape(*(d for a, d in enumerate(self.shape) if a not in axes or d != 1))

    def unsqueeze(self, dim: int) -> Tensor:
        a = self._axis(dim, self.ndim + 1)
        return self.reshape(*self.shape[:a], 1, *self.shape[a:])

    def expand(self, *shape: Any) -> Tensor:
        """Broadcast axes of size 1 (and new ones in front) to ``shape``; -1 keeps a size."""
        target = list(_flat(shape))
        offset = len(target) - self.ndim
        if offset < 0:
            raise ShapeError(f"expand: {_shown(target)} has fewer axes than {self.type}", caller())
        for a, d in enumerate(self.shape):
            if isinstance(target[offset + a], int) and target[offset + a] == -1:
                target[offset + a] = d
        return broadcast(self, tuple(target))

    broadcast_to = expand

    def expand_as(self, other: Tensor) -> Tensor:
        return self.expand(other.shape)

    def repeat_interleave(self, repeats: int, dim: int) -> Tensor:
        a = self._axis(dim)
        wide = self.unsqueeze(a + 1)
        shape = (*self.shape[: a + 1], repeats, *self.shape[a + 1 :])
        return wide.expand(shape).reshape(
            *self.shape[:a], self.shape[a] * repeats, *self.shape[a + 1 :]
        )

    def flip(self, *dims: Any) -> Tensor:
        return apply(ops.Flip, self, axes=self._axes(_flat(dims)))

    def split(self, size: Any, dim: int = 0) -> tuple[Tensor, ...]:
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

    def chunk(self, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
        n = self._static(self.shape[self._axis(dim)], "chunk")
        return self.split(-(-n // chunks), dim)

    def unbind(self, dim: int = 0) -> tuple[Tensor, ...]:
        a = self._axis(dim)
        return tuple(t.squeeze(a) for t in self.split(1, a))

    def narrow(self, dim: int, start: Dim, length: Dim) -> Tensor:
        a = self._axis(dim)
        starts = tuple(start if b == a else 0 for b in range(self.ndim))
        sizes = tuple(length if b == a else d for b, d in enumerate(self.shape))
        return apply(ops.Slice, self, starts=starts, sizes=sizes, steps=(1,) * self.ndim)

    def roll(self, shifts: int, dims: int) -> Tensor:
        a = self._axis(dims)
        n = self._static(self.shape[a], "roll")
        k = shifts % n if n else 0
        return cat([self.narrow(a, n - k, k), self.narrow(a, 0, n - k)], a) if k else self

    def tril(self, diagonal: int = 0) -> Tensor:
        return self._triangle(diagonal, lower=True)

    def triu(self, diagonal: int = 0) -> Tensor:
        return self._triangle(diagonal, lower=False)

    def _triangle(self, diagonal: int, lower: bool) -> Tensor:
        shape = self.shape[-2:]
        row = source(ops.Iota, shape=shape, axis=0, dtype=i64)
        column = source(ops.Iota, shape=shape, axis=1, dtype=i64)
        keep = column <= row + diagonal if lower else column >= row + diagonal
        return where(keep, self, 0)

    def __iter__(self) -> Iterator[Tensor]:
        return iter([self[i] for i in range(len(self))])

    def __getitem__(self, index: Any) -> Tensor:
        return _index(self, index)

    # ---- reductions ----------------------------------------------------------------------------

    def _reduce(self, op: type[Op], dim: Any, keepdim: bool) -> Tensor:
        axes = self._axes(dim)
        out = apply(op, self, axes=axes)
        if keepdim:
            out = out.reshape(*(1 if a in axes else d for a, d in enumerate(self.shape)))
        return out

    def sum(self, dim: Any = None, keepdim: bool = False) -> Tensor:
        x = self.to(i64) if not self.dtype.is_float else self
        return x._reduce(ops.Sum, dim, keepdim)

    def mean(self, dim: Any = None, keepdim: bool = False) -> Tensor:
        return self._reduce(ops.Mean, dim, keepdim)

    def prod(self, dim: Any = None, keepdim: bool = False) -> Tensor:
        x = self.to(i64) if not self.dtype.is_float else self
        return x._reduce(ops.Prod, dim, keepdim)

    def amax(self, dim: Any = None, keepdim: bool = False) -> Tensor:
        return self._reduce(ops.Max, dim, keepdim)

    def amin(self, dim: Any = None, keepdim: bool = False) -> Tensor:
        return self._reduce(ops.Min, dim, keepdim)

    def max(self, dim: int | None = None, keepdim: bool = False) -> Any:
        """The largest; with ``dim``, (values, indices) along it."""
        return self._extreme(ops.Max, ops.ArgMax, dim, keepdim)

    def min(self, dim: int | None = None, keepdim: bool = False) -> Any:
        """The smallest; with ``dim``, (values, indices) along it."""
        return self._extreme(ops.Min, ops.ArgMin, dim, keepdim)

    def _extreme(self, op: type[Op], arg: type[Op], dim: int | None, keepdim: bool) -> Any:
        if dim is None:
            return self._reduce(op, None, keepdim)
        return self._reduce(op, dim, keepdim), self._arg(arg, dim, keepdim)

    def _arg(self, op: type[Op], dim: int | None, keepdim: bool) -> Tensor:
        x = self.flatten() if dim is None else self
        a = 0 if dim is None else self._axis(dim)
        out = apply(op, x, axis=a)
        return out.unsqueeze(a) if keepdim and dim is not None else out

    def argmax(self, dim: int | None = None, keepdim: bool = False) -> Tensor:
        return self._arg(ops.ArgMax, dim, keepdim)

    def argmin(self, dim: int | None = None, keepdim: bool = False) -> Tensor:
        return self._arg(ops.ArgMin, dim, keepdim)

    def any(self, dim: Any = None, keepdim: bool = False) -> Tensor:
        return self.to(bool_)._reduce(ops.Max, dim, keepdim)

    def all(self, dim: Any = None, keepdim: bool = False) -> Tensor:
        return self.to(bool_)._reduce(ops.Min, dim, keepdim)

    def var(self, dim: Any = None, correction: int = 1, keepdim: bool = False) -> Tensor:
        """The mean squared distance from the mean, with n - ``correction`` in place of n."""
        moved = self - self.mean(self._axes(dim), keepdim=True)
        count = prod(self.shape[a] for a in self._axes(dim))
        total = (moved * moved).sum(self._axes(dim), keepdim)
        return total / source(
            ops.Full, value=count - correction, shape=total.shape, dtype=self.dtype
        )

    def std(self, dim: Any = None, correction: int = 1, keepdim: bool = False) -> Tensor:
        return self.var(dim, correction, keepdim).sqrt()

    def norm(self, dim: Any = None, keepdim: bool = False) -> Tensor:
        return (self * self).sum(dim, keepdim).sqrt()

    def logsumexp(self, dim: Any, keepdim: bool = False) -> Tensor:
        return self._reduce(ops.LogSumExp, dim, keepdim)

    def cumsum(self, dim: int) -> Tensor:
        return apply(ops.CumSum, self, axis=self._axis(dim))

    def softmax(self, dim: int) -> Tensor:
        return apply(ops.Softmax, self, axis=self._axis(dim))

    def log_softmax(self, dim: int) -> Tensor:
        return apply(ops.LogSoftmax, self, axis=self._axis(dim))

    # ---- indexing by tensors -------------------------------------------------------------------

    def gather(self, dim: int, index: Tensor) -> Tensor:
        return apply(ops.TakeAlong, self, index, axis=self._axis(dim))

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        return apply(ops.Take, self, index, axis=self._axis(dim))

    def take(self, index: Tensor, dim: int) -> Tensor:
        return self.index_select(dim, index)

    def scatter_add(self, dim: int, index: Tensor, src: Tensor) -> Tensor:
        return apply(ops.ScatterAddAlong, self, index, src, axis=self._axis(dim))

    def index_add(self, dim: int, index: Tensor, source: Tensor) -> Tensor:
        return apply(ops.ScatterAdd, self, index, source, axis=self._axis(dim))


_UNARY = (
    "neg abs sign exp expm1 log log1p sqrt rsqrt tanh sigmoid erf sin cos floor ceil round trunc "
    "relu logical_not"
).split()
# method -> (op, reflected operator, operator)
_BINARY = {
    "add": ops.Add, "sub": ops.Sub, "mul": ops.Mul, "maximum": ops.Maximum, "minimum": ops.Minimum,
    "eq": ops.Eq, "ne": ops.Ne, "lt": ops.Lt, "le": ops.Le, "gt": ops.Gt, "ge": ops.Ge,
    "floor_divide": ops.FloorDiv, "remainder": ops.Mod,
    "logical_and": ops.LogicalAnd, "logical_or": ops.LogicalOr, "logical_xor": ops.LogicalXor,
}  # fmt: skip
_OPERATORS = {
    "__add__": ops.Add, "__sub__": ops.Sub, "__mul__": ops.Mul, "__floordiv__": ops.FloorDiv,
    "__mod__": ops.Mod, "__eq__": ops.Eq, "__ne__": ops.Ne, "__lt__": ops.Lt, "__le__": ops.Le,
    "__gt__": ops.Gt, "__ge__": ops.Ge, "__lshift__": ops.ShiftLeft, "__rshift__": ops.ShiftRight,
    "__and__": ops.BitAnd, "__or__": ops.BitOr, "__xor__": ops.BitXor,
}  # fmt: skip


def _unary_method(name: str, op: type[Op]) -> Any:
    def method(self: Tensor) -> Tensor:
        return apply(op, self)

    method.__name__, method.__doc__ = name, op.__doc__
    return method


def _binary_method(name: str, op: type[Op], reflected: bool = False) -> Any:
    def method(self: Tensor, other: Any) -> Tensor:
        if not isinstance(other, (Tensor, np.ndarray, *Number, np.generic)):
            return NotImplemented
        return binary(op, other, self) if reflected else binary(op, self, other)

    method.__name__, method.__doc__ = name, op.__doc__
    return method


for _name in _UNARY:
    setattr(Tensor, _name, _unary_method(_name, OPS[_name]))
for _name, _op in _BINARY.items():
    setattr(Tensor, _name, _binary_method(_name, _op))
for _name, _op in _OPERATORS.items():
    setattr(Tensor, _name, _binary_method(_name, _op))
    setattr(Tensor, "__r" + _name[2:], _binary_method(_name, _op, reflected=True))


# ---- storage -----------------------------------------------------------------------------------


def _as_array(data: Any, to: Any) -> np.ndarray:
    if isinstance(data, np.ndarray) or hasattr(data, "__array__") or hasattr(data, "__dlpack__"):
        array = np.asarray(data)
    else:
        # Python numbers: f32 for floats, as in PyTorch.
        array = np.asarray(data)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
    try:
        return array.astype(dtype(to).numpy) if to is not None else array
    except TypeError as error:
        raise DTypeError(str(error), caller()) from None


def _stored(array: np.ndarray) -> tuple[TensorType, Storage]:
    try:
        t = TensorType(dtype(array.dtype), array.shape)
    except TypeError as error:
        raise DTypeError(str(error), caller()) from None
    return t, Storage.from_numpy(array)


def _own_cell(cell: Cell) -> Cell:
    """A cell of its own for the same value, so that marks on one do not show on the other."""
    if cell.data is not None:
        new = Cell(cell.value.type, cell.data)
        new.stale = cell.stale
        return new
    (new,) = lazy.record(ops.Reshape(cell.value, cell.value.type.shape), [cell])
    return new


def _check_stale(cell: Cell) -> None:
    if cell.stale is not None:
        raise StaleTensorError(
            f"this tensor's buffer was donated at {cell.stale} and holds something else", caller()
        )


# ---- recording ---------------------------------------------------------------------------------


def _shown(shape: Sequence[Any]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


def _flat(args: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(args[0]) if len(args) == 1 and isinstance(args[0], (tuple, list)) else tuple(args)


def _tensor(x: Any, like: DType, device: str = "cpu") -> Tensor:
    """``x`` as a Tensor; a Python number takes ``like`` where its kind allows, without storage."""
    if isinstance(x, Tensor):
        return x
    if isinstance(x, Number):
        return source(ops.Full, value=x, shape=(), dtype=_weak(x, like))
    return Tensor(x)


def _weak(x: Any, like: DType) -> DType:
    """PyTorch's promotion of a Python number beside a tensor of dtype ``like``."""
    if isinstance(x, bool) or like.is_float:
        return like if not isinstance(x, bool) or like.kind != "bool" else bool_
    if isinstance(x, int):
        return i64 if like == bool_ else like
    return f32


def promote(a: DType, b: DType) -> DType:
    """PyTorch's type promotion of two tensors."""
    if a == b:
        return a
    if _RANK[a.kind] != _RANK[b.kind]:
        return a if _RANK[a.kind] > _RANK[b.kind] else b
    if {a.name, b.name} == _HALF:
        return f32
    if {a.name, b.name} == {"i8", "u8"}:
        return dtype("i16")
    return a if a.itemsize >= b.itemsize else b


def apply(op: type[Op], *operands: Tensor | None, **attributes: Any) -> Any:
    """Record ``op`` on tensors as they are: no broadcasting, no promotion."""
    given = dict(attributes)
    cells: list[Cell] = []
    for (name, arity), x in zip(op.operand_fields, operands, strict=True):
        if arity == "many":
            group = [t._cell for t in x]  # type: ignore[union-attr]
            cells += group
            given[name] = tuple(c.value for c in group)
        elif x is None:
            given[name] = None
        else:
            cells.append(x._cell)
            given[name] = x._cell.value
    results = [Tensor._of(c) for c in lazy.record(op(**given), cells)]
    return results[0] if len(results) == 1 else tuple(results)


def source(op: type[Op], **attributes: Any) -> Tensor:
    """Record an op without operands."""
    (cell,) = lazy.record(op(**attributes), ())
    return Tensor._of(cell)


def broadcast_shapes(*shapes: Sequence[Dim]) -> tuple[Dim, ...]:
    """The shape that ``shapes`` broadcast to, by numpy's rules."""
    n = max(map(len, shapes), default=0)
    out: list[Dim] = [1] * n
    for shape in shapes:
        for a, d in enumerate(shape, n - len(shape)):
            if out[a] == d or d == 1:
                continue
            if out[a] != 1:
                shown = " and ".join(map(_shown, shapes))
                raise ShapeError(
                    f"shapes {shown} do not broadcast: {out[a]} and {d} on axis {a}", caller()
                )
            out[a] = d
    return tuple(out)


def broadcast(x: Tensor, shape: tuple[Dim, ...]) -> Tensor:
    """x with axes of size 1, and new ones in front, repeated to ``shape``."""
    if x.shape == shape:
        return x
    offset = len(shape) - x.ndim
    kept = [a for a, d in enumerate(x.shape) if d != 1 or shape[offset + a] == 1]
    for a in kept:
        if x.shape[a] != shape[offset + a]:
            raise ShapeError(f"expand: {x.type} does not broadcast to {_shown(shape)}", caller())
    if len(kept) < x.ndim:
        x = apply(ops.Reshape, x, shape=tuple(x.shape[a] for a in kept))
    return (
        apply(ops.Broadcast, x, shape=shape, axes=tuple(offset + a for a in kept))
        if x.shape != shape
        else x
    )


def together(*xs: Any, as_float: bool = False) -> list[Tensor]:
    """Tensors of one shape and dtype, by broadcasting and PyTorch's promotion."""
    found = [x for x in xs if isinstance(x, Tensor)]
    common: DType | None = None
    devices = {x.device for x in found}
    if len(devices) > 1:
        raise DeviceError(
            f"expected operands on one device, got {' and '.join(sorted(devices))}", caller()
        )
    # Tensors with axes outrank 0-d ones of the same kind, which outrank Python numbers.
    for rank in (True, False):
        for x in found:
            if (x.ndim > 0) is rank:
                same_kind = common is not None and _RANK[common.kind] >= _RANK[x.dtype.kind]
                if common is None or (rank or not same_kind):
                    common = x.dtype if common is None else promote(common, x.dtype)
    arrays = [x if isinstance(x, (Tensor, *Number)) else Tensor(x) for x in xs]
    for x in arrays:
        if isinstance(x, Tensor) and not any(x is y for y in found):
            common = x.dtype if common is None else promote(common, x.dtype)
    assert common is not None
    for x in arrays:
        if not isinstance(x, Tensor):
            weak = _weak(x, common)
            common = weak if _RANK[weak.kind] > _RANK[common.kind] else common
    if as_float and not common.is_float:
        common = f32
    tensors = [_tensor(x, common).to(common) for x in arrays]
    shape = broadcast_shapes(*(t.shape for t in tensors))
    out = []
    for x, t in zip(arrays, tensors, strict=True):
        if not isinstance(x, Tensor):  # a number is a full tensor at once
            t = source(ops.Full, value=_number(x, common), shape=shape, dtype=common)
        out.append(broadcast(t, shape))
    return out


def _number(x: Any, to: DType) -> Any:
    return float(x) if to.is_float else bool(x) if to == bool_ else int(x)


def binary(op: type[Op], x: Any, y: Any, as_float: bool = False) -> Tensor:
    """Record an elementwise op of two operands, broadcast and promoted."""
    a, b = together(x, y, as_float=as_float)
    if a.dtype == bool_ and op in (ops.Add, ops.Sub, ops.Mul, ops.FloorDiv, ops.Mod):
        a, b = a.to(i64), b.to(i64)
    return apply(op, a, b)


def where(condition: Any, x: Any, y: Any) -> Tensor:
    """x where ``condition`` holds, else y; all broadcast."""
    c = condition if isinstance(condition, Tensor) else Tensor(np.asarray(condition, bool))
    if c.dtype != bool_:
        raise DTypeError(f"where: expected a bool condition, got {c.type}", caller())
    if not isinstance(x, Tensor) and not isinstance(y, Tensor):
        x = Tensor(x)
    a, b = together(x, y)
    shape = broadcast_shapes(c.shape, a.shape)
    return apply(ops.Where, broadcast(c, shape), broadcast(a, shape), broadcast(b, shape))


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """The tensors one after the other along ``dim``."""
    if not tensors:
        raise ShapeError("cat: expected at least one tensor", caller())
    a = tensors[0]._axis(dim)
    common = tensors[0].dtype
    for t in tensors[1:]:
        common = promote(common, t.dtype)
    return apply(ops.Concat, [t.to(common) for t in tensors], axis=a)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """The product of matrices (..., M, K) x (..., K, N); a 1-d operand is a row or a column."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        a, b = (x if isinstance(x, Tensor) else Tensor(x) for x in (a, b))
    if a.ndim == 0 or b.ndim == 0:
        raise ShapeError(
            f"matmul: expected operands with axes, got {a.type} and {b.type}", caller()
        )
    if a.dtype != b.dtype:
        raise DTypeError(
            f"matmul: expected operands of one dtype, got {a.type} and {b.type}", caller()
        )
    row, column = a.ndim == 1, b.ndim == 1
    a = a.unsqueeze(0) if row else a
    b = b.unsqueeze(1) if column else b
    if b.ndim == 2 and a.ndim > 2:
        # One matrix for the whole batch: a single product of more rows.
        out = apply(ops.Matmul, a.flatten(0, -2), b)
        out = out.reshape(*a.shape[:-1], b.shape[-1])
    else:
        batch = broadcast_shapes(a.shape[:-2], b.shape[:-2])
        a, b = broadcast(a, (*batch, *a.shape[-2:])), broadcast(b, (*batch, *b.shape[-2:]))
        out = apply(ops.Matmul, a, b)
    if row:
        out = out.squeeze(-2)
    return out.squeeze(-1) if column else out


def _index(x: Tensor, index: Any) -> Tensor:
    """x[index]: integers, slices with steps, None, Ellipsis and integer tensors."""
    items = list(index) if isinstance(index, tuple) else [index]
    if any(isinstance(i, (Tensor, np.ndarray)) and _is_mask(i) for i in items):
        raise TraceError(
            "indexing by a bool mask gives a size that depends on values: use where() or masked_fill()",
            caller(),
        )
    used = sum(i is not None and i is not Ellipsis for i in items)
    if used > x.ndim:
        raise ShapeError(f"{used} indices for {x.type}", caller())
    if not any(i is Ellipsis for i in items):
        items.append(Ellipsis)
    at = next(k for k, i in enumerate(items) if i is Ellipsis)
    items[at : at + 1] = [slice(None)] * (x.ndim - used)
    starts, sizes, steps, flips = [], [], [], []
    shape: list[Dim] = []  # after integers drop out and None comes in
    takes: list[tuple[int, Tensor]] = []
    axis = 0
    for i in items:
        if i is None:
            shape.append(1)
            continue
        n = x.shape[axis]
        if isinstance(i, slice):
            start, size, step, flip = _slice_of(i, n)
            if flip:
                flips.append(axis)
            shape.append(size)
        elif isinstance(i, (Tensor, np.ndarray, list)):
            start, size, step = 0, n, 1
            takes.append((len(shape), i if isinstance(i, Tensor) else Tensor(np.asarray(i))))
            shape.append(n)
        else:
            k = int(i)
            if isinstance(n, int) and not -n <= k < n:
                raise ShapeError(f"index {k} is out of range for axis {axis} of {x.type}", caller())
            start, size, step = (n + k if k < 0 else k), 1, 1
        starts.append(start)
        sizes.append(size)
        steps.append(step)
        axis += 1
    out = x
    if tuple(sizes) != x.shape or any(s != 1 for s in steps):
        out = apply(ops.Slice, out, starts=tuple(starts), sizes=tuple(sizes), steps=tuple(steps))
    if flips:
        out = apply(ops.Flip, out, axes=tuple(flips))
    if out.shape != tuple(shape):
        out = out.reshape(*shape)
    if len(takes) > 1:
        return _take_many(out, takes)
    for a, i in takes:
        out = apply(ops.Take, out, i, axis=a)
    return out


def _is_mask(i: Any) -> bool:
    return (i.dtype == bool_) if isinstance(i, Tensor) else i.dtype == np.bool_


def _take_many(x: Tensor, takes: list[tuple[int, Tensor]]) -> Tensor:
    """x[i, j, ...] of neighbouring axes: one index into the axes made one."""
    axes = [a for a, _ in takes]
    if axes != list(range(axes[0], axes[0] + len(axes))):
        raise ShapeError("index tensors must stand on neighbouring axes", caller())
    total: Tensor | None = None
    for a, i in takes:
        n = x._static(x.shape[a], "an index tensor")
        wrapped = where(i < 0, i + n, i)
        total = wrapped if total is None else total * n + wrapped
    flat = x.flatten(axes[0], axes[-1])
    return apply(ops.Take, flat, total, axis=axes[0])


def _slice_of(s: slice, n: Dim) -> tuple[Dim, Dim, int, bool]:
    """(start, size, step, reversed) of a slice of an axis of size n."""
    step = 1 if s.step is None else int(s.step)
    if step == 0:
        raise ShapeError("slice step is 0", caller())
    if isinstance(n, int):
        picked = range(*s.indices(n))
        if step < 0:
            low = picked[-1] if picked else 0
            return low, len(picked), -step, True
        return (picked.start if picked else 0), len(picked), step, False
    if step < 0 or step != 1:
        raise ShapeError(
            f"slices of an axis of symbolic size {n} have step 1, got {step}", caller()
        )
    start = 0 if s.start is None else s.start if not _negative(s.start) else n + s.start
    stop = n if s.stop is None else s.stop if not _negative(s.stop) else n + s.stop
    return start, stop - start, 1, False


def _negative(d: Any) -> bool:
    return isinstance(d, int) and d < 0


# ---- gradients ---------------------------------------------------------------------------------

_leaves: weakref.WeakKeyDictionary[Cell, weakref.ref[Tensor]] = weakref.WeakKeyDictionary()


def register_leaf(t: Tensor) -> None:
    """Remember which Tensor a leaf's gradient belongs to."""
    _leaves[t._cell] = weakref.ref(t)


def leaves_of(root: Tensor) -> list[Tensor]:
    """The live leaf tensors that ``root`` depends on and that require a gradient."""
    _, ends = lazy.walk([root._cell], history=True)
    found = []
    for cell in ends:
        ref = _leaves.get(cell)
        leaf = ref() if ref is not None else None
        if leaf is not None and leaf._cell is cell and cell.tracks:
            found.append(leaf)
    return found


def gradients(
    root: Tensor, wrt: Sequence[Cell], gradient: Tensor | None = None
) -> list[Tensor | None]:
    """d root / d cell for each of ``wrt``; None where root does not depend on it.

    The results can be differentiated again while gradients are enabled.
    """
    if not root._cell.tracks:
        raise NirError(
            "backward: this tensor does not depend on one that requires a gradient", caller()
        )
    if gradient is None and root.shape != ():
        raise ShapeError(f"backward: expected a scalar, got {root.type}; pass a gradient", caller())
    records, _ = lazy.walk([root._cell], stop=wrt, history=True)
    known: dict[Value, Cell] = {}
    for r in records:
        known.update((c.value, c) for c in (*r.args, *r.results))
    known[root._cell.value] = root._cell
    b = Builder("backward")
    b.locs = frozenset((caller(),))
    seed_cell = None if gradient is None else broadcast(gradient.to(root.dtype), root.shape)._cell
    if seed_cell is None:
        seed = Expr(b, root._cell.value).full_like(1.0)
    else:
        known[seed_cell.value] = seed_cell
        seed = Expr(b, seed_cell.value)
    nodes = [r.op for r in records if r.tracks]
    found = backward(b, nodes, {root._cell.value: seed}, [c.value for c in wrt])
    lazy.adopt(b.nodes, known, tracks=lazy.grad_enabled() and _differentiable(seed_cell, wrt))
    return [Tensor._of(known[found[c.value].value]) if c.value in found else None for c in wrt]


def _differentiable(seed: Cell | None, wrt: Sequence[Cell]) -> bool:
    return any(c.tracks for c in wrt) or (seed is not None and seed.tracks)
