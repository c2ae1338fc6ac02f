"""Broadcasting, promotion and indexing of cells: what stands between Tensor methods and the IR.

The IR has no implicit broadcasting and no promotion, so the casts and broadcasts that PyTorch's
rules imply are recorded here, as ops.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from nir import ops
from nir.errors import DeviceError, DTypeError, ShapeError, TraceError
from nir.frontend import lazy
from nir.frontend.lazy import Cell
from nir.ir.dim import Dim, Shape, prod
from nir.ir.location import caller
from nir.ir.op import Op
from nir.ir.types import DType, TensorType, bool_, dtype, f32, i64
from nir.runtime import Storage

Number: TypeAlias = "bool | int | float"
NUMBERS = (bool, int, float)
_RANK = {"bool": 0, "uint": 1, "int": 1, "float": 2}
_HALF = {"f16", "bf16"}
# Ops that PyTorch computes on bools as on integers.
_COUNTS = (ops.Add, ops.Sub, ops.Mul, ops.FloorDiv, ops.Mod)


def shown(shape: Sequence[Any]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


def apply(
    op: type[Op], *operands: Cell | Sequence[Cell] | None, **attributes: Any
) -> tuple[Cell, ...]:
    """Record ``op`` on cells as they are: no broadcasting, no promotion."""
    given = dict(attributes)
    cells: list[Cell] = []
    for (name, _), x in zip(op.operand_fields, operands, strict=True):
        match x:
            case Cell():
                cells.append(x)
                given[name] = x.value
            case None:
                given[name] = None
            case _:
                cells += x
                given[name] = tuple(c.value for c in x)
    return lazy.record(op(**given), cells)


def one(op: type[Op], *operands: Cell | Sequence[Cell] | None, **attributes: Any) -> Cell:
    """`apply`, of an op with one result."""
    (cell,) = apply(op, *operands, **attributes)
    return cell


def full(value: Any, shape: Shape, to: DType) -> Cell:
    return one(ops.Full, value=value, shape=shape, dtype=to)


def stored(array: np.ndarray) -> Cell:
    """A cell of a copy of ``array``."""
    try:
        t = TensorType(dtype(array.dtype), array.shape)
    except TypeError as error:
        raise DTypeError(str(error), caller()) from None
    return Cell(t, Storage.from_numpy(array))


def as_array(data: Any, to: Any = None) -> np.ndarray:
    """``data`` as an array; Python floats become f32, as in PyTorch."""
    array = np.asarray(data)
    from_numbers = not (isinstance(data, np.ndarray | np.generic) or hasattr(data, "__array__"))
    if from_numbers and array.dtype == np.float64:
        array = array.astype(np.float32)
    try:
        return array.astype(dtype(to).numpy) if to is not None else array
    except TypeError as error:
        raise DTypeError(str(error), caller()) from None


def cell_of(x: Any, like: DType) -> Cell:
    """``x`` (a Tensor, number or array) as a cell; a number takes ``like`` if its kind allows."""
    if isinstance(x, NUMBERS):
        return full(x, (), weak(x, like))
    cell = getattr(x, "_cell", None)
    return cell if isinstance(cell, Cell) else stored(as_array(x))


def index_item(i: Any) -> Any:
    """An item of an index, with Tensors, lists and arrays as cells."""
    if isinstance(i, list | np.ndarray) or isinstance(getattr(i, "_cell", None), Cell):
        return cell_of(i, i64)
    return i


# ---- promotion and broadcasting ----------------------------------------------------------------


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


def weak(x: Number, like: DType) -> DType:
    """The dtype of a Python number beside a tensor of dtype ``like``."""
    if isinstance(x, bool) or like.is_float:
        return like
    if isinstance(x, int):
        return i64 if like == bool_ else like
    return f32


def common_dtype(xs: Sequence[Cell | Number]) -> DType:
    """Tensors with axes outrank 0-d ones of the same kind, which outrank Python numbers."""
    found: DType | None = None
    for group in (True, False):
        for x in xs:
            if not isinstance(x, Cell) or (x.value.type.ndim > 0) is not group:
                continue
            d = x.value.type.dtype
            if found is None:
                found = d
            elif group or _RANK[d.kind] > _RANK[found.kind]:
                found = promote(found, d)
    assert found is not None, "an op on numbers alone is Python's"
    if all(x.value.type.ndim == 0 for x in xs if isinstance(x, Cell)):
        for x in xs:
            found = promote(found, x.value.type.dtype) if isinstance(x, Cell) else found
    for x in xs:
        if not isinstance(x, Cell):
            d = weak(x, found)
            found = d if _RANK[d.kind] > _RANK[found.kind] else found
    return found


def cast(x: Cell, to: DType) -> Cell:
    return x if x.value.type.dtype == to else one(ops.Cast, x, dtype=to)


def reshape(x: Cell, shape: Shape) -> Cell:
    return x if x.value.type.shape == shape else one(ops.Reshape, x, shape=shape)


def broadcast_shapes(*shapes: Shape) -> Shape:
    """The shape that ``shapes`` broadcast to, by numpy's rules."""
    n = max(map(len, shapes), default=0)
    out: list[Dim] = [1] * n
    for shape in shapes:
        for a, d in enumerate(shape, n - len(shape)):
            if out[a] == d or d == 1:
                continue
            if out[a] != 1:
                both = " and ".join(map(shown, shapes))
                raise ShapeError(
                    f"shapes {both} do not broadcast: {out[a]} and {d} on axis {a}", caller()
                )
            out[a] = d
    return tuple(out)


