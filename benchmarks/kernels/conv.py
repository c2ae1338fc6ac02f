"""Convolutions: ResNet-50's, depthwise ones of MobileNetV2, those of ResNet-9, narrow and wide.

A name says what is computed (forward, dx: the gradient of the image, dw: that of the weight), the
batch, channels in and out, the image and the window. nir's images are NHWC, as in the middle of a
model. PyTorch (oneDNN) is measured in three layouts, each of which it keeps from layer to layer:
as stored, channels last, and forward also in oneDNN's own blocks with weights that were reordered
before. Forward, nir's weights are a constant of the program; of dx they are not, and packing them
is part of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks.kernels import Case, Step
from benchmarks.kernels.peers import numbers

TITLE = "convolution, f32"

_CACHES = 48 << 20


@dataclass(frozen=True)
class Layer:
    """A square convolution: image ``size``, ``kernel``, ``stride`` and ``pad`` on both axes."""

    size: int
    channels: int
    out: int
    kernel: int
    stride: int
    pad: int
    groups: int = 1

    @property
    def out_size(self) -> int:
        return (self.size + 2 * self.pad - self.kernel) // self.stride + 1

    def shapes(self, batch: int) -> tuple[tuple[int, ...], ...]:
        """Of x (NHWC), w (OIHW) and y (NHWC)."""
        return (
            (batch, self.size, self.size, self.channels),
            (self.out, self.channels // self.groups, self.kernel, self.kernel),
            (batch, self.out_size, self.out_size, self.out),
        )

    def products(self, batch: int) -> int:
        """Multiplications, less those with padding."""
        reads = sum(
            0 <= o * self.stride + k - self.pad < self.size
            for o in range(self.out_size)
            for k in range(self.kernel)
        )
        return batch * reads**2 * self.out * self.channels // self.groups


def _arrays(layer: Layer, batch: int, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, w, y = layer.shapes(batch)
    weight = numbers(*w, seed=2) / np.float32(np.sqrt(np.prod(w[1:])))
    return numbers(*x, seed=1), weight, numbers(*y, seed=3)


def _nir(layer: Layer, batch: int, kind: str) -> Step:
    from nir import ops
    from nir.compile import compile_graph
    from nir.ir.graph import Builder
    from nir.ir.types import TensorType, f32
    from nir.runtime import as_storage

    x, w, dy = _arrays(layer, batch, kind)
    b = Builder("conv")
    window: dict[str, Any] = {
        "stride": (layer.stride,) * 2,
        "padding": ((layer.pad,) * 2,) * 2,
        "groups": layer.groups,
        "weight_layout": "OIHW",
    }

    def given(a: np.ndarray) -> Any:
        return b.input(TensorType(f32, a.shape))

    match kind:
        case "forward":
            arrays = [x]
            result = b.emit(ops.Conv2d(given(x), *b.emit(ops.Constant(w)), **window))
        case "dx":
            arrays = [dy, w]
            size = (layer.size,) * 2
            result = b.emit(ops.Conv2dInputGrad(given(dy), given(w), input_size=size, **window))
        case _:
            arrays = [x, dy]
            kernel = (layer.kernel,) * 2
            result = b.emit(ops.Conv2dWeightGrad(given(x), given(dy), kernel_size=kernel, **window))
    program = compile_graph(b.build(result))
    inputs = [as_storage(a) for a in arrays]
    return lambda: program.run(inputs)


class _AsNhwc:
    """An image of PyTorch's for comparison with nir's: turned when it is looked at."""

    def __init__(self, y: Any) -> None:
        self.y = y

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        y = self.y.to_dense() if self.y.is_mkldnn else self.y
        turned: np.ndarray = y.permute(0, 2, 3, 1).numpy()
        return turned


def _torch(layout: str, layer: Layer, batch: int, kind: str) -> Step:
    import torch

    x, w, dy = (torch.from_numpy(a) for a in _arrays(layer, batch, kind))
    format_ = torch.contiguous_format if layout == "stored" else torch.channels_last
    x, dy = (a.permute(0, 3, 1, 2).contiguous(memory_format=format_) for a in (x, dy))
    w = w.contiguous(memory_format=format_)
    s, p, g = layer.stride, layer.pad, layer.groups
    if layout == "blocked":
        reorder = torch._C._nn.mkldnn_reorder_conv2d_weight  # what torch.utils.mkldnn calls
        size = list(x.shape)
        x = x.to_mkldnn()
        w = reorder(w.contiguous().to_mkldnn(), (p, p), (s, s), (1, 1), g, size)
    if kind == "forward":

        def forward() -> Any:
            with torch.no_grad():
                return _AsNhwc(torch.conv2d(x, w, None, s, p, 1, g))

        return forward
    backward = torch.ops.aten.convolution_backward
    which = [kind == "dx", kind == "dw", False]

    def step() -> Any:
        dx, dw, _ = backward(dy, x, w, None, [s, s], [p, p], [1, 1], False, [0, 0], g, which)
        return _AsNhwc(dx) if kind == "dx" else dw

    return step


def _case(group: str, name: str, layer: Layer, batch: int, kind: str) -> Case:
    peers: dict[str, Callable[[], Step]] = {
        "nir": partial(_nir, layer, batch, kind),
        "torch": partial(_torch, "stored", layer, batch, kind),
        "torch_last": partial(_torch, "last", layer, batch, kind),
    }
    if kind == "forward":
        peers["torch_blocked"] = partial(_torch, "blocked", layer, batch, kind)
    bytes_ = 4.0 * sum(int(np.prod(s)) for s in layer.shapes(batch))
    window = f"{layer.kernel}x{layer.kernel}" + (f" s{layer.stride}" if layer.stride > 1 else "")
    return Case(
        f"{kind} b{batch} {name} {layer.channels}-{layer.out} {layer.size} {window}",
        f"{group} {kind} b{batch}",
        peers,
        flops=2.0 * layer.products(batch),
        bytes=bytes_ if bytes_ > _CACHES else 0.0,
        # A sum of batch x pixels products, beside one taken in another order.
        tolerance=1e-3 if kind == "dw" else 1e-4,
    )


# How often a layer comes in its network stands in brackets. ResNet-50 v1 has its strides on 1 x 1
# convolutions, v1.5 on the 3 x 3 ones at the end of the list.
_RESNET50 = {
    "conv1 [1]": Layer(224, 3, 64, 7, 2, 3),
    "res2 [1]": Layer(56, 64, 64, 1, 1, 0),
    "res2 [2]": Layer(56, 256, 64, 1, 1, 0),
    "res2 [3]": Layer(56, 64, 64, 3, 1, 1),
    "res2 [4]": Layer(56, 64, 256, 1, 1, 0),
    "res3 [3]": Layer(28, 512, 128, 1, 1, 0),
    "res3 3x3 [4]": Layer(28, 128, 128, 3, 1, 1),
    "res3 [4]": Layer(28, 128, 512, 1, 1, 0),
    "res3 s2 [1]": Layer(56, 256, 512, 1, 2, 0),
    "res3 in s2 [1]": Layer(56, 256, 128, 1, 2, 0),
    "res4 [5]": Layer(14, 1024, 256, 1, 1, 0),
    "res4 3x3 [6]": Layer(14, 256, 256, 3, 1, 1),
    "res4 [6]": Layer(14, 256, 1024, 1, 1, 0),
    "res4 s2 [1]": Layer(28, 512, 1024, 1, 2, 0),
    "res4 in s2 [1]": Layer(28, 512, 256, 1, 2, 0),
    "res5 [2]": Layer(7, 2048, 512, 1, 1, 0),
    "res5 3x3 [3]": Layer(7, 512, 512, 3, 1, 1),
    "res5 [3]": Layer(7, 512, 2048, 1, 1, 0),
    "res5 s2 [1]": Layer(14, 1024, 2048, 1, 2, 0),
    "res5 in s2 [1]": Layer(14, 1024, 512, 1, 2, 0),
    "v1.5 res3 [0]": Layer(56, 128, 128, 3, 2, 1),
    "v1.5 res4 [0]": Layer(28, 256, 256, 3, 2, 1),
    "v1.5 res5 [0]": Layer(14, 512, 512, 3, 2, 1),
}
_MOBILENET = {
    f"depthwise s{stride} {c}": Layer(size, c, c, 3, stride, 1, c)
    for size, c, stride in (
        (112, 32, 1), (112, 96, 2), (56, 144, 1), (56, 144, 2), (28, 192, 1), (28, 192, 2),
        (14, 384, 1), (14, 576, 1), (14, 576, 2), (7, 960, 1),
    )
}  # fmt: skip
_RESNET9 = {
    "conv1": Layer(32, 3, 16, 7, 4, 3),
    "conv2": Layer(8, 16, 32, 3, 2, 1),
    "conv3-4": Layer(4, 32, 32, 3, 1, 1),
    "conv5": Layer(4, 32, 64, 3, 2, 1),
    "conv6": Layer(2, 64, 128, 3, 2, 1),
    "conv7-8": Layer(1, 128, 128, 3, 1, 1),
}
_WIDE_RESNET9 = {
    "conv1": Layer(32, 3, 64, 3, 1, 1),
    "conv2": Layer(32, 64, 128, 3, 1, 1),
    "conv3-4": Layer(16, 128, 128, 3, 1, 1),
    "conv5": Layer(16, 128, 256, 3, 1, 1),
    "conv6": Layer(8, 256, 512, 3, 1, 1),
    "conv7-8": Layer(4, 512, 512, 3, 1, 1),
}


def _group(group: str, layers: dict[str, Layer], batches: Sequence[int]) -> list[Case]:
    return [
        _case(group, name, layer, batch, kind)
        for batch in batches
        for kind in ("forward", "dx", "dw")
        for name, layer in layers.items()
    ]


CASES: tuple[Case, ...] = (
    *_group("resnet50", _RESNET50, (1, 16)),
    *_group("depthwise", _MOBILENET, (1, 16)),
    *_group("resnet9", _RESNET9, (1, 64, 128)),
    *_group("wide_resnet9", _WIDE_RESNET9, (32,)),
)
