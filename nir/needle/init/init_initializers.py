"""Initialisers of weights: Xavier (Glorot and Bengio, 2010) and Kaiming (He et al., 2015)."""

from __future__ import annotations

import math
from typing import Any

from nir.needle.autograd import Tensor
from nir.needle.init.init_basic import rand, randn


def xavier_uniform(fan_in: int, fan_out: int, gain: float = 1.0, **kwargs: Any) -> Tensor:
    """Uniform in +- gain sqrt(6 / (fan_in + fan_out)), of shape (fan_in, fan_out)."""
    a = gain * math.sqrt(6 / (fan_in + fan_out))
    return rand(fan_in, fan_out, low=-a, high=a, **kwargs)


def xavier_normal(fan_in: int, fan_out: int, gain: float = 1.0, **kwargs: Any) -> Tensor:
    """Normal of deviation gain sqrt(2 / (fan_in + fan_out)), of shape (fan_in, fan_out)."""
    std = gain * math.sqrt(2 / (fan_in + fan_out))
    return randn(fan_in, fan_out, std=std, **kwargs)


def kaiming_uniform(
    fan_in: int, fan_out: int, shape: Any = None, nonlinearity: str = "relu", **kwargs: Any
) -> Tensor:
    """Uniform in +- sqrt(6 / fan_in), of ``shape`` or (fan_in, fan_out)."""
    assert nonlinearity == "relu", "Only relu supported currently"
    bound = math.sqrt(2) * math.sqrt(3 / fan_in)
    shape = (fan_in, fan_out) if shape is None else shape
    return rand(*shape, low=-bound, high=bound, **kwargs)


def kaiming_normal(fan_in: int, fan_out: int, nonlinearity: str = "relu", **kwargs: Any) -> Tensor:
    """Normal of deviation sqrt(2 / fan_in), of shape (fan_in, fan_out)."""
    assert nonlinearity == "relu", "Only relu supported currently"
    std = math.sqrt(2) / math.sqrt(fan_in)
    return randn(fan_in, fan_out, std=std, **kwargs)
