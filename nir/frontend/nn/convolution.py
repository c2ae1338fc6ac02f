"""Convolutions of one to three axes and their transposes, as functions with PyTorch's arguments.

Images are channels-first here and channels-last in the IR, where everything is the 2-D convolution
and its input gradient: a signal is an image of height 1; a volume is a sum, over the taps of the
kernel's depth, of convolutions of its slices. The gradients follow from theirs, to any order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from nir import ops
from nir.errors import NirError, ShapeError
from nir.frontend.functional import pad, stack, zeros_like
from nir.frontend.tensor import Tensor, apply
from nir.frozen import Frozen
from nir.ir.dim import Dim
from nir.ir.location import caller
from nir.ops.conv import out_size

Pair: TypeAlias = "int | tuple[int, int]"
# One number for all axes, or one for each.
Sizes: TypeAlias = "int | Sequence[int]"
Padding: TypeAlias = "Sizes | Literal['same', 'valid']"

_SHAPES = {1: "[N,C,L]", 2: "[N,C,H,W]", 3: "[N,C,D,H,W]"}
_KERNELS = {1: "k", 2: "kh,kw", 3: "kd,kh,kw"}


def pair(value: Pair) -> tuple[int, int]:
    """(v, v) of an int, or the pair itself."""
    if isinstance(value, int):
        return value, value
    if len(value) != 2:
        raise ShapeError(f"expected one size or two (height, width), got {tuple(value)}", caller())
    return int(value[0]), int(value[1])


def sizes(value: Sizes, axes: int, what: str) -> tuple[int, ...]:
    """One number for each of ``axes`` axes."""
    if isinstance(value, int):
        return (value,) * axes
    if len(value) != axes:
        raise ShapeError(f"{what}: expected one size or {axes}, got {tuple(value)}", caller())
    return tuple(int(v) for v in value)


class _Window(Frozen):
    """How a kernel moves over an image, one number (or pair) for each axis."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int

    def from_axis(self, first: int) -> _Window:
        """The window over the axes from ``first`` on."""
        return _Window(
            self.kernel[first:],
            self.stride[first:],
            self.padding[first:],
            self.dilation[first:],
            self.groups,
        )

    def with_height(self) -> _Window:
        """The same window over one more axis, of size 1."""
        return _Window(
            (1, *self.kernel), (1, *self.stride), ((0, 0), *self.padding), (1, *self.dilation),
            self.groups,
        )  # fmt: skip


# ---- convolution ---------------------------------------------------------------------------------


def conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Padding = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Tensor:
    """Cross-correlation of [N, C, L] with [O, C/groups, k]: [N, O, L']."""
    window = _window("conv1d", 1, x, weight, stride, padding, dilation, groups)
    rows = _channels_last(x).unsqueeze(1)
    y = _conv2d(rows, _kernel_first(weight).unsqueeze(0), window.with_height()).squeeze(1)
    return _channels_first(y, bias)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Padding = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Tensor:
    """Cross-correlation of [N, C, H, W] with [O, C/groups, kh, kw]: [N, O, H', W']."""
    window = _window("conv2d", 2, x, weight, stride, padding, dilation, groups)
    return _channels_first(_conv2d(_channels_last(x), _kernel_first(weight), window), bias)


def conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Padding = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Tensor:
    """Cross-correlation of [N, C, D, H, W] with [O, C/groups, kd, kh, kw]: [N, O, D', H', W']."""
    window = _window("conv3d", 3, x, weight, stride, padding, dilation, groups)
    image, taps = _channels_last(x), _kernel_first(weight)
    batch, depth = image.shape[:2]
    stride_d, dilation_d = window.stride[0], window.dilation[0]
    out = out_size(depth, window.kernel[0], stride_d, window.padding[0], dilation_d)
    if isinstance(out, int) and out < 1:
        raise ShapeError(
            f"conv3d: kernel {window.kernel} with dilation {window.dilation} exceeds the padded "
            f"image (x: {x.type}, padding {window.padding})",
            caller(),
        )
    image = _pad_depth(image, *window.padding[0])

    def slices(tap: int) -> Tensor:
        """The slices that ``tap`` meets, one for each slice of the result: [N D', H, W, C]."""
        met = _slice_depth(image, tap * dilation_d, out, stride_d)
        return met.reshape(batch * out, *image.shape[2:])

    flat = window.from_axis(1)
    y = _sum(lambda i: _conv2d(slices(i), taps[i], flat), window.kernel[0])
    return _channels_first(y.reshape(batch, out, *y.shape[1:]), bias)


