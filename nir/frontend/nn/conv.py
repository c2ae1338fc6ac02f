"""Convolutions as layers; weights are shaped as in PyTorch, images channels-first."""

from __future__ import annotations

import math
from typing import ClassVar

from nir.errors import ShapeError
from nir.frontend.functional import zeros
from nir.frontend.nn import functional as F
from nir.frontend.nn.layers import uniform_by_fan_in
from nir.frontend.nn.module import Module, Parameter
from nir.frontend.tensor import Tensor
from nir.ir.location import caller


class _Conv(Module):
    axes: ClassVar[int]
    transposed: ClassVar[bool] = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: F.Sizes,
        stride: F.Sizes,
        padding: F.Padding,
        dilation: F.Sizes,
        groups: int,
        bias: bool,
        dtype: object,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ShapeError(
                f"{name}: expected channels divisible by groups={groups}, "
                f"got {in_channels} and {out_channels}",
                caller(),
            )
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = F.sizes(kernel_size, self.axes, name)
        self.stride = F.sizes(stride, self.axes, name)
        self.dilation = F.sizes(dilation, self.axes, name)
        self.padding = padding if isinstance(padding, str) else F.sizes(padding, self.axes, name)
        first, second = in_channels, out_channels
        if not self.transposed:
            first, second = second, first
        self.weight = Parameter(zeros(first, second // groups, *self.kernel_size, dtype=dtype))
        self.bias = Parameter(zeros(out_channels, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw anew: all of U(-1/sqrt(n), 1/sqrt(n)), n the elements of weight[0]."""
        uniform_by_fan_in(self.weight, self.bias, math.prod(self.weight.numpy().shape[1:]))

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"groups={self.groups}, bias={self.bias is not None}"
        )


class _Forward(_Conv):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: F.Sizes,
        stride: F.Sizes = 1,
        padding: F.Padding = 0,
        dilation: F.Sizes = 1,
        groups: int = 1,
        bias: bool = True,
        dtype: object = "f32",
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, dtype
        )

    def forward(self, x: Tensor) -> Tensor:
        convolve = (F.conv1d, F.conv2d, F.conv3d)[self.axes - 1]
        return convolve(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class _Transposed(_Conv):
    transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: F.Sizes,
        stride: F.Sizes = 1,
        padding: F.Sizes = 0,
        output_padding: F.Sizes = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: F.Sizes = 1,
        dtype: object = "f32",
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, dtype
        )
        self.output_padding = F.sizes(output_padding, self.axes, type(self).__name__)

    def forward(self, x: Tensor) -> Tensor:
        convolve = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[self.axes - 1]
        assert not isinstance(self.padding, str)
        return convolve(
            x, self.weight, self.bias, self.stride, self.padding, self.output_padding,
            self.groups, self.dilation,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, output_padding={self.output_padding}"


class Conv1d(_Forward):
    """Cross-correlation, [N, in, L] -> [N, out, L'].

    weight [out, in/groups, k], bias [out]; L' = floor((L + 2 padding - dilation (k - 1) - 1) /
    stride) + 1.
    """

    axes = 1


class Conv2d(_Forward):
    """Cross-correlation, [N, in, H, W] -> [N, out, H', W'].

    weight [out, in/groups, kh, kw], bias [out];
    H' = floor((H + 2 padding - dilation (kh - 1) - 1) / stride) + 1.
    """

    axes = 2


class Conv3d(_Forward):
    """Cross-correlation, [N, in, D, H, W] -> [N, out, D', H', W'].

    weight [out, in/groups, kd, kh, kw], bias [out];
    D' = floor((D + 2 padding - dilation (kd - 1) - 1) / stride) + 1.
    """

    axes = 3


class ConvTranspose1d(_Transposed):
    """The transpose of `Conv1d`, [N, in, L] -> [N, out, L'].

    weight [in, out/groups, k], bias [out];
    L' = (L - 1) stride - 2 padding + dilation (k - 1) + output_padding + 1.
    """

    axes = 1


class ConvTranspose2d(_Transposed):
    """The transpose of `Conv2d`, [N, in, H, W] -> [N, out, H', W'].

    weight [in, out/groups, kh, kw], bias [out];
    H' = (H - 1) stride - 2 padding + dilation (kh - 1) + output_padding + 1.
    """

    axes = 2


class ConvTranspose3d(_Transposed):
    """The transpose of `Conv3d`, [N, in, D, H, W] -> [N, out, D', H', W'].

    weight [in, out/groups, kd, kh, kw], bias [out];
    D' = (D - 1) stride - 2 padding + dilation (kd - 1) + output_padding + 1.
    """

    axes = 3
