"""`NDArray`: strided float32 arrays over flat buffers, with Needle's rules for views.

Views (`permute`, `broadcast_to`, `reshape`, slices) share the buffer. Arithmetic gives new compact
arrays; it is recorded by nir and runs compiled when somebody looks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, TypeAlias

import numpy as np

import nir
from nir.needle.backend_ndarray import device as devices
from nir.needle.backend_ndarray.device import BackendDevice, default_device
from nir.needle.backend_ndarray.handle import Array, compact_strides, slices_of, view

Axis: TypeAlias = "int | Sequence[int] | None"


class NDArray:
    """A view (shape, strides in elements, offset) of a buffer on a device."""

    _shape: tuple[int, ...]
    _strides: tuple[int, ...]
    _offset: int
    _device: BackendDevice
    _handle: Any
    # How a view's value comes from another array of the same buffer.
    _origin: tuple[NDArray, Callable[[nir.Tensor], nir.Tensor]] | None = None

    def __init__(self, other: Any, device: BackendDevice | None = None) -> None:
        """A copy of an NDArray, a numpy array, or what numpy makes an array of."""
        if isinstance(other, NDArray):
            device = other.device if device is None else device
            source = other.tensor()
        else:
            device = default_device() if device is None else device
            source = nir.Tensor(np.asarray(other, np.float32))
        self._init(NDArray.of(source, device))

    def _init(self, other: NDArray) -> None:
        self._shape, self._strides, self._offset = other._shape, other._strides, other._offset
        self._device, self._handle = other._device, other._handle

    @staticmethod
    def of(tensor: nir.Tensor, device: BackendDevice) -> NDArray:
        """A compact array of the value of ``tensor``, which need not have run yet."""
        shape: Any = tensor.shape
        return NDArray.make(shape, device=device, handle=Array.of(tensor))

    @staticmethod
    def make(
        shape: Sequence[int],
        strides: Sequence[int] | None = None,
        device: BackendDevice | None = None,
        handle: Any = None,
        offset: int = 0,
    ) -> NDArray:
        """A view of ``handle``, or an array with a new buffer, not initialised."""
        array = NDArray.__new__(NDArray)
        array._shape = tuple(shape)
        array._strides = compact_strides(shape) if strides is None else tuple(strides)
        array._offset = offset
        array._device = default_device() if device is None else device
        array._handle = Array(prod(shape)) if handle is None else handle
        return array

    @staticmethod
    def compact_strides(shape: Sequence[int]) -> tuple[int, ...]:
        """Row-major strides in elements."""
        return compact_strides(shape)

    # ---- facts ---------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def strides(self) -> tuple[int, ...]:
        return self._strides

    @property
    def device(self) -> BackendDevice:
        return self._device

    @property
    def dtype(self) -> str:
        return "float32"

    @property
    def ndim(self) -> int:
        return len(self._shape)

    @property
    def size(self) -> int:
        return prod(self._shape)

    @property
    def flat(self) -> NDArray:
        """A one-dimensional view of a compact array."""
        return self.reshape((self.size,))

    def __repr__(self) -> str:
        return f"NDArray({self.numpy()}, device={self.device})"

    def __str__(self) -> str:
        return str(self.numpy())

    # ---- values --------------------------------------------------------------------------------

    def tensor(self) -> nir.Tensor:
        """The value as a nir Tensor."""
        base = self._handle.tensor
        if base is None:
            return nir.Tensor(self._view())
        if self._origin is not None:
            parent, fn = self._origin
            return fn(parent.tensor())
        if self.is_compact():
            out: nir.Tensor = base if base.shape == self._shape else base.reshape(*self._shape)
            return out
        return nir.Tensor(self._view())

    def _view(self) -> np.ndarray:
        return view(self._handle, self._shape, self._strides, self._offset)

    def _new(self, tensor: nir.Tensor) -> NDArray:
        return NDArray.of(tensor.to(nir.float32), self._device)

    def numpy(self) -> np.ndarray:
        """A numpy array of the values, in memory of its own."""
        if self._handle.tensor is None:
            return np.array(self._view())
        return self.tensor().numpy()

    def fill(self, value: float) -> None:
        """Set all elements."""
        self._view()[...] = value

    def to(self, device: BackendDevice) -> NDArray:
        """The array on ``device``: itself if it is there."""
        return self if device == self.device else NDArray.of(self.tensor(), device)

    # ---- memory --------------------------------------------------------------------------------

    def is_compact(self) -> bool:
        """Whether the elements fill the buffer in row-major order."""
        return (
            self._strides == compact_strides(self._shape) and prod(self._shape) == self._handle.size
        )

    def compact(self) -> NDArray:
        """The same values in a buffer of their own; itself if it is compact."""
        return self if self.is_compact() else NDArray.of(self.tensor(), self._device)

    def as_strided(self, shape: Sequence[int], strides: Sequence[int]) -> NDArray:
        """Another view of the same buffer and offset."""
        assert len(shape) == len(strides)
        return NDArray.make(shape, strides, self._device, self._handle, self._offset)

    def _seen(
        self,
        shape: Sequence[int],
        strides: Sequence[int],
        offset: int,
        fn: Callable[[nir.Tensor], nir.Tensor],
    ) -> NDArray:
        out = NDArray.make(shape, strides, self._device, self._handle, offset)
        out._origin = (self, fn)
        return out

    def reshape(self, new_shape: Sequence[int]) -> NDArray:
        """The same elements in another shape. Raises ValueError unless compact and of that size."""
        shape = tuple(new_shape)
        if prod(shape) != self.size:
            raise ValueError(f"reshape: expected {self.size} elements, got shape {shape}")
        if not self.is_compact():
            raise ValueError("reshape: expected a compact array: call compact() first")
        return self._seen(shape, compact_strides(shape), 0, lambda t: t.reshape(*shape))

    def permute(self, new_axes: Sequence[int]) -> NDArray:
        """The axes in another order."""
        axes = tuple(a % self.ndim for a in new_axes)
        assert sorted(axes) == list(range(self.ndim)), f"permute: got axes {tuple(new_axes)}"
        return self._seen(
            [self._shape[a] for a in axes],
            [self._strides[a] for a in axes],
            self._offset,
            lambda t: t.permute(*axes),
        )

    def broadcast_to(self, new_shape: Sequence[int]) -> NDArray:
        """Axes of size 1, and new ones in front, repeated by stride 0."""
        shape, extra = tuple(new_shape), len(new_shape) - self.ndim
        assert extra >= 0, f"broadcast_to: {self._shape} does not broadcast to {shape}"
        own = (1,) * extra + self._shape
        assert all(a in (1, b) for a, b in zip(own, shape, strict=True)), (
            f"broadcast_to: {self._shape} does not broadcast to {shape}"
        )
        strides = [
            0 if a == 1 else s
            for a, s in zip(own, (0,) * extra + self._strides, strict=True)
        ]  # fmt: skip
        return self._seen(shape, strides, self._offset, lambda t: t.expand(*shape))

    # ---- indexing ------------------------------------------------------------------------------

    def process_slice(self, sl: slice, dim: int) -> slice:
        """``sl`` with all its bounds, counted from the front; steps are positive."""
        assert sl.step is None or sl.step > 0, "only positive steps are supported"
        return slice(*sl.indices(self.shape[dim]))

    def __getitem__(self, idxs: Any) -> NDArray:
        """A view: one index or slice for each axis, and every axis stays."""
        sls = slices_of(idxs, self._shape, self.process_slice)
        return self._seen(
            [len(range(s.start, s.stop, s.step)) for s in sls],
            [st * s.step for st, s in zip(self._strides, sls, strict=True)],
            self._offset + int(np.dot(self._strides, [s.start for s in sls])),
            lambda t: t[sls],
        )

    def __setitem__(self, idxs: Any, other: Any) -> None:
        target = NDArray.__getitem__(self, idxs)._view()
        if isinstance(other, NDArray):
            assert prod(target.shape) == prod(other.shape), (
                f"cannot write {other.shape} into {target.shape}"
            )
            target[...] = other.numpy().reshape(target.shape)
        else:
            target[...] = other

    # ---- elementwise ---------------------------------------------------------------------------

    def _with(self, other: Any, fn: Callable[[Any, Any], nir.Tensor]) -> NDArray:
        """fn of self and an array of the same shape, or a number."""
        if isinstance(other, NDArray):
            assert self._shape == other._shape, (
                f"expected equal shapes, got {self._shape} and {other._shape}"
            )
            return self._new(fn(self.tensor(), other.tensor()))
        return self._new(fn(self.tensor(), float(other)))

    def __add__(self, other: Any) -> NDArray:
        return self._with(other, lambda a, b: a + b)

    def __sub__(self, other: Any) -> NDArray:
        return self._with(other, lambda a, b: a - b)

    def __rsub__(self, other: Any) -> NDArray:
        return self._with(other, lambda a, b: b - a)

    def __mul__(self, other: Any) -> NDArray:
        return self._with(other, lambda a, b: a * b)

    def __truediv__(self, other: Any) -> NDArray:
        return self._with(other, lambda a, b: a / b)

    def __rtruediv__(self, other: Any) -> NDArray:
        return self._with(other, lambda a, b: b / a)

    def __pow__(self, other: Any) -> NDArray:
        return self._with(other, lambda a, b: a**b)

    def __neg__(self) -> NDArray:
        return self._new(-self.tensor())

    __radd__ = __add__
    __rmul__ = __mul__

    def maximum(self, other: Any) -> NDArray:
        return self._with(other, nir.maximum)

    # Comparisons give 0.0 or 1.0.

    def __eq__(self, other: Any) -> Any:
        return self._with(other, lambda a, b: a == b)

    def __ne__(self, other: Any) -> Any:
        return self._with(other, lambda a, b: a != b)

    def __ge__(self, other: Any) -> NDArray:
        return self._with(other, lambda a, b: a >= b)

    def __gt__(self, other: Any) -> NDArray:
        return self._with(other, lambda a, b: a > b)

    def __le__(self, other: Any) -> NDArray:
        return self._with(other, lambda a, b: a <= b)

    def __lt__(self, other: Any) -> NDArray:
        return self._with(other, lambda a, b: a < b)

    __hash__ = None  # type: ignore[assignment]

    def log(self) -> NDArray:
        return self._new(self.tensor().log())

    def exp(self) -> NDArray:
        return self._new(self.tensor().exp())

    def tanh(self) -> NDArray:
        return self._new(self.tensor().tanh())

    def __matmul__(self, other: NDArray) -> NDArray:
        """The product of two matrices."""
        assert self.ndim == 2 and other.ndim == 2, "matmul: expected two matrices"
        assert self._shape[1] == other._shape[0], f"matmul: {self._shape} and {other._shape}"
        return self._new(self.tensor() @ other.tensor())

    # ---- reductions ----------------------------------------------------------------------------

    def _reduced(self, axis: Axis, keepdims: bool, name: str) -> NDArray:
        reduce: Any = getattr(self.tensor(), name)
        if axis is None:
            return self._new(reduce().reshape(*((1,) * self.ndim if keepdims else (1,))))
        axes = (axis,) if isinstance(axis, int) else tuple(axis)
        return self._new(reduce(axes, keepdim=keepdims))

    def sum(self, axis: Axis = None, keepdims: bool = False) -> NDArray:
        """The sum over axes; over all, an array of shape (1,)."""
        return self._reduced(axis, keepdims, "sum")

    def max(self, axis: Axis = None, keepdims: bool = False) -> NDArray:
        """The maximum over axes; over all, an array of shape (1,)."""
        return self._reduced(axis, keepdims, "amax")

    # ---- moves ---------------------------------------------------------------------------------

    def flip(self, axes: int | Sequence[int]) -> NDArray:
        """The elements in reverse order along ``axes``, in a compact array."""
        return self._new(self.tensor().flip(*([axes] if isinstance(axes, int) else axes)))

    def pad(self, axes: Sequence[tuple[int, int]]) -> NDArray:
        """Zeros around it: (left, right) for each axis."""
        assert len(axes) == self.ndim, f"pad: expected {self.ndim} pairs, got {len(axes)}"
        sizes = [n for pair in reversed(axes) for n in pair]
        return self._new(nir.pad(self.tensor(), sizes))


devices._factory.append(NDArray)


def array(a: Any, dtype: Any = "float32", device: BackendDevice | None = None) -> NDArray:
    """An NDArray of a copy of ``a``; every dtype becomes float32."""
    return NDArray(a, device=device)


def empty(
    shape: tuple[int, ...], dtype: Any = "float32", device: BackendDevice | None = None
) -> NDArray:
    return (device or default_device()).empty(shape, dtype)


def full(
    shape: tuple[int, ...],
    fill_value: float,
    dtype: Any = "float32",
    device: BackendDevice | None = None,
) -> NDArray:
    return (device or default_device()).full(shape, fill_value, dtype)


def broadcast_to(array: NDArray, new_shape: Sequence[int]) -> NDArray:
    return array.broadcast_to(new_shape)


def reshape(array: NDArray, new_shape: Sequence[int]) -> NDArray:
    return array.reshape(new_shape)


def maximum(a: NDArray, b: Any) -> NDArray:
    return a.maximum(b)


def log(a: NDArray) -> NDArray:
    return a.log()


def exp(a: NDArray) -> NDArray:
    return a.exp()


def tanh(a: NDArray) -> NDArray:
    return a.tanh()


def sum(a: NDArray, axis: Axis = None, keepdims: bool = False) -> NDArray:
    return a.sum(axis=axis, keepdims=keepdims)


def flip(a: NDArray, axes: int | Sequence[int]) -> NDArray:
    return a.flip(axes)
