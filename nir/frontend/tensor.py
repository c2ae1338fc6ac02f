"""`Tensor`: n-dimensional arrays with PyTorch's methods, computed when they are looked at.

Every op is recorded (see `nir.frontend.lazy`); shapes and dtypes are known at once, values when
`numpy`, `item`, `print`, `bool` or an array protocol asks for them. Broadcasting and promotion
follow PyTorch: Python numbers take the tensor's dtype where their kind allows it.
"""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from nir import ops
from nir.errors import DeviceError, DTypeError, NirError, ShapeError, StaleTensorError, TraceError
from nir.frontend import arith, lazy
from nir.frontend.arith import NUMBERS, shown
from nir.frontend.gradients import gradients, leaves_of, register_leaf
from nir.frontend.lazy import Cell
from nir.frontend.methods.reduction import Reduction
from nir.ir.location import caller
from nir.ir.op import Op
from nir.ir.types import bool_, dtype, f32, i64


class Tensor(Reduction):
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
            self._cell = arith.stored(arith.as_array(data, dtype))
        if requires_grad:
            self.requires_grad_(True)

    def _new(self, cell: Cell) -> Tensor:
        return Tensor._of(cell)

    @classmethod
    def _of(cls, cell: Cell) -> Tensor:
        t = object.__new__(Tensor)
        t._cell, t._grad = cell, None
        return t

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
        cell = arith.cast(arith.cell_of(source, self.dtype), self.dtype)
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


# ---- recording ---------------------------------------------------------------------------------


def _own_cell(cell: Cell) -> Cell:
    """A cell of its own for the same value, so that marks on one do not show on the other."""
    if cell.data is not None:
        new = Cell(cell.value.type, cell.data)
        new.stale = cell.stale
        return new
    (new,) = lazy.record(ops.Reshape(cell.value, cell.value.type.shape), [cell])
    return new


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
    given = [v if isinstance(v, NUMBERS) else arith.cell_of(v, f32) for v in (x, y)]
    return Tensor._of(arith.where(arith.cell_of(condition, f32), given[0], given[1]))


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """The tensors one after the other along ``dim``."""
    if not tensors:
        raise ShapeError("cat: expected at least one tensor", caller())
    return Tensor._of(arith.concat([t._cell for t in tensors], tensors[0]._axis(dim)))