def _conv2d(x: Tensor, w: Tensor, window: _Window) -> Tensor:
    """Of NHWC with HWIO."""
    return apply(  # type: ignore[no-any-return]
        ops.Conv2d,
        x,
        w,
        stride=window.stride,
        padding=window.padding,
        dilation=window.dilation,
        groups=window.groups,
    )


# ---- transposed convolution ----------------------------------------------------------------------


def conv_transpose1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
) -> Tensor:
    """The transpose of `conv1d`, [N, C, L] with [C, O/groups, k]: [N, O, L'].

    L' = (L - 1) stride - 2 padding + dilation (k - 1) + output_padding + 1.
    """
    name = "conv_transpose1d"
    window, more = _transposed(
        name, 1, x, weight, stride, padding, dilation, groups, output_padding
    )
    rows = _channels_last(x).unsqueeze(1)
    taps = _kernel_first(weight).unsqueeze(0)
    y = _conv_transpose2d(rows, taps, window.with_height(), (0, *more)).squeeze(1)
    return _channels_first(y, bias)


def conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
) -> Tensor:
    """The transpose of `conv2d`, [N, C, H, W] with [C, O/groups, kh, kw]: [N, O, H', W'].

    H' = (H - 1) stride - 2 padding + dilation (kh - 1) + output_padding + 1.
    """
    name = "conv_transpose2d"
    window, more = _transposed(
        name, 2, x, weight, stride, padding, dilation, groups, output_padding
    )
    y = _conv_transpose2d(_channels_last(x), _kernel_first(weight), window, more)
    return _channels_first(y, bias)


def conv_transpose3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
) -> Tensor:
    """The transpose of `conv3d`: [N, C, D, H, W] with [C, O/groups, kd, kh, kw]."""
    name = "conv_transpose3d"
    window, more = _transposed(
        name, 3, x, weight, stride, padding, dilation, groups, output_padding
    )
    image, taps = _channels_last(x), _kernel_first(weight)
    batch, depth = image.shape[:2]
    kernel_d, stride_d, dilation_d = window.kernel[0], window.stride[0], window.dilation[0]
    before, after = window.padding[0]
    full = (depth - 1) * stride_d + (dilation_d * (kernel_d - 1) + more[0] + 1 - before - after)
    _expect_some([full])
    # Slice t of x adds to slice t * stride + tap * dilation - before of the result. So a tap serves
    # the slices phase, phase + stride, ... alone, and meets x shifted by a whole number of slices.
    count = (full + stride_d - 1) // stride_d
    places = [divmod(tap * dilation_d - before, stride_d) for tap in range(kernel_d)]
    low = max(0, *(shift for shift, _ in places))
    high = max(0, *(_static(count - depth, name) - shift for shift, _ in places))
    image = _pad_depth(image, low, high)
    flat = window.from_axis(1)
    phases: list[Tensor | None] = [None] * stride_d
    for tap, (shift, phase) in enumerate(places):
        met = _slice_depth(image, low - shift, count, 1)
        y = _conv_transpose2d(met.reshape(batch * count, *met.shape[2:]), taps[tap], flat, more[1:])
        total = phases[phase]
        phases[phase] = y if total is None else total + y
    some = next(p for p in phases if p is not None)
    parts = [zeros_like(some) if p is None else p for p in phases]
    y = stack([p.reshape(batch, count, *p.shape[1:]) for p in parts], 2)
    y = y.reshape(batch, count * stride_d, *y.shape[3:])
    return _channels_first(_slice_depth(y, 0, full, 1), bias)


def _conv_transpose2d(x: Tensor, w: Tensor, window: _Window, more: Sequence[int]) -> Tensor:
    """The input gradient of a convolution with HWIO, x in the place of its NHWC cotangent."""
    size: list[Dim] = []
    for axis, (k, s, p, d) in enumerate(
        zip(window.kernel, window.stride, window.padding, window.dilation, strict=True)
    ):
        n = x.shape[1 + axis]
        full = (n - 1) * s + (d * (k - 1) + more[axis] + 1 - sum(p))
        # An output padding of a stride or more makes room for windows that x has no value for.
        room = out_size(full, k, s, p, d) - n
        if room != 0:
            zeros = [0] * (2 * x.ndim)
            zeros[2 * (x.ndim - 2 - axis) + 1] = int(room)
            x = pad(x, zeros)
        size.append(full)
    _expect_some(size)
    return apply(  # type: ignore[no-any-return]
        ops.Conv2dInputGrad,
        x,
        w,
        input_size=tuple(size),
        stride=window.stride,
        padding=window.padding,
        dilation=window.dilation,
        groups=window.groups,
    )


