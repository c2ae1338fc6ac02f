"""`Store`: where the value of a Tensor lies, shared by a Tensor and its detached copies.

It is a `Ref`, computed or to be computed, until somebody asks for the array; then the array is the
truth, and an op that uses it reads it anew, since anybody may have written into it. An array that
nobody else holds any more becomes a Ref again.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

import nir
from nir.needle import deferred, pending
from nir.needle.backend_ndarray import NDArray
from nir.needle.backend_selection import BACKEND, cpu, default_device
from nir.needle.deferred import Ref

IS_NUMPY = BACKEND == "np"


class Store:
    """``ref`` or ``array`` holds the value, and ``device`` says where Needle thinks it is."""

    __slots__ = ("array", "device", "ref")

    def __init__(self, ref: Ref | None, device: Any, array: Any = None) -> None:
        self.ref = ref
        self.array = array
        self.device = device

    def value(self) -> Ref:
        """The value, through which no gradient flows."""
        if self.array is None:
            assert self.ref is not None
            return self.ref.untracked()
        if isinstance(self.array, NDArray):
            return of_tensor(self.array.tensor())
        if not isinstance(self.array, np.ndarray) or self._is_sole():
            self.ref, self.array = deferred.leaf(nir.Tensor(self.array)), None
            return self.ref
        return deferred.leaf(nir.Tensor(self.array))

    def _is_sole(self) -> bool:
        array = self.array
        return array.flags.owndata and sys.getrefcount(array) == 3

    def settle(self) -> Ref:
        """The value as a stored Ref that takes the array's place."""
        ref = self.value()
        pending.run([ref])
        self.ref, self.array = ref, None
        return ref

    def read(self) -> Any:
        """The array: an `NDArray` or a numpy array."""
        if self.array is None:
            assert self.ref is not None
            self.array, self.ref = array_of(self.ref, self.device), None
        return self.array

    def numpy(self) -> np.ndarray:
        """A copy of the value."""
        if self.array is not None:
            return np.array(self.array) if IS_NUMPY else self.array.numpy()
        assert self.ref is not None
        return stored(self.ref).numpy()

    @property
    def shape(self) -> Any:
        return self.ref.type.shape if self.ref is not None else self.array.shape

    @property
    def dtype(self) -> Any:
        """The dtype as Needle tells it: a numpy dtype, or "float32"."""
        if self.ref is None:
            return self.array.dtype
        return self.ref.type.dtype.numpy if IS_NUMPY else "float32"


def stored(ref: Ref) -> nir.Tensor:
    """The value of ``ref``, computed now if need be; as it is in a traced function."""
    pending.run([ref])
    return ref.data if ref.data is not None else deferred.tensor(ref).detach()


def array_of(ref: Ref, device: Any) -> Any:
    """The array of this personality that holds the value of ``ref``."""
    value = stored(ref)
    return value.numpy() if IS_NUMPY else NDArray.of(value, device)


def store_of(data: Any, device: Any, dtype: Any) -> Store:
    """A store of a copy of ``data``: an NDArray, a nir Tensor, or what numpy makes an array of."""
    device = device if device is not None else default_device()
    if isinstance(data, NDArray):
        return Store(deferred.leaf(data.tensor()), device)
    if isinstance(data, nir.Tensor):
        return Store(of_tensor(data), device)
    if not IS_NUMPY:
        return Store(deferred.leaf(nir.Tensor(np.asarray(data, np.float32))), device)
    array = np.array(data, dtype=dtype)
    if array.dtype == object:
        return Store(None, device, array)
    return Store(deferred.leaf(nir.Tensor(array)), device)


def of_tensor(t: nir.Tensor) -> Ref:
    """``t`` as a value; where calls are recorded at once, with the history it has."""
    return deferred.recorded(t) if deferred.records_at_once() else deferred.leaf(t)


def wrap(array: Any) -> Store:
    """A store that shares ``array``, an array of this personality."""
    return Store(None, cpu() if IS_NUMPY else array.device, array)
