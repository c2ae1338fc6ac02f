"""Functions that make and combine Tensors: numpy's and PyTorch's names."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from nir import ops
from nir.errors import DeviceError, DTypeError, ShapeError
from nir.frontend import emit, flush, lazy
from nir.frontend.lazy import Cell
from nir.frontend.tensor import Tensor, apply
from nir.frontend.tensor_math import operand
from nir.frontend.tensor_shape import sizes
from nir.ir.dim import Dim, Poly
from nir.ir.location import caller
from nir.ir.op import Op
from nir.ir.types import bool_, f32, i64

# ---- from data -----------------------------------------------------------------------------------


def tensor(
    data: Any, dtype: Any = None, requires_grad: bool = False, device: str | None = None
) -> Tensor:
    """A Tensor of numbers, nested lists or arrays, copied; Python floats become f32."""
    emit.check_device(device)
    return Tensor(data, dtype=dtype, requires_grad=requires_grad)


def from_numpy(array: np.ndarray) -> Tensor:
    """A Tensor of a copy of ``array``."""
    return Tensor(np.asarray(array))


def from_dlpack(source: Any) -> Tensor:
    """A Tensor of a copy of what ``source`` exports. DeviceError if that is not in host memory."""
    if hasattr(source, "__dlpack_device__") and source.__dlpack_device__()[0] != 1:
        raise DeviceError(
            f"from_dlpack: expected a tensor in host memory, got DLPack device "
            f"{source.__dlpack_device__()}",
            caller(),
        )
    return Tensor(np.from_dlpack(source))


def constant(x: Any) -> Tensor:
    """``x`` as a constant of the function being traced: its value now, whatever becomes of it."""
    if not isinstance(x, Tensor):
        return Tensor(x)
    with lazy.outside_traces():
        data = flush.store(x._cell, "constant")
    return Tensor._of(Cell(x.type, data))


# ---- filled --------------------------------------------------------------------------------------


def full(
    shape: Any,
    value: Any,
    dtype: Any = None,
    requires_grad: bool = False,
    device: str | None = None,
) -> Tensor:
    """A tensor of one number (or of a symbolic size, as a number)."""
    emit.check_device(device)
    if not isinstance(value, (*emit.NUMBERS, Poly)):
        raise DTypeError(f"full: expected a number, got {type(value).__name__}", caller())
    number = i64 if isinstance(value, Poly) else emit.number_dtype(value)
    to = number if dtype is None else emit.dtype_of(dtype)
    out = Tensor._of(emit.full(value, shape_of(shape), to))
    return out.requires_grad_() if requires_grad else out


def zeros(
    *shape: Any, dtype: Any = f32, requires_grad: bool = False, device: str | None = None
) -> Tensor:
    return full(sizes(shape), 0, dtype, requires_grad, device)


def ones(
    *shape: Any, dtype: Any = f32, requires_grad: bool = False, device: str | None = None
) -> Tensor:
    return full(sizes(shape), 1, dtype, requires_grad, device)


def full_like(x: Tensor, value: Any, dtype: Any = None) -> Tensor:
    return full(x.shape, value, x.dtype if dtype is None else dtype)


def zeros_like(x: Tensor, dtype: Any = None) -> Tensor:
    return full_like(x, 0, dtype)


def ones_like(x: Tensor, dtype: Any = None) -> Tensor:
    return full_like(x, 1, dtype)


def arange(start: Any, end: Any = None, step: Any = 1, dtype: Any = None) -> Tensor:
    """start, start + step, ... up to but without end; i64 of integers, else f32."""
    if end is None:
        start, end = 0, start
    whole = all(isinstance(v, (int, Poly)) for v in (start, end, step))
    to = (i64 if whole else f32) if dtype is None else emit.dtype_of(dtype)
    if isinstance(end, Poly) or isinstance(start, Poly):
        if step != 1:
            raise ShapeError(
                f"arange: expected step 1 up to the symbolic {end}, got {step}", caller()
            )
        count: Dim = end - start
    elif step == 0:
        raise ShapeError("arange: the step is 0", caller())
    else:
        count = max(0, math.ceil((end - start) / step))
    # Steps and start in the exact dtype, and one rounding at the end.
    exact = to if to.is_float or whole else f32
    out = emit.one(ops.Iota, shape=(count,), axis=0, dtype=exact)
    if step != 1:
        out = emit.one(ops.Mul, out, emit.full(step, (count,), exact))
    if not isinstance(start, int) or start != 0:
        out = emit.one(ops.Add, out, emit.full(start, (count,), exact))
    return Tensor._of(emit.cast(out, to))


def linspace(start: float, end: float, steps: int, dtype: Any = f32) -> Tensor:
    """``steps`` numbers from ``start`` to ``end``, both included."""
    return Tensor(np.linspace(start, end, steps), dtype=dtype)


def eye(n: int, m: int | None = None, dtype: Any = f32) -> Tensor:
    """Ones on the diagonal of a matrix."""
    shape = (n, n if m is None else m)
    row, column = (emit.one(ops.Iota, shape=shape, axis=a, dtype=i64) for a in (0, 1))
    return Tensor._of(emit.cast(emit.one(ops.Eq, row, column), emit.dtype_of(dtype)))


# ---- combined ------------------------------------------------------------------------------------


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """The tensors one after the other along ``dim``."""
    if not tensors:
        raise ShapeError("cat: expected at least one tensor", caller())
    axis = emit.axis_of(dim, tensors[0].ndim, "cat")
    return Tensor._of(emit.concat([t._cell for t in tensors], axis))


def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Tensors of one shape along a new axis."""
    if not tensors:
        raise ShapeError("stack: expected at least one tensor", caller())
    shapes = {t.shape for t in tensors}
    if len(shapes) > 1:
        given = ", ".join(emit.shown(t.shape) for t in tensors)
        raise ShapeError(f"stack: expected tensors of one shape, got {given}", caller())
    axis = emit.axis_of(dim, tensors[0].ndim + 1, "stack")
    return Tensor._of(emit.concat([t.unsqueeze(axis)._cell for t in tensors], axis, "stack"))


