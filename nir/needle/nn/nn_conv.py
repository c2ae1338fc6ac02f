"""Convolution."""

from __future__ import annotations

import math
from typing import Any

import nir
from nir import ops as nir_ops
from nir.frontend.tensor import apply
from nir.needle import init
from nir.needle.nn.nn_basic import Lowered, Module, Parameter


class Conv(Module):
    """Cross-correlation of images (N, C, H, W) with padding k // 2.

    ``weight`` is (k, k, C_in, C_out), ``bias`` (C_out,); kernels and strides are square.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        bias: bool = True,
        device: Any = None,
        dtype: Any = "float32",
    ) -> None:
        super().__init__()
        k = kernel_size[0] if isinstance(kernel_size, tuple) else kernel_size
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = k
        self.stride = stride[0] if isinstance(stride, tuple) else stride
        self.padding = k // 2
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = Parameter(
            init.kaiming_uniform(
                in_channels * k * k,
                out_channels * k * k,
                shape=(k, k, in_channels, out_channels),
                **kind,
            )
        )
        self.bias = None
        if bias:
            bound = 1 / math.sqrt(in_channels * k * k)
            self.bias = Parameter(init.rand(out_channels, low=-bound, high=bound, **kind))

    def forward(self, x: Any) -> Any:
        operands = (x, self.weight) if self.bias is None else (x, self.weight, self.bias)
        return Lowered(_convolve, stride=self.stride, padding=self.padding)(*operands)


def _convolve(
    x: nir.Tensor, w: nir.Tensor, b: nir.Tensor | None = None, *, stride: int, padding: int
) -> nir.Tensor:
    y: nir.Tensor = apply(
        nir_ops.Conv2d,
        x.permute(0, 2, 3, 1),
        w,
        stride=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        dilation=(1, 1),
        groups=1,
    )
    return (y if b is None else y + b).permute(0, 3, 1, 2)
