"""What the method groups of `Tensor` share: its cell, its type, and how to record an op."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nir.errors import ShapeError, TraceError
from nir.frontend import arith
from nir.frontend.arith import NUMBERS, shown
from nir.frontend.lazy import Cell
from nir.ir.dim import Dim, prod
from nir.ir.location import caller
from nir.ir.op import Op
from nir.ir.types import DType, TensorType, f32

if TYPE_CHECKING:
    from nir.frontend.tensor import Tensor


def flat(args: Sequence[Any]) -> tuple[Any, ...]:
    """The arguments, or the elements of the only one: ``f(1, 2)`` and ``f((1, 2))``."""
    return tuple(args[0]) if len(args) == 1 and isinstance(args[0], tuple | list) else tuple(args)


class TensorBase:
    """A cell with the facts of its type. `Tensor` is the only class to derive from the groups."""

    __slots__ = ()
    _cell: Cell

    def _new(self, cell: Cell) -> Tensor:
        raise NotImplementedError

    def to(self, target: Any) -> Tensor:
        raise NotImplementedError

    def _same(self) -> Tensor:
        """This tensor, as a Tensor."""
        return self._new(self._cell)

    def _apply(self, op: type[Op], *others: Tensor, **attributes: Any) -> Tensor:
        return self._new(arith.one(op, self._cell, *(t._cell for t in others), **attributes))

    def _source(self, op: type[Op], **attributes: Any) -> Tensor:
        return self._new(arith.one(op, **attributes))

    def _where(self, condition: Tensor, x: Any, y: Any) -> Tensor:
        given = [v if isinstance(v, NUMBERS) else arith.cell_of(v, f32) for v in (x, y)]
        return self._new(arith.where(arith.cell_of(condition, f32), *given))

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

    def _axis(self, dim: builtins.int, ndim: builtins.int | None = None) -> builtins.int:
        n = self.ndim if ndim is None else ndim
        if not -n <= dim < n:
            raise ShapeError(
                f"axis {dim} is out of range: expected {-n} to {n - 1} "
                f"for shape {shown(self.shape)}",
                caller(),
            )
        return dim % n

    def _axes(self, dim: Any) -> tuple[builtins.int, ...]:
        if dim is None:
            return tuple(range(self.ndim))
        given = (dim,) if isinstance(dim, int) else tuple(dim)
        axes = sorted(self._axis(d) for d in given)
        if len(set(axes)) != len(axes):
            raise ShapeError(f"axis given twice in {given}", caller())
        return tuple(axes)
