"""`Tensor`: n-dimensional arrays with PyTorch's methods, computed when they are looked at.

Every op is recorded (see `nir.frontend.lazy`): shapes and dtypes are known at once, values when
`numpy`, `item`, `print`, `bool` or an array protocol asks for them. Broadcasting and promotion
follow PyTorch: Python numbers take the tensor's dtype where their kind allows it.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from nir.errors import DTypeError, NotDifferentiable, ShapeError
from nir.frontend import autograd, emit, flush, lazy, ownership
from nir.frontend.indexing import static
from nir.frontend.lazy import Cell
from nir.frontend.tensor_shape import ShapeMethods
from nir.ir.dim import Dim, Shape
from nir.ir.location import Location, caller
from nir.ir.op import Op
from nir.ir.types import DType, TensorType, bool_, f16, f32, f64, i32, i64


class Tensor(ShapeMethods):
    """An array of one dtype.

    ``data`` is a Tensor (copied, without its history) or anything numpy makes an array of; Python
    floats become f32, as in PyTorch, and a float64 array stays f64. In-place methods (``add_``)
    give the Tensor a new value; its old value, where others hold it, stays as it was.
    """

    __array_priority__ = 1000

    def __init__(self, data: Any, *, dtype: Any = None, requires_grad: bool = False) -> None:
        cell = data._cell.copy() if isinstance(data, Tensor) else emit.stored(_array(data))
        self._cell = cell if dtype is None else emit.cast(cell, emit.dtype_of(dtype))
        self._grad: Any = None
        if requires_grad:
            self.requires_grad_()

    @staticmethod
    def _of(cell: Cell) -> Tensor:
        t = Tensor.__new__(Tensor)
        t._cell, t._grad = cell, None
        return t

    def _new(self, cell: Cell) -> Tensor:
        return Tensor._of(cell)

    # ---- facts ---------------------------------------------------------------------------------

    @property
    def type(self) -> TensorType:
        return self._cell.value.type

    @property
    def shape(self) -> Shape:
        """Sizes: ints, or symbolic ones in a traced function."""
        return self._cell.value.type.shape

    @property
    def dtype(self) -> DType:
        return self._cell.value.type.dtype

    @property
    def device(self) -> str:
        return self._cell.value.type.device

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def dim(self) -> int:
        return self.ndim

    def size(self, dim: int | None = None) -> Any:
        """The shape, or the size of one axis."""
        return self.shape if dim is None else self.shape[emit.axis_of(dim, self.ndim, "size")]

    def numel(self) -> Dim:
        return self.type.size

    @property
    def is_leaf(self) -> bool:
        """Whether gradients that reach this tensor end here."""
        return not self._cell.tracks or self._cell.record is None

    # ---- values --------------------------------------------------------------------------------

    def _view(self, what: str, instead: str = "tensor operations") -> np.ndarray:
        data = flush.store(self._cell, what, instead)
        return data.numpy(self.dtype.numpy, static(self.shape, what))

    def numpy(self) -> np.ndarray:
        """The values, in an array of their own."""
        return np.array(self._view("numpy()"))

    def item(self) -> Any:
        """The only element, as a Python number."""
        if self.numel() != 1:
            raise ShapeError(f"item(): expected one element, got {self.type}", caller())
        return self._view("item()").reshape(()).item()

    def tolist(self) -> Any:
        """The values as nested lists."""
        return self._view("tolist()").tolist()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = np.array(self._view("an array of it"))
        return array if dtype is None else array.astype(dtype, copy=False)

    def __dlpack__(self, **kwargs: Any) -> Any:
        """The buffer itself, or a copy where ops or other tensors still rely on its values."""
        flush.store(self._cell, "DLPack")
        if ownership.is_shared(self):
            return self.numpy().__dlpack__()
        self._cell.exported = True
        return flush.store(self._cell, "DLPack").__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def _number(self, what: str, instead: str) -> Any:
        if self.numel() != 1:
            raise ShapeError(f"{what}: expected one element, got {self.type}", caller())
        return self._view(what, instead).reshape(()).item()

    def __bool__(self) -> bool:
        return bool(self._number("bool()", "nir.where or nir.cond to choose by it"))

    def __int__(self) -> int:
        return int(self._number("int()", "it as a tensor, or make it a static argument"))

    def __float__(self) -> float:
        return float(self._number("float()", "it as a tensor"))

    def __index__(self) -> int:
        if not self.dtype.is_integer:
            raise DTypeError(f"index(): expected an integer tensor, got {self.type}", caller())
        return int(self._number("index()", "it as an index tensor, or make it a static argument"))

    def __repr__(self) -> str:
        if self._cell.is_pending and lazy.traced_leaf([self._cell]) is not None:
            return f"tensor(<traced {self.type}>)"
        text = np.array2string(self._view("print"), separator=", ", prefix="tensor(")
        kind = "" if self.dtype in (f32, i64, bool_) else f", dtype={self.dtype}"
        return f"tensor({text}{kind}{', requires_grad=True' if self.requires_grad else ''})"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else repr(self)

    def __reduce__(self) -> Any:
        return _rebuilt, (type(self), self.numpy(), self.requires_grad)

    # ---- gradients -----------------------------------------------------------------------------

    @property
    def requires_grad(self) -> bool:
        """Whether gradients flow to or through this tensor."""
        return self._cell.tracks

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.requires_grad_(value)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Let gradients end here, in ``grad``; or let none come."""
        if requires_grad and not self.dtype.is_float:
            raise DTypeError(f"requires_grad_: expected a float tensor, got {self.type}", caller())
        if requires_grad and self._cell.tracks:
            return self
        if not requires_grad and not self.is_leaf:
            raise NotDifferentiable(
                "requires_grad_: expected a leaf, got the result of an op: use detach()", caller()
            )
        self._rebind(self._cell, requires_grad)
        return self

    @property
    def grad(self) -> Tensor | None:
        """What `backward` has added up; None if nothing."""
        return autograd.read_grad(self)

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if value is not None and value.type != self.type:
            raise ShapeError(f"grad: expected {self.type}, got {value.type}", caller())
        autograd.write_grad(self, value)

    def backward(self, gradient: Tensor | None = None, retain_graph: bool = False) -> None:
        """Add d self / d leaf to ``grad`` of every leaf that requires a gradient.

        ``gradient`` is the cotangent of self, left out for a scalar. The history is given up
        unless ``retain_graph``. For gradients of gradients see `nir.grad`.
        """
        autograd.backward(self, gradient, retain_graph)

    def detach(self) -> Tensor:
        """The same value, through which no gradient flows."""
        return Tensor._of(self._cell.copy() if self._cell.tracks else self._cell)

    def clone(self) -> Tensor:
        """The same value in a tensor of its own, through which gradients flow."""
        return Tensor._of(autograd.passed_on(self._cell))

    @property
    def data(self) -> Tensor:
        """This tensor without its history; assigning rebinds it, to any type."""
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        self._rebind(value._cell, self.requires_grad and value.dtype.is_float)

    # ---- rebinding -----------------------------------------------------------------------------

    def _rebind(self, cell: Cell, leaf: bool) -> None:
        """Take over the value of ``cell``, not its history; ``leaf``: gradients end here."""
        self._adopt(cell.copy(), leaf)

    def _adopt(self, cell: Cell, leaf: bool) -> None:
        """Take over ``cell`` itself, which has no history and no other owner."""
        self._cell = cell
        if leaf:
            cell.tracks = True
            cell.owner = weakref.ref(self)

    def copy_(self, source: Any) -> Self:
        """Take over the values of ``source``, broadcast and cast to this type, not its history."""
        x = source._cell if isinstance(source, Tensor) else emit.stored(_array(source))
        x = emit.broadcast(emit.cast(x, self.dtype), self.shape, "copy_")
        self._rebind(x, self.requires_grad)
        flush.add_update(self._cell)
        return self

    def _update(self, name: str, value: Tensor) -> Self:
        """Rebind to ``value``, computed from self; gradients flow through unless self is a leaf."""
        if value.shape != self.shape:
            raise ShapeError(f"{name}: a {self.type} cannot become a {value.type}", caller())
        if value.dtype != self.dtype:
            raise DTypeError(f"{name}: a {self.type} cannot become a {value.type}", caller())
        if not lazy.grad_enabled() or (not self.requires_grad and not value.requires_grad):
            return self.copy_(value)
        if self.requires_grad and self.is_leaf:
            raise NotDifferentiable(
                f"{name}: a leaf that requires a gradient changes in place: use nir.no_grad()",
                caller(),
            )
        self._cell = value._cell
        flush.add_update(self._cell)
        return self

    def add_(self, other: Any, alpha: float = 1) -> Self:
        return self._update("add_", self.add(other, alpha))

    def sub_(self, other: Any, alpha: float = 1) -> Self:
        return self._update("sub_", self.sub(other, alpha))

    def mul_(self, other: Any) -> Self:
        return self._update("mul_", self * other)

    def div_(self, other: Any) -> Self:
        return self._update("div_", self / other)

    def clamp_(self, min: Any = None, max: Any = None) -> Self:
        return self._update("clamp_", self.clamp(min, max))

    def fill_(self, value: float) -> Self:
        return self.copy_(Tensor._of(emit.full(value, self.shape, self.dtype)))

    def zero_(self) -> Self:
        return self.fill_(0)

    def __iadd__(self, other: Any) -> Self:
        return self.add_(other)

    def __isub__(self, other: Any) -> Self:
        return self.sub_(other)

    def __imul__(self, other: Any) -> Self:
        return self.mul_(other)

    def __itruediv__(self, other: Any) -> Self:
        return self.div_(other)

    # ---- types ---------------------------------------------------------------------------------

    def to(self, target: Any) -> Tensor:
        """This tensor in another dtype, or on a device; itself if nothing changes."""
        if isinstance(target, str) and target.split(":")[0] in ("cpu", "cuda", "gpu", "tpu", "mps"):
            emit.check_device(target)
            return self
        to = emit.dtype_of(target)
        return self if to == self.dtype else Tensor._of(emit.cast(self._cell, to))

    def type_as(self, other: Tensor) -> Tensor:
        return self.to(other.dtype)

    def float(self) -> Tensor:
        return self.to(f32)

    def double(self) -> Tensor:
        return self.to(f64)

    def half(self) -> Tensor:
        return self.to(f16)

    def int(self) -> Tensor:
        return self.to(i32)

    def long(self) -> Tensor:
        return self.to(i64)

    def bool(self) -> Tensor:
        return self.to(bool_)

    def cpu(self) -> Tensor:
        return self

    def contiguous(self) -> Tensor:
        return self