def where(condition: Any, x: Any, y: Any) -> Tensor:
    """x where ``condition`` holds, else y; all broadcast."""
    c = operand(condition)
    if isinstance(c, bool):
        c = emit.full(c, (), bool_)
    a, b = operand(x), operand(y)
    if not isinstance(c, Cell) or a is None or b is None:
        raise DTypeError("where: expected a bool tensor and two tensors or numbers", caller())
    return Tensor._of(emit.where(c, a, b))


def pad(x: Tensor, padding: Sequence[int], value: float = 0.0) -> Tensor:
    """PyTorch's constant padding: (before, after) pairs from the last axis on; >= 0."""
    pairs = list(zip(padding[::2], padding[1::2], strict=True)) if len(padding) % 2 == 0 else []
    if len(padding) % 2 or len(pairs) > x.ndim:
        raise ShapeError(
            f"pad: expected at most {x.ndim} pairs of widths for {x.type}, got {list(padding)}",
            caller(),
        )
    low, high = [0] * x.ndim, [0] * x.ndim
    for k, (before, after) in enumerate(pairs):
        low[x.ndim - 1 - k], high[x.ndim - 1 - k] = before, after
    number = bool(value) if x.dtype == bool_ else float(value) if x.dtype.is_float else int(value)
    return apply(ops.Pad, x, low=tuple(low), high=tuple(high), value=number)  # type: ignore[no-any-return]


def _either(op: type[Op], x: Any, y: Any) -> Tensor:
    a, b = operand(x), operand(y)
    if a is None or b is None or not (isinstance(a, Cell) or isinstance(b, Cell)):
        raise DTypeError(f"{op.name}: expected tensors or numbers, got {x!r} and {y!r}", caller())
    return Tensor._of(emit.binary(op, a, b))


def maximum(x: Any, y: Any) -> Tensor:
    """The larger, element by element; nan if either is nan."""
    return _either(ops.Maximum, x, y)


def minimum(x: Any, y: Any) -> Tensor:
    """The smaller, element by element; nan if either is nan."""
    return _either(ops.Minimum, x, y)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """(..., M, K) x (..., K, N), batch axes broadcast; a 1-d operand is a row or a column."""
    return a @ b


def sort(x: Tensor, dim: int = -1, descending: bool = False) -> tuple[Tensor, Tensor]:
    """(sorted values, i64 indices) along ``dim``: stable; nan counts as the largest."""
    return x.sort(dim, descending)


def argsort(x: Tensor, dim: int = -1, descending: bool = False) -> Tensor:
    """The i64 indices of `sort`."""
    return x.argsort(dim, descending)


def topk(x: Tensor, k: int, dim: int = -1, largest: bool = True) -> tuple[Tensor, Tensor]:
    """(values, i64 indices) of the ``k`` largest or smallest along ``dim``, in order."""
    return x.topk(k, dim, largest)


def exp(x: Tensor) -> Tensor:
    return x.exp()


def log(x: Tensor) -> Tensor:
    return x.log()


def sqrt(x: Tensor) -> Tensor:
    return x.sqrt()


def tanh(x: Tensor) -> Tensor:
    return x.tanh()


def stop_gradient(x: Tensor) -> Tensor:
    """x, through which no gradient flows."""
    return x.detach()


def realize(tensors: Iterable[Tensor]) -> None:
    """Compute all of ``tensors`` in one program; nothing while a function is traced."""
    if lazy.tracing() is None:
        flush.realize([t._cell for t in tensors])


def shape_of(shape: Any) -> tuple[Dim, ...]:
    """A shape given as sizes or as one size; ShapeError for a negative one."""
    given = (shape,) if isinstance(shape, (int, Poly)) else tuple(shape)
    out: list[Dim] = []
    for d in given:
        size = d if isinstance(d, Poly) else d.__index__() if hasattr(d, "__index__") else None
        if size is None or (isinstance(size, int) and size < 0):
            raise ShapeError(f"expected a shape of sizes >= 0, got {emit.shown(given)}", caller())
        out.append(size)
    return tuple(out)
