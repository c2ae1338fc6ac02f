"""Ops on cells: recording, broadcasting and type promotion by PyTorch's rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from nir import ops
from nir.errors import DeviceError, DTypeError, ShapeError
from nir.frontend import flush, lazy
from nir.frontend.lazy import Cell
from nir.ir.dim import Dim, Poly, Shape, prod
from nir.ir.location import caller
from nir.ir.op import Op
from nir.ir.types import DType, TensorType, bf16, bool_, dtype, f16, f32, i16, i64, u8
from nir.runtime import Storage

# Python numbers, and symbolic sizes, which count as integers.
Number: TypeAlias = "bool | int | float | Poly"
NUMBERS = (bool, int, float)
# A kind promotes to one of higher rank.
_RANK = {"bool": 0, "uint": 1, "int": 1, "float": 2}


def shown(shape: Sequence[Any]) -> str:
    """A shape as messages show it: [2,3]."""
    return "[" + ",".join(map(str, shape)) + "]"


def dtype_of(spec: Any) -> DType:
    """The DType that ``spec`` names; DTypeError at the user's line if there is none."""
    try:
        return dtype(spec)
    except TypeError as error:
        raise DTypeError(str(error), caller()) from None


def check_device(device: str | None) -> None:
    """Raises DeviceError unless ``device`` is there; None means any."""
    if device is not None and device != "cpu":
        raise DeviceError(f"expected device 'cpu', got {device!r}: no such device here", caller())


def axis_of(dim: int, ndim: int, what: str) -> int:
    """``dim`` counted from the front; ShapeError if a tensor of ``ndim`` axes has no such axis."""
    if isinstance(dim, (bool, float)) or not hasattr(dim, "__index__"):
        raise ShapeError(f"{what}: expected an axis, got {dim!r}", caller())
    axis = dim.__index__()
    if not -ndim <= axis < ndim:
        valid = f"an axis from {-ndim} to {ndim - 1}" if ndim else "no axis of a 0-d tensor"
        raise ShapeError(f"{what}: expected {valid}, got {axis}", caller())
    return axis % ndim


def stored(array: np.ndarray) -> Cell:
    """A cell of a copy of ``array``."""
    return Cell(TensorType(dtype_of(array.dtype), array.shape), Storage.from_numpy(array))


# ---- recording ---------------------------------------------------------------------------------


def apply(op: type[Op], *operands: Any, **attributes: Any) -> list[Cell]:
    """Record ``op`` on cells (None for an absent operand, a sequence for a variadic one)."""
    given = dict(attributes)
    cells: list[Cell] = []
    for (name, arity), x in zip(op.operand_fields, operands, strict=True):
        if arity == "many":
            cells += x
            given[name] = tuple(c.value for c in x)
        elif x is None:
            given[name] = None
        else:
            cells.append(x)
            given[name] = x.value
    devices = {c.type.device for c in cells}
    if len(devices) > 1:
        types = ", ".join(str(c.type) for c in cells)
        raise DeviceError(f"{op.name}: expected operands on one device, got {types}", caller())
    results = lazy.record(op(**given), cells)
    flush.bound_depth(results)
    return results


def one(op: type[Op], *operands: Any, **attributes: Any) -> Cell:
    """`apply` for an op with one result."""
    (cell,) = apply(op, *operands, **attributes)
    return cell


def full(value: Any, shape: Shape, to: DType, lift: bool = False) -> Cell:
    """A tensor of one number; ``lift`` makes a float an input of eager programs."""
    if not isinstance(value, Poly):
        value = float(value) if to.is_float else bool(value) if to == bool_ else int(value)
    (cell,) = lazy.record(ops.Full(value, shape, to), (), lift=lift)
    return cell


def cast(x: Cell, to: DType) -> Cell:
    return x if x.dtype == to else one(ops.Cast, x, dtype=to)


# ---- promotion ---------------------------------------------------------------------------------


