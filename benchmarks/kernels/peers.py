"""Steps of the peers: a function of arrays, and arrays, become a call without arguments.

nir's step runs a compiled program on storages, as the C library and a served model do; the
front end's bookkeeping is measured with the workloads, not here. PyTorch's and NumPy's are the
functions as a user calls them, JAX's is compiled. Imports are inside, so that a process holds one
peer only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.kernels import Step


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    """f32 from a normal distribution; large arrays repeat a block whose length is odd."""
    rng = np.random.default_rng(seed)
    count = int(np.prod(shape))
    block = rng.standard_normal(min(count, 1_000_003), np.float32)
    return np.resize(block, shape)


def nir_step(
    fn: Callable[..., Any], arrays: Sequence[np.ndarray], constants: Sequence[np.ndarray] = ()
) -> Step:
    """``fn(*arrays, *constants)`` as a program; ``constants`` are bound to it, as weights are."""
    import nir
    from nir.runtime import as_storage

    held = [nir.tensor(c) for c in constants]
    specs = [f"{_DTYPES[a.dtype.name]}[{','.join(map(str, a.shape))}]" for a in arrays]
    compiled = nir.compile(lambda *xs: fn(*xs, *held), *specs, state=held)
    program = compiled.executable
    inputs = [*(as_storage(a) for a in arrays), *compiled._bound]
    return lambda: program.run(inputs)


_DTYPES = {"float32": "f32", "float64": "f64", "int32": "i32", "int64": "i64", "bool": "bool"}


def torch_step(fn: Callable[..., Any], arrays: Sequence[np.ndarray]) -> Step:
    import torch

    tensors = [torch.from_numpy(a) for a in arrays]

    def step() -> Any:
        with torch.no_grad():
            return fn(*tensors)

    return step


def numpy_step(fn: Callable[..., Any], arrays: Sequence[np.ndarray]) -> Step:
    return lambda: fn(*arrays)


def jax_step(fn: Callable[..., Any], arrays: Sequence[np.ndarray]) -> Step:
    import jax

    compiled = jax.jit(fn)
    held = [jax.device_put(a) for a in arrays]
    return lambda: jax.block_until_ready(compiled(*held))
