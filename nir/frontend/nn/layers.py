"""Layers with weights, pooling and dropout. Images are NCHW, weights shaped as in PyTorch."""

from __future__ import annotations

import math

from nir.frontend import init
from nir.frontend.functional import zeros
from nir.frontend.nn import functional as F
from nir.frontend.nn.module import Module, Parameter
from nir.frontend.random import Generator
from nir.frontend.tensor import Tensor


class Linear(Module):
    """x W^T + b over the last axis: [..., in] -> [..., out]; weight [out, in], bias [out]."""

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, dtype: object = "f32"
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = Parameter(zeros(out_features, in_features, dtype=dtype))
        self.bias = Parameter(zeros(out_features, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw anew: all of U(-1/sqrt(in), 1/sqrt(in))."""
        uniform_by_fan_in(self.weight, self.bias, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


class Embedding(Module):
    """Rows of a table: i64[...] -> [..., embedding_dim]; weight [num_embeddings, embedding_dim].

    Row ``padding_idx`` starts at 0 and gets no gradient.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        dtype: object = "f32",
    ) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.padding_idx = padding_idx
        self.weight = Parameter(zeros(num_embeddings, embedding_dim, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw anew from N(0, 1)."""
        init.normal_(self.weight)
        if self.padding_idx is not None:
            values = self.weight.numpy().copy()
            values[self.padding_idx] = 0
            self.weight.copy_(Tensor(values))

    def forward(self, indices: Tensor) -> Tensor:
        return F.embedding(indices, self.weight, self.padding_idx)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"


class Dropout(Module):
    """In training, 0 with probability ``p`` and x / (1 - p) otherwise; x in evaluation.

    Masks come from ``generator``, nir's default one if none is given.
    """

    def __init__(self, p: float = 0.5, generator: Generator | None = None) -> None:
        super().__init__()
        self.p = p
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training, self.generator)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class _Pool2d(Module):
    def __init__(
        self, kernel_size: F.Pair, stride: F.Pair | None = None, padding: F.Pair = 0
    ) -> None:
        super().__init__()
        self.kernel_size = F.pair(kernel_size)
        self.stride = self.kernel_size if stride is None else F.pair(stride)
        self.padding = F.pair(padding)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class MaxPool2d(_Pool2d):
    """The largest of each window of [N, C, H, W]; padding never wins."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, self.kernel_size, self.stride, self.padding)


class AvgPool2d(_Pool2d):
    """The mean of each window of [N, C, H, W], padding zeros counted if ``count_include_pad``."""

    def __init__(
        self,
        kernel_size: F.Pair,
        stride: F.Pair | None = None,
        padding: F.Pair = 0,
        count_include_pad: bool = True,
    ) -> None:
        super().__init__(kernel_size, stride, padding)
        self.count_include_pad = count_include_pad

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.kernel_size, self.stride, self.padding, self.count_include_pad)


class AdaptiveAvgPool2d(Module):
    """Means of H' x W' windows that cover [N, C, H, W]: [N, C, H', W'].

    Window i of n over m elements goes from floor(i m / n) to ceil((i + 1) m / n).
    """

    def __init__(self, output_size: F.Pair) -> None:
        super().__init__()
        self.output_size = F.pair(output_size)

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, self.output_size)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


def uniform_by_fan_in(weight: Tensor, bias: Tensor | None, fan_in: int) -> None:
    """Draw both from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default."""
    # Its kaiming_uniform_(a=sqrt(5)) is this bound.
    bound = 1 / math.sqrt(fan_in) if fan_in else 0.0
    init.uniform_(weight, -bound, bound)
    if bias is not None:
        init.uniform_(bias, -bound, bound)