# ---- what they share -----------------------------------------------------------------------------


def _window(
    name: str, axes: int, x: Tensor, weight: Tensor, stride: Sizes, padding: Padding,
    dilation: Sizes, groups: int, transposed: bool = False,
) -> _Window:  # fmt: skip
    if x.ndim != 2 + axes or weight.ndim != 2 + axes:
        channels = "C,O/groups" if transposed else "O,C/groups"
        raise ShapeError(
            f"{name}: expected images {_SHAPES[axes]} and a weight [{channels},{_KERNELS[axes]}], "
            f"got {tuple(x.shape)} and {tuple(weight.shape)}",
            caller(),
        )
    kernel = tuple(_static(k, name) for k in weight.shape[2:])
    strides, dilations = sizes(stride, axes, name), sizes(dilation, axes, name)
    pads = _padding(name, padding, kernel, strides, dilations)
    return _Window(kernel, strides, pads, dilations, groups)


def _transposed(
    name: str, axes: int, x: Tensor, weight: Tensor, stride: Sizes, padding: Sizes,
    dilation: Sizes, groups: int, output_padding: Sizes,
) -> tuple[_Window, tuple[int, ...]]:  # fmt: skip
    """The window, and the output padding of each axis."""
    window = _window(name, axes, x, weight, stride, padding, dilation, groups, transposed=True)
    if x.shape[1] != weight.shape[0] or groups < 1 or _static(weight.shape[0], name) % groups:
        raise ShapeError(
            f"{name}: expected {weight.shape[0]} channels, divisible by groups {groups}, got "
            f"{tuple(x.shape)} (weight: {tuple(weight.shape)})",
            caller(),
        )
    more = sizes(output_padding, axes, name)
    if any(
        not 0 <= m < max(s, d) for m, s, d in zip(more, window.stride, window.dilation, strict=True)
    ):
        raise ShapeError(
            f"{name}: expected output padding below stride or dilation, got {more} "
            f"(stride {window.stride}, dilation {window.dilation})",
            caller(),
        )
    return window, more


def _padding(
    name: str,
    padding: Padding,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> tuple[tuple[int, int], ...]:
    """(before, after) for each axis."""
    if not isinstance(padding, str):
        return tuple((p, p) for p in sizes(padding, len(kernel), name))
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    if padding != "same":
        raise NirError(
            f"{name}: expected padding 'same', 'valid' or sizes, got {padding!r}", caller()
        )
    if set(stride) != {1}:
        raise NirError(f"{name}: padding 'same' needs stride 1, got {tuple(stride)}", caller())
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    # The odd element goes to the end, as in PyTorch.
    return tuple((t // 2, t - t // 2) for t in total)


def _channels_last(x: Tensor) -> Tensor:
    return x.permute(0, *range(2, x.ndim), 1)


def _kernel_first(weight: Tensor) -> Tensor:
    """[O, I, k...] as [k..., I, O]."""
    return weight.permute(*range(2, weight.ndim), 1, 0)


def _channels_first(y: Tensor, bias: Tensor | None) -> Tensor:
    y = y if bias is None else y + bias
    return y.permute(0, y.ndim - 1, *range(1, y.ndim - 1))


def _pad_depth(x: Tensor, before: int, after: int) -> Tensor:
    """Zeros before and after axis 1 of [N, D, H, W, C]."""
    return pad(x, [0, 0, 0, 0, 0, 0, before, after]) if before or after else x


def _slice_depth(x: Tensor, start: int, size: Dim, step: int) -> Tensor:
    """x[:, start::step] of ``size`` elements."""
    rest = x.ndim - 2
    return apply(  # type: ignore[no-any-return]
        ops.Slice,
        x,
        starts=(0, start, *(0,) * rest),
        sizes=(x.shape[0], size, *x.shape[2:]),
        steps=(1, step, *(1,) * rest),
    )


def _expect_some(lengths: Sequence[Dim]) -> None:
    if any(isinstance(n, int) and n < 1 for n in lengths):
        given = ", ".join(map(str, lengths))
        raise ShapeError(
            f"transposed convolution: padding leaves nothing of the result, of size {given}",
            caller(),
        )


def _sum(term: Callable[[int], Tensor], count: int) -> Tensor:
    total = term(0)
    for i in range(1, count):
        total = total + term(i)
    return total


def _static(size: Dim, name: str) -> int:
    if not isinstance(size, int):
        raise ShapeError(f"{name}: expected a known size, got the symbolic {size}", caller())
    return size