def broadcast(x: Cell, shape: Shape) -> Cell:
    """x with axes of size 1, and new ones in front, repeated to ``shape``."""
    t = x.value.type
    if t.shape == shape:
        return x
    offset = len(shape) - t.ndim
    if offset < 0:
        raise ShapeError(f"expand: {shown(shape)} has fewer axes than {t}", caller())
    kept = [a for a, d in enumerate(t.shape) if d != 1 or shape[offset + a] == 1]
    for a in kept:
        if t.shape[a] != shape[offset + a]:
            raise ShapeError(f"expand: {t} does not broadcast to {shown(shape)}", caller())
    small = reshape(x, tuple(t.shape[a] for a in kept))
    if small.value.type.shape == shape:
        return small
    return one(ops.Broadcast, small, shape=shape, axes=tuple(offset + a for a in kept))


def together(*xs: Cell | Number, as_float: bool = False) -> list[Cell]:
    """Cells of one shape and dtype."""
    devices = {x.value.type.device for x in xs if isinstance(x, Cell)}
    if len(devices) > 1:
        names = " and ".join(sorted(devices))
        raise DeviceError(f"expected operands on one device, got {names}", caller())
    to = common_dtype(xs)
    if as_float and not to.is_float:
        to = f32
    shape = broadcast_shapes(*(x.value.type.shape for x in xs if isinstance(x, Cell)))
    return [
        broadcast(cast(x, to), shape) if isinstance(x, Cell) else full(_number(x, to), shape, to)
        for x in xs
    ]


def _number(x: Number, to: DType) -> Number:
    return float(x) if to.is_float else bool(x) if to == bool_ else int(x)


def binary(op: type[Op], x: Cell | Number, y: Cell | Number, as_float: bool = False) -> Cell:
    """Record an elementwise op of two operands, broadcast and promoted."""
    a, b = together(x, y, as_float=as_float)
    if a.value.type.dtype == bool_ and op in _COUNTS:
        a, b = cast(a, i64), cast(b, i64)
    return one(op, a, b)


def where(condition: Cell, x: Cell | Number, y: Cell | Number) -> Cell:
    """x where ``condition`` holds, else y; all broadcast."""
    if condition.value.type.dtype != bool_:
        raise DTypeError(f"where: expected a bool condition, got {condition.value.type}", caller())
    if not isinstance(x, Cell) and not isinstance(y, Cell):
        x = full(x, (), f32 if isinstance(x, float) or isinstance(y, float) else i64)
    a, b = together(x, y)
    shape = broadcast_shapes(condition.value.type.shape, a.value.type.shape)
    return one(ops.Where, broadcast(condition, shape), broadcast(a, shape), broadcast(b, shape))


def concat(xs: Sequence[Cell], axis: int) -> Cell:
    """The cells one after the other along ``axis``, promoted."""
    to = xs[0].value.type.dtype
    for x in xs[1:]:
        to = promote(to, x.value.type.dtype)
    return one(ops.Concat, [cast(x, to) for x in xs], axis=axis)


def matmul(a: Cell, b: Cell) -> Cell:
    """The product of matrices (..., M, K) x (..., K, N); a 1-d operand is a row or a column."""
    s, t = a.value.type, b.value.type
    if not s.ndim or not t.ndim:
        raise ShapeError(f"matmul: expected operands with axes, got {s} and {t}", caller())
    if s.dtype != t.dtype:
        raise DTypeError(f"matmul: expected operands of one dtype, got {s} and {t}", caller())
    row, column = s.ndim == 1, t.ndim == 1
    a = reshape(a, (1, *s.shape)) if row else a
    b = reshape(b, (*t.shape, 1)) if column else b
    left, right = a.value.type.shape, b.value.type.shape
    if len(right) == 2 and len(left) > 2:
        # One matrix for the whole batch: a single product of more rows.
        flat = reshape(a, (prod(left[:-1]), left[-1]))
        out = reshape(one(ops.Matmul, flat, b), (*left[:-1], right[-1]))
    else:
        batch = broadcast_shapes(left[:-2], right[:-2])
        out = one(
            ops.Matmul, broadcast(a, (*batch, *left[-2:])), broadcast(b, (*batch, *right[-2:]))
        )
    shape = out.value.type.shape
    shape = (*shape[:-2], shape[-1]) if row else shape
    return reshape(out, shape[:-1] if column else shape)


