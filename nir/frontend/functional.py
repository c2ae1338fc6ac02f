"""Functions that make and combine Tensors: numpy's and PyTorch's names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nir import ops
from nir.errors import ShapeError
from nir.frontend import lazy
from nir.frontend.methods.base import flat
from nir.frontend.tensor import Tensor, apply, cat, source, where
from nir.ir.dim import Dim
from nir.ir.location import caller
from nir.ir.types import DType, bool_, dtype, f32, i64

__all__ = [
    "apply", "arange", "cat", "constant", "exp", "eye", "from_dlpack", "from_numpy",
    "full", "full_like", "linspace", "log", "matmul", "maximum", "minimum", "ones", "ones_like",
    "realize", "sqrt", "stack", "stop_gradient", "tanh", "tensor", "where", "zeros", "zeros_like",
]  # fmt: skip


def tensor(data: Any, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """A Tensor of ``data``: numbers, nested lists, arrays; Python floats become f32."""
    return Tensor(data, dtype=dtype, requires_grad=requires_grad)


def from_numpy(array: np.ndarray) -> Tensor:
    """A Tensor of a copy of ``array``."""
    return Tensor(array)


def from_dlpack(source: Any) -> Tensor:
    """A Tensor of what ``source`` exports."""
    return Tensor(np.from_dlpack(source))


def full(shape: Any, value: Any, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor of one number (or of a symbolic size)."""
    to = _dtype_of(value) if dtype is None else _dtype(dtype)
    out = source(ops.Full, value=value, shape=_shape(shape), dtype=to)
    return out.requires_grad_(True) if requires_grad else out


def zeros(*shape: Any, dtype: Any = f32, requires_grad: bool = False) -> Tensor:
    return full(flat(shape), 0, dtype, requires_grad)


def ones(*shape: Any, dtype: Any = f32, requires_grad: bool = False) -> Tensor:
    return full(flat(shape), 1, dtype, requires_grad)


def full_like(x: Tensor, value: Any) -> Tensor:
    return full(x.shape, value, x.dtype)


def zeros_like(x: Tensor) -> Tensor:
    return full(x.shape, 0, x.dtype)


def ones_like(x: Tensor) -> Tensor:
    return full(x.shape, 1, x.dtype)


def arange(start: Any, end: Any = None, step: Any = 1, dtype: Any = None) -> Tensor:
    """start, start + step, ... below end; i64 of integers, else f32."""
    if end is None:
        start, end = 0, start
    whole = all(isinstance(v, int) for v in (start, end, step))
    to = _dtype(dtype) if dtype is not None else i64 if whole else f32
    count = max(0, int(np.ceil((end - start) / step)))
    count_from = source(ops.Iota, shape=(count,), axis=0, dtype=to)
    out = count_from if step == 1 else count_from * step
    return out if start == 0 else out + start


def linspace(start: float, end: float, steps: int, dtype: Any = f32) -> Tensor:
    """``steps`` numbers from start to end, both included."""
    return Tensor(np.linspace(start, end, steps), dtype=dtype)


def eye(n: int, m: int | None = None, dtype: Any = f32) -> Tensor:
    """Ones on the diagonal."""
    shape = (n, n if m is None else m)
    row = source(ops.Iota, shape=shape, axis=0, dtype=i64)
    return (row == source(ops.Iota, shape=shape, axis=1, dtype=i64)).to(dtype)


def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Tensors of one shape along a new axis."""
    if not tensors:
        raise ShapeError("stack: expected at least one tensor", caller())
    return cat([t.unsqueeze(dim) for t in tensors], dim)


def matmul(x: Tensor, y: Tensor) -> Tensor:
    return x @ y


def maximum(x: Any, y: Any) -> Tensor:
    """The larger of each pair; one of the operands is a Tensor."""
    return x.maximum(y) if isinstance(x, Tensor) else y.maximum(x)


def minimum(x: Any, y: Any) -> Tensor:
    """The smaller of each pair; one of the operands is a Tensor."""
    return x.minimum(y) if isinstance(x, Tensor) else y.minimum(x)


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


def constant(x: Any) -> Tensor:
    """x as a constant of the function being traced: its value now, whatever becomes of x."""
    return Tensor(x.numpy() if isinstance(x, Tensor) else x)


def realize(tensors: Sequence[Tensor]) -> None:
    """Compute all of ``tensors`` in one program, unless this is a trace."""
    cells = [t._cell for t in tensors]
    if all(leaf.data is not None for leaf in lazy.walk(cells)[1]):
        lazy.realize(cells)


def _shape(shape: Any) -> tuple[Dim, ...]:
    return (shape,) if isinstance(shape, int) else tuple(shape)


def _dtype(spec: Any) -> DType:
    return dtype(spec)


def _dtype_of(value: Any) -> DType:
    if isinstance(value, bool):
        return bool_
    return f32 if isinstance(value, float) else i64
