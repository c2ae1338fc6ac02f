"""Devices of the nd personality: `cpu()`, `cuda()` and `cpu_numpy()`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nir.needle.backend_ndarray import device_module
from nir.needle.backend_ndarray.handle import Array

if TYPE_CHECKING:
    from nir.needle.backend_ndarray.ndarray import NDArray

# Makes an NDArray of a numpy array; set by ndarray.py, which needs devices itself.
_factory: list[Any] = []


class BackendDevice:
    """A device and the module of its functions; attributes not found here are the module's."""

    def __init__(self, name: str, mod: Any) -> None:
        self.name = name
        self.mod = mod

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BackendDevice) and self.name == other.name

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{self.name}()"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__.get("mod"), name)

    def enabled(self) -> bool:
        return self.mod is not None

    def randn(self, *shape: int, dtype: str = "float32") -> NDArray:
        return self._make(np.asarray(np.random.randn(*shape), dtype))

    def rand(self, *shape: int, dtype: str = "float32") -> NDArray:
        return self._make(np.asarray(np.random.rand(*shape), dtype))

    def one_hot(self, n: int, i: Any, dtype: str = "float32") -> NDArray:
        """Row i of the identity of size ``n``, for each of ``i``."""
        return self._make(np.eye(n, dtype=dtype)[i])

    def empty(self, shape: tuple[int, ...], dtype: str | None = "float32") -> NDArray:
        return self._make(np.empty(shape, np.float32))

    def full(
        self, shape: tuple[int, ...], fill_value: float, dtype: str | None = "float32"
    ) -> NDArray:
        return self._make(np.full(shape, fill_value, np.float32))

    def _make(self, array: np.ndarray) -> NDArray:
        made: NDArray = _factory[0](array, device=self)
        return made


def cpu() -> BackendDevice:
    """The processor, through nir's kernels."""
    return BackendDevice("cpu", device_module)


def cuda() -> BackendDevice:
    """A GPU: not there, so not `enabled`."""
    return BackendDevice("cuda", None)


def cpu_numpy() -> BackendDevice:
    """The device that Needle calls its numpy device; here the same as `cpu` but for its name."""
    return BackendDevice("cpu_numpy", device_module)


def default_device() -> BackendDevice:
    return cpu_numpy()


def all_devices() -> list[BackendDevice]:
    return [cpu(), cuda(), cpu_numpy()]


__all__ = ["Array", "BackendDevice", "all_devices", "cpu", "cpu_numpy", "cuda", "default_device"]
