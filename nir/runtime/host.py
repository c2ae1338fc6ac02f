"""Functions of this process as kernels: how a program calls back into Python."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import numpy as np

from nir.ir.dim import Dim, prod
from nir.ir.types import DType, TensorType
from nir.runtime._core import Storage

HOST_ERROR = 3  # the status that says: the error is kept in the HostKernel

_KERNEL = ctypes.CFUNCTYPE(
    ctypes.c_int32,
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.POINTER(ctypes.c_int64),
    *[ctypes.c_int64] * 4,
)


class HostKernel:
    """``function(*operands) -> results``, on numpy arrays, behind nir's kernel convention.

    Its call has the operands and results as arguments, `dims` as sizes, and one row. It is called
    once for each run. Results are copied out; what the function raises is raised by the run.
    """

    def __init__(
        self,
        function: Callable[..., Sequence[np.ndarray]],
        operands: Sequence[TensorType],
        results: Sequence[TensorType],
    ) -> None:
        self.function = function
        self.types = [(t.dtype, t.ndim) for t in (*operands, *results)]
        self.count = len(operands)
        self.dims: tuple[Dim, ...] = tuple(d for t in (*operands, *results) for d in t.shape)
        self._error: BaseException | None = None
        self._callback = _KERNEL(self._call)
        address = ctypes.cast(self._callback, ctypes.c_void_p).value
        assert address is not None
        self.address: int = address

    def take_error(self) -> BaseException | None:
        """What the function raised last, once."""
        error, self._error = self._error, None
        return error

    def _call(self, _ctx: int, ptrs: Sequence[int], dims: Sequence[int], *_range: int) -> int:
        try:
            arrays, at = [], 0
            for i, (dtype, ndim) in enumerate(self.types):
                arrays.append(_array(ptrs[i], dtype, dims[at : at + ndim]))
                at += ndim
            # The function may keep what it is given; the memory behind it is reused.
            given = self.function(*(a.copy() for a in arrays[: self.count]))
            for target, value in zip(arrays[self.count :], given, strict=True):
                np.copyto(target, value, casting="no")
            return 0
        except BaseException as error:
            self._error = error
            return HOST_ERROR


def _array(address: int, dtype: DType, shape: Sequence[int]) -> np.ndarray:
    if prod(shape) == 0:
        return np.empty(shape, dtype.numpy)
    return Storage.wrap(address, dtype.name, shape, None).numpy(dtype.numpy)
