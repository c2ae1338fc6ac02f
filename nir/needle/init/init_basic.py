"""Tensors of numbers: random, by numpy's global generator in Needle's order, and constant."""

from __future__ import annotations

from typing import Any

import numpy as np

import nir
from nir.frontend import lazy
from nir.needle import deferred
from nir.needle.autograd import Tensor
from nir.needle.backend_selection import cpu
from nir.needle.store import IS_NUMPY, Store, of_tensor


def _draw(normal: bool, shape: tuple[Any, ...]) -> Any:
    """Numbers of numpy's generator, float64 in np and float32 in nd; in a trace, of nir's."""
    if lazy.tracing() is not None:
        return nir.randn(shape) if normal else nir.rand(shape)
    array = np.asarray(np.random.randn(*shape) if normal else np.random.rand(*shape))
    return array if IS_NUMPY else array.astype(np.float32)


def _scaled(array: Any, by: float, shift: float) -> Any:
    if IS_NUMPY or isinstance(array, nir.Tensor):
        return array * by + shift
    return array * np.float32(by) + np.float32(shift)


def _tensor(array: Any, device: Any, dtype: Any, requires_grad: bool) -> Tensor:
    device = cpu() if device is None else device
    if isinstance(array, nir.Tensor):
        array = array.to(np.dtype(dtype) if IS_NUMPY else nir.float32)
    return Tensor(array, device=device, dtype=dtype, requires_grad=requires_grad)


def rand(
    *shape: Any,
    low: float = 0.0,
    high: float = 1.0,
    device: Any = None,
    dtype: Any = "float32",
    requires_grad: bool = False,
) -> Tensor:
    """Uniform in [low, high)."""
    return _tensor(_scaled(_draw(False, shape), high - low, low), device, dtype, requires_grad)


def randn(
    *shape: Any,
    mean: float = 0.0,
    std: float = 1.0,
    device: Any = None,
    dtype: Any = "float32",
    requires_grad: bool = False,
) -> Tensor:
    """Normal of ``mean`` and ``std``."""
    return _tensor(_scaled(_draw(True, shape), std, mean), device, dtype, requires_grad)


def constant(
    *shape: Any,
    c: float = 1.0,
    device: Any = None,
    dtype: Any = "float32",
    requires_grad: bool = False,
) -> Tensor:
    """All ``c``."""
    if lazy.tracing() is not None:
        device = cpu() if device is None else device
        kind = nir.float32 if not IS_NUMPY else np.dtype(dtype)
        made = Store(of_tensor(nir.full(shape, c, dtype=kind)), device)
        out: Tensor = Tensor.make_const(made, requires_grad=requires_grad)
        return out
    array = np.full(shape, c, dtype=dtype if IS_NUMPY else np.float32)
    return _tensor(array, device, dtype, requires_grad)


def ones(
    *shape: Any, device: Any = None, dtype: Any = "float32", requires_grad: bool = False
) -> Tensor:
    return constant(*shape, c=1.0, device=device, dtype=dtype, requires_grad=requires_grad)


def zeros(
    *shape: Any, device: Any = None, dtype: Any = "float32", requires_grad: bool = False
) -> Tensor:
    return constant(*shape, c=0.0, device=device, dtype=dtype, requires_grad=requires_grad)


def randb(
    *shape: Any,
    p: float = 0.5,
    device: Any = None,
    dtype: Any = "bool",
    requires_grad: bool = False,
) -> Tensor:
    """1 with probability ``p``, else 0."""
    return _tensor(_draw(False, shape) <= p, device, dtype, requires_grad)


def one_hot(
    n: int, i: Any, device: Any = None, dtype: Any = "float32", requires_grad: bool = False
) -> Tensor:
    """(*i.shape, n): 1 at the index that ``i`` holds, else 0; an index outside gives all 0."""
    device = cpu() if device is None else device
    kind = np.dtype(dtype) if IS_NUMPY else np.dtype(np.float32)

    def hot(x: nir.Tensor) -> tuple[nir.Tensor, ...]:
        return ((x.to(nir.int64).unsqueeze(-1) == nir.arange(n)).to(kind),)

    (ref,) = deferred.call(("one_hot", n, kind.name), hot, [i.ref().untracked()])
    out: Tensor = Tensor.make_const(Store(ref, device), requires_grad=requires_grad)
    return out


def zeros_like(array: Any, *, device: Any = None, requires_grad: bool = False) -> Tensor:
    device = device if device is not None else array.device
    return zeros(*array.shape, dtype=array.dtype, device=device, requires_grad=requires_grad)


def ones_like(array: Any, *, device: Any = None, requires_grad: bool = False) -> Tensor:
    device = device if device is not None else array.device
    return ones(*array.shape, dtype=array.dtype, device=device, requires_grad=requires_grad)