def promote(a: DType, b: DType) -> DType:
    """PyTorch's promotion of two dtypes."""
    if a == b:
        return a
    if _RANK[a.kind] != _RANK[b.kind]:
        return a if _RANK[a.kind] > _RANK[b.kind] else b
    if {a, b} == {f16, bf16}:
        return f32
    if u8 in (a, b):  # beside a signed integer that may not hold all of u8
        other = b if a == u8 else a
        return i16 if other.itemsize == 1 else other
    return a if a.itemsize >= b.itemsize else b


def number_dtype(x: Number) -> DType:
    """The dtype of a tensor made of a Python number."""
    return bool_ if isinstance(x, bool) else i64 if isinstance(x, (int, Poly)) else f32


def result_dtype(xs: Sequence[Cell | Number]) -> DType:
    """PyTorch's result type: tensors with axes outrank 0-d ones, and these Python numbers.

    An operand of lower standing counts only if its kind is higher.
    """
    found: list[DType | None] = [None, None, None]
    for x in xs:
        standing = 2 if not isinstance(x, Cell) else 1 if x.ndim == 0 else 0
        own = x.dtype if isinstance(x, Cell) else number_dtype(x)
        seen = found[standing]
        found[standing] = own if seen is None else promote(seen, own)
    result: DType | None = None
    for d in found:
        if d is not None and (result is None or _RANK[d.kind] > _RANK[result.kind]):
            result = d
    assert result is not None
    return result


# ---- broadcasting ------------------------------------------------------------------------------


def broadcast_shapes(what: str, *shapes: Shape) -> Shape:
    """The shape that ``shapes`` broadcast to, by numpy's rules."""
    ndim = max(map(len, shapes), default=0)
    out: list[Dim] = [1] * ndim
    for shape in shapes:
        for axis, d in enumerate(shape, ndim - len(shape)):
            if d == 1 or out[axis] == d:
                continue
            if out[axis] != 1:
                given = " and ".join(map(shown, shapes))
                raise ShapeError(
                    f"{what}: shapes {given} do not broadcast: axis {axis - ndim} has sizes "
                    f"{out[axis]} and {d}",
                    caller(),
                )
            out[axis] = d
    return tuple(out)


def broadcast(x: Cell, shape: Shape, what: str = "expand") -> Cell:
    """x with axes of size 1, and new ones in front, repeated to ``shape``."""
    if x.shape == shape:
        return x
    offset = len(shape) - x.ndim
    kept = [a for a, d in enumerate(x.shape) if offset >= 0 and d == shape[offset + a]]
    if offset < 0 or any(d != 1 for a, d in enumerate(x.shape) if a not in kept):
        raise ShapeError(f"{what}: {x.type} does not broadcast to {shown(shape)}", caller())
    if len(kept) < x.ndim:
        x = one(ops.Reshape, x, shape=tuple(x.shape[a] for a in kept))
    if x.shape == shape:
        return x
    return one(ops.Broadcast, x, shape=shape, axes=tuple(offset + a for a in kept))


def together(
    what: str, *xs: Cell | Number, to: DType | None = None, lift: bool = True
) -> list[Cell]:
    """The operands as tensors of one shape and dtype (``to``, or PyTorch's result type)."""
    common = result_dtype(xs) if to is None else to
    shape = broadcast_shapes(what, *(x.shape for x in xs if isinstance(x, Cell)))
    return [
        broadcast(cast(x, common), shape, what)
        if isinstance(x, Cell)
        else full(x, shape, common, lift)
        for x in xs
    ]


# ---- compositions ------------------------------------------------------------------------------

_ARITHMETIC = (ops.Add, ops.Sub, ops.Mul, ops.FloorDiv, ops.Mod)


def binary(op: type[Op], x: Cell | Number, y: Cell | Number) -> Cell:
    """An elementwise op of two operands, broadcast and promoted; / and ** are of floats."""
    to: DType | None = None
    common = result_dtype((x, y))
    if op in (ops.Div, ops.Pow) and not common.is_float:
        to = f32
    elif op in _ARITHMETIC and common == bool_:
        to = i64  # PyTorch refuses some of these and answers others in bool; numbers count here
    # Exponents decide between rules (x ** 2 is a product), so they are no inputs.
    return one(op, *together(op.name, x, y, to=to, lift=op is not ops.Pow))


