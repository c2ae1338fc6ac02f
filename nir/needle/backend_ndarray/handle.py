"""`Array`: the flat float32 buffer behind NDArrays, and the numpy views of it.

A buffer is a nir Tensor as long as nobody has asked for its memory; arithmetic is recorded and
runs compiled. When somebody has (a pointer, a view, a write), the numpy array is the truth, and
each use by an op reads it anew.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

import nir

_ITEM = 4  # bytes of a float32


class Array:
    """``size`` elements of float32, not initialised."""

    __slots__ = ("_array", "_pinned", "_tensor", "size")

    def __init__(self, size: int) -> None:
        self.size = int(size)
        self._array: np.ndarray | None = np.empty(self.size, np.float32)
        self._tensor: nir.Tensor | None = None
        self._pinned = False

    @staticmethod
    def of(tensor: nir.Tensor) -> Array:
        """The buffer of ``tensor``, of whatever shape, which need not have run yet."""
        handle = Array.__new__(Array)
        size: Any = tensor.numel()  # an expression while a function is traced
        handle.size = size
        handle._array, handle._tensor, handle._pinned = None, tensor, False
        return handle

    @property
    def array(self) -> np.ndarray:
        """The memory itself: what is written into it is the value from now on."""
        if self._array is None:
            assert self._tensor is not None
            self._array, self._tensor = self._tensor.numpy().reshape(-1), None
        return self._array

    def ptr(self) -> int:
        """The address of the memory, which stays where it is from now on."""
        self._pinned = True
        return int(self.array.ctypes.data)

    @property
    def tensor(self) -> nir.Tensor | None:
        """The value as a Tensor; None while somebody else may write into the memory."""
        if self._tensor is None and not self._pinned and _sole(self, "_array"):
            self._tensor, self._array = nir.Tensor(self._array), None
        return self._tensor


def _sole(holder: Any, name: str) -> bool:
    """Whether attribute ``name`` alone refers to its array, which owns its memory."""
    array = getattr(holder, name)
    own = array.flags.owndata or (array.base is not None and sys.getrefcount(array.base) == 2)
    return bool(own and sys.getrefcount(array) == 3)


def view(handle: Array, shape: Sequence[int], strides: Sequence[int], offset: int) -> np.ndarray:
    """The memory of ``handle`` from ``offset`` on as an array, strides counted in elements."""
    array = handle.array
    if len(shape) == 1 and strides[0] == 1:
        return array[offset : offset + shape[0]]
    return np.lib.stride_tricks.as_strided(
        array[offset:], tuple(shape), tuple(s * _ITEM for s in strides)
    )


def compact_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Row-major strides in elements."""
    return tuple(prod(shape[i + 1 :]) for i in range(len(shape)))


def slices_of(
    idxs: Any, shape: Sequence[int], process: Callable[[slice, int], slice]
) -> tuple[slice, ...]:
    """One slice for each axis: a slice as ``process`` completes it, an index as a slice of one."""
    given = idxs if isinstance(idxs, tuple) else (idxs,)
    assert len(given) == len(shape), f"expected {len(shape)} indices, got {len(given)}"
    out = []
    for axis, i in enumerate(given):
        if isinstance(i, slice):
            out.append(process(i, axis))
            continue
        at, n = int(i), shape[axis]
        if not -n <= at < n:
            raise IndexError(f"index {at} is outside axis {axis} of size {n}")
        out.append(slice(at % n, at % n + 1, 1))
    return tuple(out)
