"""The device module: functions on flat buffers (`Array`), results written into ``out``.

Arithmetic is nir's: each function is one small compiled program. Moves between strided views are
copies of memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

import nir
from nir.needle.backend_ndarray.handle import Array as Array
from nir.needle.backend_ndarray.handle import view

Sizes: TypeAlias = Sequence[int]

__device_name__ = "cpu"
__tile_size__ = 8


def to_numpy(a: Array, shape: Sizes, strides: Sizes, offset: int) -> np.ndarray:
    """A copy of a strided view."""
    return np.array(view(a, shape, strides, offset))


def from_numpy(a: np.ndarray, out: Array) -> None:
    out.array[:] = a.reshape(-1)


def fill(out: Array, val: float) -> None:
    out.array.fill(val)


def compact(a: Array, out: Array, shape: Sizes, strides: Sizes, offset: int) -> None:
    """Write the elements of a strided view one after the other."""
    out.array[:] = view(a, shape, strides, offset).reshape(-1)


def ewise_setitem(a: Array, out: Array, shape: Sizes, strides: Sizes, offset: int) -> None:
    view(out, shape, strides, offset)[...] = a.array.reshape(tuple(shape))


def scalar_setitem(
    size: int, val: float, out: Array, shape: Sizes, strides: Sizes, offset: int
) -> None:
    view(out, shape, strides, offset)[...] = val


def _tensor(a: Array) -> nir.Tensor:
    t = a.tensor
    return nir.Tensor(a.array) if t is None else t.reshape(-1)


def _write(out: Array, value: nir.Tensor) -> None:
    # Into the memory that is there: its address stays.
    out.array[:] = value.to(nir.float32).numpy().reshape(-1)


def _ewise(fn: Callable[[nir.Tensor, nir.Tensor], nir.Tensor]) -> Callable[..., None]:
    def run(a: Array, b: Array, out: Array) -> None:
        _write(out, fn(_tensor(a), _tensor(b)))

    return run


def _scalar(fn: Callable[[nir.Tensor, Any], nir.Tensor]) -> Callable[..., None]:
    def run(a: Array, val: float, out: Array) -> None:
        _write(out, fn(_tensor(a), val))

    return run


def _unary(fn: Callable[[nir.Tensor], nir.Tensor]) -> Callable[..., None]:
    def run(a: Array, out: Array) -> None:
        _write(out, fn(_tensor(a)))

    return run


ewise_add = _ewise(lambda a, b: a + b)
scalar_add = _scalar(lambda a, v: a + v)
ewise_mul = _ewise(lambda a, b: a * b)
scalar_mul = _scalar(lambda a, v: a * v)
ewise_div = _ewise(lambda a, b: a / b)
scalar_div = _scalar(lambda a, v: a / v)
ewise_maximum = _ewise(nir.maximum)
scalar_maximum = _scalar(nir.maximum)
ewise_eq = _ewise(lambda a, b: a == b)
scalar_eq = _scalar(lambda a, v: a == v)
ewise_ge = _ewise(lambda a, b: a >= b)
scalar_ge = _scalar(lambda a, v: a >= v)
scalar_power = _scalar(lambda a, v: a**v)
ewise_log = _unary(nir.Tensor.log)
ewise_exp = _unary(nir.Tensor.exp)
ewise_tanh = _unary(nir.Tensor.tanh)


def matmul(a: Array, b: Array, out: Array, m: int, n: int, p: int) -> None:
    """out[m, p] = a[m, n] b[n, p]."""
    _write(out, _tensor(a).reshape(m, n) @ _tensor(b).reshape(n, p))


def matmul_tiled(a: Array, b: Array, out: Array, m: int, n: int, p: int) -> None:
    """`matmul` of matrices stored as [rows / t, columns / t, t, t], t = __tile_size__."""
    t = __tile_size__

    def rows(x: Array, k: int, c: int) -> nir.Tensor:
        tiles = _tensor(x).reshape(k // t, c // t, t, t)
        return tiles.permute(0, 2, 1, 3).reshape(k, c)

    product = rows(a, m, n) @ rows(b, n, p)
    _write(out, product.reshape(m // t, t, p // t, t).permute(0, 2, 1, 3))


def reduce_max(a: Array, out: Array, reduce_size: int) -> None:
    """The maximum of each run of ``reduce_size`` elements."""
    _write(out, _tensor(a).reshape(-1, reduce_size).amax(1))


def reduce_sum(a: Array, out: Array, reduce_size: int) -> None:
    """The sum of each run of ``reduce_size`` elements."""
    _write(out, _tensor(a).reshape(-1, reduce_size).sum(1))
