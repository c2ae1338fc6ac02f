"""Which personality this process has: NEEDLE_BACKEND is "nd" (the default) or "np".

nd: `cached_data` is an `NDArray`, always float32. np: it is a numpy array of any dtype.
"""

from __future__ import annotations

import os
from typing import Any

import numpy

from nir.needle import backend_ndarray, backend_numpy

BACKEND = os.environ.get("NEEDLE_BACKEND", "nd")

array_api: Any
NDArray: Any
Device: Any
cpu: Any
default_device: Any
all_devices: Any

if BACKEND == "nd":
    print("Using needle backend")
    array_api, NDArray = backend_ndarray, backend_ndarray.NDArray
    Device = backend_ndarray.BackendDevice
    cpu, default_device = backend_ndarray.cpu, backend_ndarray.default_device
    all_devices = backend_ndarray.all_devices
    cuda, cpu_numpy = backend_ndarray.cuda, backend_ndarray.cpu_numpy
elif BACKEND == "np":
    print("Using numpy backend")
    array_api, NDArray = numpy, numpy.ndarray
    Device = backend_numpy.Device
    cpu, default_device = backend_numpy.cpu, backend_numpy.default_device
    all_devices = backend_numpy.all_devices
else:
    raise RuntimeError(f"Unknown needle array backend {BACKEND}")

__all__ = ["BACKEND", "Device", "NDArray", "all_devices", "array_api", "cpu", "default_device"]
if BACKEND == "nd":
    __all__ += ["cpu_numpy", "cuda"]