# ---- indexing ----------------------------------------------------------------------------------


def index(x: Cell, items: Sequence[Any]) -> Cell:
    """x[items]: integers, slices with steps, None, Ellipsis and cells of integers."""
    t = x.value.type
    items = list(items)
    if any(isinstance(i, Cell) and i.value.type.dtype == bool_ for i in items):
        raise TraceError(
            "indexing by a bool mask gives a size that depends on values: "
            "use where() or masked_fill()",
            caller(),
        )
    used = sum(i is not None and i is not Ellipsis for i in items)
    if used > t.ndim:
        raise ShapeError(f"{used} indices for {t}", caller())
    if not any(i is Ellipsis for i in items):
        items.append(Ellipsis)
    at = next(k for k, i in enumerate(items) if i is Ellipsis)
    items[at : at + 1] = [slice(None)] * (t.ndim - used)

    starts: list[Dim] = []
    sizes: list[Dim] = []
    steps: list[int] = []
    flips: list[int] = []
    shape: list[Dim] = []  # after integers drop out and None comes in
    takes: list[tuple[int, Cell]] = []
    for i in items:
        if i is None:
            shape.append(1)
            continue
        axis = len(starts)
        n = t.shape[axis]
        start: Dim = 0
        size, step = n, 1
        match i:
            case slice():
                start, size, step, flip = _slice(i, n)
                flips += [axis] if flip else []
                shape.append(size)
            case Cell():
                takes.append((len(shape), i))
                shape.append(n)
            case _:
                k = int(i)
                if isinstance(n, int) and not -n <= k < n:
                    raise ShapeError(f"index {k} is out of range for axis {axis} of {t}", caller())
                start, size = (n + k if k < 0 else k), 1
        starts.append(start)
        sizes.append(size)
        steps.append(step)
    out = x
    if tuple(sizes) != t.shape or any(s != 1 for s in steps):
        out = one(ops.Slice, out, starts=tuple(starts), sizes=tuple(sizes), steps=tuple(steps))
    if flips:
        out = one(ops.Flip, out, axes=tuple(flips))
    out = reshape(out, tuple(shape))
    if len(takes) > 1:
        return _take_many(out, takes)
    for a, c in takes:
        out = one(ops.Take, out, c, axis=a)
    return out


def _take_many(x: Cell, takes: list[tuple[int, Cell]]) -> Cell:
    """x[i, j, ...] of neighbouring axes: one index into the axes made one."""
    shape = x.value.type.shape
    first, last = takes[0][0], takes[-1][0]
    if [a for a, _ in takes] != list(range(first, last + 1)):
        raise ShapeError("index tensors must stand on neighbouring axes", caller())
    total: Cell | None = None
    for a, i in takes:
        n = full(shape[a], (), i64)
        wrapped = where(binary(ops.Lt, i, 0), binary(ops.Add, i, n), i)
        total = wrapped if total is None else binary(ops.Add, binary(ops.Mul, total, n), wrapped)
    flat = reshape(x, (*shape[:first], prod(shape[first : last + 1]), *shape[last + 1 :]))
    return one(ops.Take, flat, total, axis=first)


def _slice(s: slice, n: Dim) -> tuple[Dim, Dim, int, bool]:
    """(start, size, step, reversed) of a slice of an axis of size n."""
    step = 1 if s.step is None else int(s.step)
    if step == 0:
        raise ShapeError("slice step is 0", caller())
    if isinstance(n, int):
        picked = range(*s.indices(n))
        if step < 0:
            return (picked[-1] if picked else 0), len(picked), -step, True
        return (picked.start if picked else 0), len(picked), step, False
    if step != 1:
        raise ShapeError(
            f"slices of an axis of symbolic size {n} have step 1, got {step}", caller()
        )
    start: Dim = 0 if s.start is None else n + s.start if _negative(s.start) else s.start
    stop: Dim = n if s.stop is None else n + s.stop if _negative(s.stop) else s.stop
    return start, stop - start, 1, False


def _negative(d: Any) -> bool:
    return isinstance(d, int) and d < 0
