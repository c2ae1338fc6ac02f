"""Initialisers: PyTorch's functions and formulas, filling a tensor in place.

They draw from nir's default generator (see ``manual_seed``). Fans are those of PyTorch: a weight
of shape [out, in, *kernel] has fan in = in * prod(kernel) and fan out = out * prod(kernel).
"""

from __future__ import annotations

import math
from typing import Literal

from nir.errors import NirError, ShapeError
from nir.frontend.functional import eye, full
from nir.frontend.random import rand, randn
from nir.frontend.tensor import Tensor
from nir.ir.location import caller

FanMode = Literal["fan_in", "fan_out"]

_GAINS = {
    "linear": 1.0, "conv1d": 1.0, "conv2d": 1.0, "conv3d": 1.0, "sigmoid": 1.0,
    "tanh": 5 / 3, "relu": math.sqrt(2), "selu": 3 / 4,
}  # fmt: skip


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor that keeps the variance through ``nonlinearity``; ``param`` is a slope."""
    if nonlinearity == "leaky_relu":
        slope = 0.01 if param is None else param
        return math.sqrt(2 / (1 + slope**2))
    if nonlinearity not in _GAINS:
        known = ", ".join([*_GAINS, "leaky_relu"])
        raise NirError(f"calculate_gain: expected one of {known}, got {nonlinearity!r}", caller())
    return _GAINS[nonlinearity]


def constant_(tensor: Tensor, val: float) -> Tensor:
    return _fill(tensor, full(tensor.shape, val, dtype=tensor.dtype))


def zeros_(tensor: Tensor) -> Tensor:
    return constant_(tensor, 0.0)


def ones_(tensor: Tensor) -> Tensor:
    return constant_(tensor, 1.0)


def eye_(tensor: Tensor) -> Tensor:
    """Ones on the diagonal of a matrix."""
    if len(tensor.shape) != 2:
        raise ShapeError(f"eye_: expected a matrix, got shape {tuple(tensor.shape)}", caller())
    rows, columns = _sizes(tensor)
    return _fill(tensor, eye(rows, columns, dtype=tensor.dtype))


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0) -> Tensor:
    """U(a, b)."""
    return _fill(tensor, rand(*tensor.shape, dtype=tensor.dtype) * (b - a) + a)


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """N(mean, std^2)."""
    return _fill(tensor, randn(*tensor.shape, dtype=tensor.dtype) * std + mean)


def xavier_uniform_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """U(-a, a), a = gain sqrt(6 / (fan in + fan out)) (Glorot and Bengio, 2010)."""
    bound = gain * math.sqrt(6 / sum(_fans(tensor, "xavier_uniform_")))
    return uniform_(tensor, -bound, bound)


def xavier_normal_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """N(0, gain^2 2 / (fan in + fan out))."""
    return normal_(tensor, 0.0, gain * math.sqrt(2 / sum(_fans(tensor, "xavier_normal_"))))


def kaiming_uniform_(
    tensor: Tensor, a: float = 0.0, mode: FanMode = "fan_in", nonlinearity: str = "leaky_relu"
) -> Tensor:
    """U(-b, b), b = gain sqrt(3 / fan) (He et al., 2015)."""
    bound = math.sqrt(3) * _kaiming_std(tensor, a, mode, nonlinearity, "kaiming_uniform_")
    return uniform_(tensor, -bound, bound)


def kaiming_normal_(
    tensor: Tensor, a: float = 0.0, mode: FanMode = "fan_in", nonlinearity: str = "leaky_relu"
) -> Tensor:
    """N(0, gain^2 / fan)."""
    return normal_(tensor, 0.0, _kaiming_std(tensor, a, mode, nonlinearity, "kaiming_normal_"))


def _kaiming_std(tensor: Tensor, a: float, mode: FanMode, nonlinearity: str, name: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise NirError(f"{name}: expected mode 'fan_in' or 'fan_out', got {mode!r}", caller())
    fan = _fans(tensor, name)[mode == "fan_out"]
    return calculate_gain(nonlinearity, a) / math.sqrt(fan)


def _fans(tensor: Tensor, name: str) -> tuple[int, int]:
    if len(tensor.shape) < 2:
        shape = tuple(tensor.shape)
        raise ShapeError(
            f"{name}: expected at least 2 axes, for fan in and fan out, got {shape}", caller()
        )
    out, channels, *kernel = _sizes(tensor)
    return channels * math.prod(kernel), out * math.prod(kernel)


def _sizes(tensor: Tensor) -> list[int]:
    return [n for n in tensor.shape if isinstance(n, int)]


def _fill(tensor: Tensor, values: Tensor) -> Tensor:
    tensor.copy_(values.detach())
    return tensor
