"""Activations as modules; the formulas are in `functional`."""

from __future__ import annotations

from typing import Any

from nir.frontend.functional import full
from nir.frontend.nn import functional as F
from nir.frontend.nn.module import Module, Parameter
from nir.frontend.tensor import Tensor


class ReLU(Module):
    """max(x, 0)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


class Sigmoid(Module):
    """1 / (1 + e^-x)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.sigmoid(x)


class Tanh(Module):
    """tanh x."""

    def forward(self, x: Tensor) -> Tensor:
        return F.tanh(x)


class SiLU(Module):
    """x sigmoid(x)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x)


class Hardswish(Module):
    """x min(max(x + 3, 0), 6) / 6."""

    def forward(self, x: Tensor) -> Tensor:
        return F.hardswish(x)


class GELU(Module):
    """x Phi(x), exactly through erf ("none") or by the tanh approximation ("tanh")."""

    def __init__(self, approximate: F.GeluForm = "none") -> None:
        super().__init__()
        self.approximate: F.GeluForm = approximate

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x, self.approximate)

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}"


class ReLU6(Module):
    """min(max(x, 0), 6)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x)


class SELU(Module):
    """ELU with the constants that keep mean 0 and variance 1."""

    def forward(self, x: Tensor) -> Tensor:
        return F.selu(x)


class Mish(Module):
    """x tanh(log(1 + e^x))."""

    def forward(self, x: Tensor) -> Tensor:
        return F.mish(x)


class Softsign(Module):
    """x / (1 + |x|)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.softsign(x)


class LogSigmoid(Module):
    """log(1 / (1 + e^-x))."""

    def forward(self, x: Tensor) -> Tensor:
        return F.logsigmoid(x)


class Hardsigmoid(Module):
    """min(max(x + 3, 0), 6) / 6."""

    def forward(self, x: Tensor) -> Tensor:
        return F.hardsigmoid(x)


class Hardtanh(Module):
    """x between ``min_val`` and ``max_val``."""

    def __init__(self, min_val: float = -1.0, max_val: float = 1.0) -> None:
        super().__init__()
        self.min_val, self.max_val = min_val, max_val

    def forward(self, x: Tensor) -> Tensor:
        return F.hardtanh(x, self.min_val, self.max_val)

    def extra_repr(self) -> str:
        return f"min_val={self.min_val}, max_val={self.max_val}"


class PReLU(Module):
    """x where x > 0, else weight x; weight [1], or [C] for the channels on axis 1."""

    def __init__(self, num_parameters: int = 1, init: float = 0.25, dtype: object = "f32") -> None:
        super().__init__()
        self.num_parameters = num_parameters
        self.weight = Parameter(full((num_parameters,), float(init), dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return F.prelu(x, self.weight)

    def extra_repr(self) -> str:
        return f"num_parameters={self.num_parameters}"


class _OneNumber(Module):
    """An activation with one number, which ``argument`` names."""

    argument = ""

    def __init__(self, value: float) -> None:
        super().__init__()
        setattr(self, self.argument, value)

    def value(self) -> Any:
        return getattr(self, self.argument)

    def extra_repr(self) -> str:
        return f"{self.argument}={self.value()}"


class LeakyReLU(_OneNumber):
    """x where x > 0, else negative_slope x."""

    argument = "negative_slope"

    def __init__(self, negative_slope: float = 0.01) -> None:
        super().__init__(negative_slope)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, self.value())


class ELU(_OneNumber):
    """x where x > 0, else alpha (e^x - 1)."""

    argument = "alpha"

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__(alpha)

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(x, self.value())


class CELU(_OneNumber):
    """x where x > 0, else alpha (e^(x/alpha) - 1)."""

    argument = "alpha"

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__(alpha)

    def forward(self, x: Tensor) -> Tensor:
        return F.celu(x, self.value())


class GLU(_OneNumber):
    """a sigmoid(b) of the halves a and b along ``dim``."""

    argument = "dim"

    def __init__(self, dim: int = -1) -> None:
        super().__init__(dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.glu(x, self.value())


class Softmax(_OneNumber):
    """e^x / sum e^x along ``dim``."""

    argument = "dim"

    def __init__(self, dim: int = -1) -> None:
        super().__init__(dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.softmax(x, self.value())


class LogSoftmax(_OneNumber):
    """x - log sum e^x along ``dim``."""

    argument = "dim"

    def __init__(self, dim: int = -1) -> None:
        super().__init__(dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(x, self.value())


class Softplus(Module):
    """log(1 + e^(beta x)) / beta, and x where beta x > threshold."""

    def __init__(self, beta: float = 1.0, threshold: float = 20.0) -> None:
        super().__init__()
        self.beta, self.threshold = beta, threshold

    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(x, self.beta, self.threshold)

    def extra_repr(self) -> str:
        return f"beta={self.beta}, threshold={self.threshold}"
