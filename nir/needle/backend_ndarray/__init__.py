"""The nd personality's arrays: `NDArray`, its devices, and the functions on it."""

from nir.needle.backend_ndarray.device import (
    BackendDevice as BackendDevice,
)
from nir.needle.backend_ndarray.device import (
    all_devices as all_devices,
)
from nir.needle.backend_ndarray.device import (
    cpu as cpu,
)
from nir.needle.backend_ndarray.device import (
    cpu_numpy as cpu_numpy,
)
from nir.needle.backend_ndarray.device import (
    cuda as cuda,
)
from nir.needle.backend_ndarray.device import (
    default_device as default_device,
)
from nir.needle.backend_ndarray.ndarray import *  # noqa: F403
