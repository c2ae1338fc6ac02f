"""`Store`: where the value of a leaf lies, shared by a Tensor and its detached copies.

It is a nir Tensor, recorded or run, until somebody asks for the array; then the array is the truth,
and an op that uses it reads it anew, since anybody may have written into it. An array that nobody
else holds any more becomes a nir Tensor again.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

import nir
from nir.needle import pending
from nir.needle.backend_ndarray import NDArray
from nir.needle.backend_selection import BACKEND, cpu, default_device

IS_NUMPY = BACKEND == "np"


class Store:
    """``tensor`` or ``array`` holds the value, and ``device`` says where Needle thinks it is."""

    __slots__ = ("array", "device", "tensor")

    def __init__(self, tensor: nir.Tensor | None, device: Any, array: Any = None) -> None:
        self.tensor = tensor
        self.array = array
        self.device = device

    def value(self) -> nir.Tensor:
        """The value as a nir Tensor."""
        if self.array is None:
            assert self.tensor is not None
            return self.tensor
        if isinstance(self.array, NDArray):
            return self.array.tensor()
        if not isinstance(self.array, np.ndarray) or self._is_sole():
            self.tensor, self.array = nir.Tensor(self.array), None
            return self.tensor
        return nir.Tensor(self.array)

    def _is_sole(self) -> bool:
        array = self.array
        return array.flags.owndata and sys.getrefcount(array) == 3

    def read(self) -> Any:
        """The array: an `NDArray` or a numpy array."""
        if self.array is None:
            assert self.tensor is not None
            self.array, self.tensor = array_of(self.tensor.detach(), self.device), None
        return self.array

    def numpy(self) -> np.ndarray:
        """A copy of the value."""
        if self.array is not None:
            return np.array(self.array) if IS_NUMPY else self.array.numpy()
        assert self.tensor is not None
        pending.run([self.tensor])
        return self.tensor.numpy()


def array_of(tensor: nir.Tensor, device: Any) -> Any:
    """The array of this personality that holds the value of ``tensor``."""
    if not IS_NUMPY:
        return NDArray.of(tensor, device)
    pending.run([tensor])
    return tensor.numpy()


def store_of(data: Any, device: Any, dtype: Any) -> Store:
    """A store of a copy of ``data``: an NDArray, a nir Tensor, or what numpy makes an array of."""
    device = device if device is not None else default_device()
    if isinstance(data, NDArray):
        return Store(data.tensor(), device)
    if isinstance(data, nir.Tensor):
        return Store(data, device)
    if IS_NUMPY:
        array = np.array(data, dtype=dtype)
        if array.dtype == object:
            return Store(None, device, array)
        return Store(nir.Tensor(array), device)
    return Store(nir.Tensor(np.asarray(data, np.float32)), device)


def wrap(array: Any) -> Store:
    """A store that shares ``array``, an array of this personality."""
    return Store(None, cpu() if IS_NUMPY else array.device, array)


def dtype_name(t: nir.Tensor) -> Any:
    """The dtype as Needle tells it: a numpy dtype, or "float32"."""
    return t.dtype.numpy if IS_NUMPY else "float32"