def apply(op: type[Op], *operands: Any, **attributes: Any) -> Any:
    """Record ``op`` on Tensors as they are, unbroadcast: a Tensor, or a tuple of several.

    An absent operand is None, a variadic one a sequence.
    """
    cells = [
        x._cell if isinstance(x, Tensor) else [t._cell for t in x] if x is not None else None
        for x in operands
    ]
    results = [Tensor._of(c) for c in emit.apply(op, *cells, **attributes)]
    return results[0] if len(results) == 1 else tuple(results)


def _array(data: Any) -> np.ndarray:
    if hasattr(data, "__array__") or hasattr(data, "__dlpack__"):
        return np.asarray(data) if hasattr(data, "__array__") else np.from_dlpack(data)
    if isinstance(data, Sequence) and any(isinstance(x, Tensor) for x in data):
        return np.stack([x.numpy() if isinstance(x, Tensor) else np.asarray(x) for x in data])
    try:
        array = np.asarray(data)
    except ValueError as error:  # ragged nested lists
        raise ShapeError(f"tensor: {error}", caller()) from None
    # Python numbers: f32 for floats, as in PyTorch.
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _rebuilt(cls: type[Tensor], array: np.ndarray, requires_grad: bool) -> Tensor:
    t = cls.__new__(cls)
    Tensor.__init__(t, array, requires_grad=requires_grad)
    return t


def mark_donated(t: Tensor, where: Location) -> None:
    """Let ``t`` refuse to be read: its buffer was given away at ``where``."""
    cell = Cell(t.type)
    cell.stale = where
    t._cell = cell
