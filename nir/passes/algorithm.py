"""Which algorithm computes a convolution: a rule by shapes, or what a measurement found.

"direct"    products of pixels and taps, as the op is defined
"winograd"  F(2 x 2, 3 x 3): four products in place of nine, with numerics "fast"
"product"   of 1 x 1 windows: rows times a matrix

`nir.tune` measures, and says in `Target.choices` what it found for a `site`.
"""

from __future__ import annotations

from typing import Any

from nir.ir.dim import Shape
from nir.ir.program import Target
from nir.ops import Conv2d, Conv2dInputGrad, Conv2dWeightGrad

Convolution = Conv2d | Conv2dInputGrad | Conv2dWeightGrad

_WINOGRAD_MARGIN, _SUM_MARGIN = 1.2, 1.5  # the latter of the gradients of weights
UNKNOWN_BATCH = 32  # what a symbolic number of images counts as


def site(op: Any) -> str:
    """A convolution by its types and window: equal ones are computed alike."""
    types = ", ".join(str(v.type) for v in op.operands)
    window = f"{op.weight_layout} {op.stride} {op.padding} {op.dilation} {op.groups}"
    return f"{op.name}({types}) {window} -> {op.result.type}"


def algorithm(op: Any, target: Target) -> str:
    """The algorithm for a convolution whose weights lie as they were made."""
    possible = algorithms(op, target)
    chosen = dict(target.choices).get(site(op)) if target.choices else None
    if chosen in possible:
        return chosen
    if "product" in possible:
        return "product"
    return "winograd" if "winograd" in possible and winograd_wins(op) else "direct"


def algorithms(op: Any, target: Target) -> tuple[str, ...]:
    """The algorithms that can compute a convolution."""
    back = isinstance(op, Conv2dWeightGrad)
    if op.weight_layout not in ("HWIO", "OIHW") or getattr(op, "x_layout", "NHWC") != "NHWC":
        return ("direct",)
    w = op.result.type.shape if back else op.w.type.shape
    kernel = w[:2] if op.weight_layout == "HWIO" else w[2:]
    if op.groups != 1:
        return ("direct",)
    if kernel == (1, 1) and op.padding == ((0, 0), (0, 0)) and (back or op.stride == (1, 1)):
        return ("direct", "product")
    if (op.stride, op.dilation) != ((1, 1), (1, 1)):
        return ("direct",)
    x, y = _images(op)
    static = all(isinstance(n, int) for n in (*x[1:], *y[1:]))
    if kernel == (3, 3) and static and max(map(max, op.padding)) <= 2:
        return ("direct", "winograd") if target.numerics == "fast" else ("direct",)
    return ("direct",)


def _images(op: Convolution) -> tuple[Shape, Shape]:
    """The shapes of the image that is read through the window, and of the other one."""
    out = op.dy if isinstance(op, Conv2dWeightGrad) else op.result
    return op.operands[0].type.shape, out.type.shape


def winograd_wins(op: Convolution) -> bool:
    """Whether four products in place of nine pay for the transforms, by a fit to measured layers.

    In flops for each pair of channels. The definition takes two for each pixel and tap inside the
    image; a patch takes 32 for its products and, for each channel, 192 for a transform; 576 stand
    for the transformed weights, which are read once. For the gradient of a weight it is the same,
    with a larger margin: each thread transforms all of x.
    """
    x, y = _images(op)
    batch, *image, channels = map(_size, x)
    _, out_h, out_w, columns = map(_size, y)
    # The gradient of an image is padded by what a window exceeds the padding.
    before = [2 - p if isinstance(op, Conv2dInputGrad) else p for p, _ in op.padding]
    taps = [
        sum(0 <= o + k - p < n for o in range(size) for k in range(3))
        for n, size, p in zip(image, (out_h, out_w), before, strict=True)
    ]
    patches = batch * -(-out_h // 2) * -(-out_w // 2)
    direct = 2 * batch * taps[0] * taps[1]
    transforms = 192 * (channels + columns) / max(channels * columns, 1)
    margin = _SUM_MARGIN if isinstance(op, Conv2dWeightGrad) else _WINOGRAD_MARGIN
    return direct > margin * (patches * (32 + transforms) + 576)


def _size(n: Any) -> int:
    return n if isinstance(n, int) else UNKNOWN_BATCH
