"""The np personality's device: tensors hold numpy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np


class Device:
    """Base of devices."""


class CPUDevice(Device):
    """The processor."""

    def __repr__(self) -> str:
        return "needle.cpu()"

    def __hash__(self) -> int:
        return hash("needle.cpu()")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CPUDevice)

    def enabled(self) -> bool:
        return True

    def zeros(self, *shape: int, dtype: Any = "float32") -> np.ndarray:
        return np.zeros(shape, dtype=dtype)

    def ones(self, *shape: int, dtype: Any = "float32") -> np.ndarray:
        return np.ones(shape, dtype=dtype)

    def randn(self, *shape: int) -> np.ndarray:
        """Standard normal, float64, from numpy's global generator."""
        # A draw without a shape is a float.
        return np.asarray(np.random.randn(*shape))

    def rand(self, *shape: int) -> np.ndarray:
        """Uniform in [0, 1), float64, from numpy's global generator."""
        return np.asarray(np.random.rand(*shape))

    def one_hot(self, n: int, i: Any, dtype: Any = "float32") -> np.ndarray:
        """Row i of the identity of size ``n``, for each of ``i``."""
        rows: np.ndarray = np.eye(n, dtype=dtype)[i]
        return rows

    def empty(self, shape: Any, dtype: Any = "float32") -> np.ndarray:
        return np.empty(shape, dtype=dtype)

    def full(self, shape: Any, fill_value: Any, dtype: Any = "float32") -> np.ndarray:
        return np.full(shape, fill_value, dtype=dtype)


def cpu() -> CPUDevice:
    """The processor."""
    return CPUDevice()


def default_device() -> CPUDevice:
    return cpu()


def all_devices() -> list[CPUDevice]:
    """The devices there are."""
    return [cpu()]