def power(x: Cell, n: float) -> Cell:
    """x ** n for a Python number: products for small integers, roots for halves."""
    if isinstance(n, (int, float)) and n == 0.5 and x.dtype.is_float:
        return one(ops.Sqrt, x)
    if float(n).is_integer() and 1 <= n <= (4 if x.dtype.is_float else 64):
        if x.dtype.is_integer and isinstance(n, float):
            x = cast(x, f32)
        return _product_power(x, int(n))
    if not x.dtype.is_float and isinstance(n, int):
        if n == 0:
            return full(1, x.shape, x.dtype)
        raise DTypeError(f"pow: expected an exponent from 0 to 64 for {x.type}, got {n}", caller())
    if n == -1:
        return binary(ops.Div, 1.0, x)
    return binary(ops.Pow, x, n)


def _product_power(x: Cell, n: int) -> Cell:
    half = x if n < 4 else _product_power(x, n // 2)
    if n < 4:
        out = x
        for _ in range(n - 1):
            out = one(ops.Mul, out, x)
        return out
    square = one(ops.Mul, half, half)
    return one(ops.Mul, square, x) if n % 2 else square


def where(condition: Cell, x: Cell | Number, y: Cell | Number) -> Cell:
    """x where ``condition`` holds, else y; all broadcast."""
    if condition.dtype != bool_:
        raise DTypeError(f"where: expected a bool condition, got {condition.type}", caller())
    common = result_dtype((x, y))
    shapes = [c.shape for c in (condition, x, y) if isinstance(c, Cell)]
    shape = broadcast_shapes("where", *shapes)
    a, b = (
        broadcast(cast(v, common), shape, "where") if isinstance(v, Cell)
        else full(v, shape, common, lift=True)
        for v in (x, y)
    )  # fmt: skip
    return one(ops.Where, broadcast(condition, shape, "where"), a, b)


def matmul(a: Cell, b: Cell) -> Cell:
    """(..., M, K) x (..., K, N), batch axes broadcast; a 1-d operand is a row or a column."""
    given = f"(lhs: {a.type}, rhs: {b.type})"
    if a.ndim == 0 or b.ndim == 0:
        raise ShapeError(f"matmul: expected operands with axes {given}", caller())
    if a.dtype != b.dtype:
        raise DTypeError(f"matmul: expected operands of one dtype {given}", caller())
    inner = a.shape[-1], b.shape[-2 if b.ndim > 1 else -1]
    if inner[0] != inner[1]:
        raise ShapeError(
            f"matmul: inner dimensions differ: {inner[0]} (lhs: {a.type}) and {inner[1]} "
            f"(rhs: {b.type})",
            caller(),
        )
    row, column = a.ndim == 1, b.ndim == 1
    if row:
        a = one(ops.Reshape, a, shape=(1, *a.shape))
    if column:
        b = one(ops.Reshape, b, shape=(*b.shape, 1))
    if b.ndim == 2 and a.ndim > 2:
        # One matrix for the whole batch: a single product of more rows.
        flat = one(ops.Reshape, a, shape=(prod(a.shape[:-1]), a.shape[-1]))
        out = one(ops.Matmul, flat, b)
        out = one(ops.Reshape, out, shape=(*a.shape[:-1], b.shape[-1]))
    else:
        batch = broadcast_shapes("matmul", a.shape[:-2], b.shape[:-2])
        a = broadcast(a, (*batch, *a.shape[-2:]), "matmul")
        b = broadcast(b, (*batch, *b.shape[-2:]), "matmul")
        out = one(ops.Matmul, a, b)
    if row or column:
        dropped = [out.ndim - 2] * row + [out.ndim - 1] * column
        shape = tuple(d for a, d in enumerate(out.shape) if a not in dropped)
        out = one(ops.Reshape, out, shape=shape)
    return out


def concat(cells: Sequence[Cell], axis: int, what: str = "cat") -> Cell:
    """The tensors, promoted to one dtype, one after the other along ``axis``."""
    common = cells[0].dtype
    for c in cells[1:]:
        common = promote(common, c.dtype)
    return one(ops.Concat, [cast(c, common) for c in cells], axis=axis)
