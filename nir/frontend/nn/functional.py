"""``nir.nn.functional``: layers as functions of Tensors, with PyTorch's names and argument order.

Images are NCHW here and NHWC in the IR: the transposes recorded around convolution, pooling and
batch norm cancel in the layout pass.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import ml_dtypes

from nir import ops
from nir.errors import DTypeError, NirError, ShapeError
from nir.frontend.functional import arange, full, maximum, where
from nir.frontend.nn.attend import scaled_dot_product_attention as scaled_dot_product_attention
from nir.frontend.nn.convolution import Padding as Padding
from nir.frontend.nn.convolution import Pair as Pair
from nir.frontend.nn.convolution import Sizes as Sizes
from nir.frontend.nn.convolution import conv1d as conv1d
from nir.frontend.nn.convolution import conv2d as conv2d
from nir.frontend.nn.convolution import conv3d as conv3d
from nir.frontend.nn.convolution import conv_transpose1d as conv_transpose1d
from nir.frontend.nn.convolution import conv_transpose2d as conv_transpose2d
from nir.frontend.nn.convolution import conv_transpose3d as conv_transpose3d
from nir.frontend.nn.convolution import pair as pair
from nir.frontend.nn.convolution import sizes as sizes
from nir.frontend.nn.dropout import dropout as dropout
from nir.frontend.tensor import Tensor, apply
from nir.ir.dim import Dim
from nir.ir.location import caller
from nir.ir.op import Op
from nir.ir.types import DType, i64

Reduction = Literal["mean", "sum", "none"]
GeluForm = Literal["none", "tanh"]

_TO_NHWC, _TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)


# ---- activations ---------------------------------------------------------------------------------


def relu(x: Tensor) -> Tensor:
    """max(x, 0); the derivative at 0 is 0."""
    return x.relu()


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x)."""
    return x.sigmoid()


def tanh(x: Tensor) -> Tensor:
    return x.tanh()


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x)."""
    return x * x.sigmoid()


def gelu(x: Tensor, approximate: GeluForm = "none") -> Tensor:
    """x Phi(x) by erf, or x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2 if "tanh"."""
    if approximate == "none":
        return 0.5 * x * (1 + (x * math.sqrt(0.5)).erf())
    if approximate == "tanh":
        return 0.5 * x * (1 + (math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))).tanh())
    raise NirError(f"gelu: expected approximate 'none' or 'tanh', got {approximate!r}", caller())


def leaky_relu(x: Tensor, negative_slope: float = 0.01) -> Tensor:
    """x where x > 0, else negative_slope x."""
    return where(x > 0, x, x * negative_slope)


def elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """x where x > 0, else alpha (e^x - 1)."""
    # The inner where keeps e^x finite where it is not used: inf would make the gradient nan.
    negative = where(x > 0, 0.0, x)
    return where(x > 0, x, alpha * negative.expm1())


def softplus(x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + e^(beta x)) / beta, and x where beta x > threshold."""
    z = x * beta
    return where(z > threshold, x, _softplus(z) / beta)


def hardswish(x: Tensor) -> Tensor:
    """x min(max(x + 3, 0), 6) / 6."""
    return x * (x + 3).clamp(0, 6) / 6


def selu(x: Tensor) -> Tensor:
    """scale (x where x > 0, else alpha (e^x - 1)), the constants of Klambauer et al., 2017."""
    return 1.0507009873554805 * elu(x, 1.6732632423543772)


def celu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """x where x > 0, else alpha (e^(x/alpha) - 1)."""
    return where(x > 0, x, alpha * (where(x > 0, 0.0, x) / alpha).expm1())


def mish(x: Tensor) -> Tensor:
    """x tanh(log(1 + e^x))."""
    return x * _softplus(x).tanh()


def softsign(x: Tensor) -> Tensor:
    """x / (1 + |x|)."""
    return x / (1 + x.abs())


def logsigmoid(x: Tensor) -> Tensor:
    """log(1 / (1 + e^-x))."""
    return -_softplus(-x)


def hardtanh(x: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    """x between ``min_val`` and ``max_val``; the derivative there and beyond is 0."""
    return where(x <= min_val, min_val, where(x >= max_val, max_val, x))


def relu6(x: Tensor) -> Tensor:
    """min(max(x, 0), 6); the derivative at 0 and 6 is 0."""
    return hardtanh(x, 0.0, 6.0)


def hardsigmoid(x: Tensor) -> Tensor:
    """min(max(x + 3, 0), 6) / 6; the derivative at -3 and 3 is 0."""
    return relu6(x + 3) / 6


def glu(x: Tensor, dim: int = -1) -> Tensor:
    """a sigmoid(b) of the halves a and b of ``x`` along ``dim``."""
    if _static(x.shape[dim], "glu") % 2:
        raise ShapeError(f"glu: expected an even size of axis {dim}, got {x.type}", caller())
    a, b = x.chunk(2, dim)
    return a * b.sigmoid()


def prelu(x: Tensor, weight: Tensor) -> Tensor:
    """x where x > 0, else w x: one w, or one for each channel (axis 1)."""
    if weight.ndim != 1 or (weight.shape[0] != 1 and tuple(weight.shape) != x.shape[1:2]):
        raise ShapeError(
            f"prelu: expected a weight [1] or [C] of x [N,C,...], got {weight.type} and {x.type}",
            caller(),
        )
    w = weight.reshape(-1, *(1,) * (x.ndim - 2)) if x.ndim > 2 else weight
    return where(x > 0, x, w * x)


def softmax(x: Tensor, dim: int = -1) -> Tensor:
    """e^x / sum e^x along ``dim``."""
    return x.softmax(dim)


def log_softmax(x: Tensor, dim: int = -1) -> Tensor:
    """x - log sum e^x along ``dim``."""
    return x.log_softmax(dim)


def _softplus(z: Tensor) -> Tensor:
    # max(z, 0) + log1p(e^-|z|) never overflows. maximum gives half of its gradient to each side at
    # a tie and |z| has derivative 0 at 0, so the derivative at 0 is the right 1/2.
    return maximum(z, 0.0) + (-z.abs()).exp().log1p()


# ---- linear, pooling, embedding ----------------------------------------------------------------


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b: [..., in] x [out, in] -> [..., out]."""
    if weight.ndim != 2 or x.ndim == 0 or x.shape[-1] != weight.shape[1]:
        raise ShapeError(
            f"linear: expected [..., in] and [out, in], got {tuple(x.shape)} and "
            f"{tuple(weight.shape)}",
            caller(),
        )
    y = x @ weight.T
    return y if bias is None else y + bias


def max_pool2d(
    x: Tensor, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0
) -> Tensor:
    """The largest of each window of [N, C, H, W]; padding never wins, nan does."""
    _expect_images("max_pool2d", x)
    high, wide = pair(padding)
    y = _apply(
        ops.MaxPool2d,
        x.permute(*_TO_NHWC),
        kernel=pair(kernel_size),
        stride=pair(kernel_size if stride is None else stride),
        padding=((high, high), (wide, wide)),
    )
    return y.permute(*_TO_NCHW)


def avg_pool2d(
    x: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    count_include_pad: bool = True,
) -> Tensor:
    """The mean of each window of [N, C, H, W]; padding counts unless ``count_include_pad``."""
    _expect_images("avg_pool2d", x)
    high, wide = pair(padding)
    y = _apply(
        ops.AvgPool2d,
        x.permute(*_TO_NHWC),
        kernel=pair(kernel_size),
        stride=pair(kernel_size if stride is None else stride),
        padding=((high, high), (wide, wide)),
        count_include_pad=count_include_pad,
    )
    return y.permute(*_TO_NCHW)


def adaptive_avg_pool2d(x: Tensor, output_size: Pair) -> Tensor:
    """Means of windows that cover [N, C, H, W]: [N, C, *output_size]."""
    _expect_images("adaptive_avg_pool2d", x)
    out = pair(output_size)
    if out == (1, 1):
        return x.mean((2, 3), keepdim=True)
    size = [_static(n, "adaptive_avg_pool2d") for n in x.shape[2:]]
    if all(n % m == 0 for n, m in zip(size, out, strict=True)):
        return avg_pool2d(x, (size[0] // out[0], size[1] // out[1]))
    # Windows of unequal sizes are two products with constant matrices of weights.
    left, right = (_window_means(n, m, x.dtype) for n, m in zip(size, out, strict=True))
    return (left @ x) @ right.T


def _window_means(size: int, windows: int, dtype: DType) -> Tensor:
    """[windows, size]: row i is 1/length on floor(i n/m) .. ceil((i+1) n/m) - 1, else 0."""
    i, j = arange(windows).unsqueeze(1), arange(size).unsqueeze(0)
    start, end = i * size // windows, ((i + 1) * size + windows - 1) // windows
    return where((j >= start) & (j < end), 1.0, 0.0).to(dtype) / (end - start).to(dtype)


def embedding(indices: Tensor, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    """Rows of ``weight`` [V, D]: [...] -> [..., D]; row ``padding_idx`` gets no gradient."""
    if not indices.dtype.is_integer:
        raise DTypeError(f"embedding: expected integer indices, got {indices.dtype}", caller())
    rows = _apply(ops.Take, weight, indices, axis=0)
    if padding_idx is None:
        return rows
    return where((indices == padding_idx).unsqueeze(-1), rows.detach(), rows)


# ---- normalisation -------------------------------------------------------------------------------


def batch_norm_stats(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    """(normalised x, mean, biased variance) by the statistics of [N, C, ...] itself."""
    weight, bias = _affine(x, weight, bias)
    to_last, back = _channel_last(x.ndim)
    y, mean, var = apply(ops.BatchNorm, x.permute(*to_last), weight, bias, eps=eps)
    return y.permute(*back), mean, var


def batch_norm(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
) -> Tensor:
    """(x - running_mean) / sqrt(running_var + eps) weight + bias by channel (axis 1)."""
    assert running_var is not None
    weight, bias = _affine(x, weight, bias)
    to_last, back = _channel_last(x.ndim)
    y = _apply(
        ops.BatchNormInference,
        x.permute(*to_last),
        weight,
        bias,
        running_mean,
        running_var,
        eps=eps,
    )
    return y.permute(*back)


def bessel(x: Tensor, dtype: DType) -> Tensor:
    """n / max(n - 1, 1), n the elements of each channel of [N, C, ...], as a 0-d tensor."""
    count: Dim = 1
    for axis, size in enumerate(x.shape):
        count = count * (1 if axis == 1 else size)
    n = full((), count, dtype=dtype)
    return n / maximum(n - 1, 1.0)


def layer_norm(
    x: Tensor,
    normalized_shape: tuple[int, ...],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) weight + bias over the last axes."""
    axes = _last_axes("layer_norm", x, normalized_shape)
    if axes == 1:
        return _apply(ops.LayerNorm, x, weight, bias, eps=eps)
    flat = x.flatten(-axes)
    weight, bias = (None if t is None else t.reshape(-1) for t in (weight, bias))
    return _apply(ops.LayerNorm, flat, weight, bias, eps=eps).reshape(*x.shape)


def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) weight + bias of [N, C, ...].

    Mean and variance are of each sample's group of C/num_groups channels, weight and bias of each
    channel (Wu and He, 2018).
    """
    if x.ndim < 2 or num_groups < 1 or _static(x.shape[1], "group_norm") % num_groups:
        raise ShapeError(
            f"group_norm: expected x [N,C,...] with C divisible by {num_groups} groups, "
            f"got shape {tuple(x.shape)}",
            caller(),
        )
    rest: Dim = x.shape[1] // num_groups
    for size in x.shape[2:]:
        rest = rest * size
    grouped = x.reshape(x.shape[0], num_groups, rest)
    y = _apply(ops.LayerNorm, grouped, None, None, eps=eps).reshape(*x.shape)
    per_channel = (-1, *(1,) * (x.ndim - 2))
    y = y if weight is None else y * weight.reshape(*per_channel)
    return y if bias is None else y + bias.reshape(*per_channel)


def instance_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """`group_norm` with each channel a group of its own (Ulyanov et al., 2016)."""
    _expect_channels("instance_norm", x)
    return group_norm(x, _static(x.shape[1], "instance_norm"), weight, bias, eps)


def rms_norm(
    x: Tensor,
    normalized_shape: tuple[int, ...],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """x / sqrt(mean(x^2) + eps) weight over the last axes (Zhang and Sennrich, 2019).

    ``eps`` None is the dtype's distance from 1 to the next number.
    """
    axes = _last_axes("rms_norm", x, normalized_shape)
    if eps is None:
        finfo: Any = ml_dtypes.finfo  # it has no types
        eps = float(finfo(x.dtype.numpy).eps)
    last = tuple(range(x.ndim - axes, x.ndim))
    y = x * ((x * x).mean(last, keepdim=True) + eps).rsqrt()
    return y if weight is None else y * weight


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    channels = (x.shape[1],)
    weight = full(channels, 1.0, dtype=x.dtype) if weight is None else weight
    bias = full(channels, 0.0, dtype=x.dtype) if bias is None else bias
    return weight, bias


def _channel_last(ndim: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The permutation that takes axis 1 to the end, and its inverse."""
    return (0, *range(2, ndim), 1), (0, ndim - 1, *range(1, ndim - 1))


# ---- losses --------------------------------------------------------------------------------------


def mse_loss(input: Tensor, target: Tensor, reduction: Reduction = "mean") -> Tensor:
    """(input - target)^2."""
    difference = input - _same_shape("mse_loss", input, target)
    return _reduce(difference * difference, reduction)


def l1_loss(input: Tensor, target: Tensor, reduction: Reduction = "mean") -> Tensor:
    """|input - target|."""
    return _reduce((input - _same_shape("l1_loss", input, target)).abs(), reduction)


def binary_cross_entropy_with_logits(
    input: Tensor, target: Tensor, reduction: Reduction = "mean"
) -> Tensor:
    """-t log sigmoid(x) - (1 - t) log(1 - sigmoid(x)) = (1 - t) x + log(1 + e^-x)."""
    t = _same_shape("binary_cross_entropy_with_logits", input, target)
    return _reduce((1 - t) * input + _softplus(-input), reduction)


def nll_loss(
    input: Tensor, target: Tensor, ignore_index: int = -100, reduction: Reduction = "mean"
) -> Tensor:
    """-input[n, target[n]] of log-probabilities [N, C, ...] and classes i64[N, ...].

    Samples of class ``ignore_index`` count neither in the sum nor in the mean.
    """
    rows, classes = _rows("nll_loss", input, target)
    kept, classes = _kept(rows, classes, ignore_index)
    picked = rows.gather(-1, classes.unsqueeze(-1)).squeeze(-1)
    return _reduce_kept(-picked, kept, target, reduction)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """-log softmax(input)[target] of logits [N, C, ...].

    ``target`` holds classes i64[N, ...] or, if it is floating, probabilities of input's shape.
    With ``label_smoothing`` s the target is (1 - s) of itself and s/C of every class. Samples of
    class ``ignore_index`` count neither in the sum nor in the mean; another class outside 0 .. C-1
    is an IndexRangeError when it runs.
    """
    if not 0 <= label_smoothing <= 1:
        raise NirError(
            f"cross_entropy: expected label_smoothing in [0, 1], got {label_smoothing}", caller()
        )
    if target.dtype.is_float:
        target = _same_shape("cross_entropy", input, target)
        count = _static(input.shape[1], "cross_entropy")
        spread = target * (1 - label_smoothing) + label_smoothing / count
        losses = -(spread * input.log_softmax(1)).sum(1)
        return _reduce(losses, reduction)
    rows, classes = _rows("cross_entropy", input, target)
    kept, classes = _kept(rows, classes, ignore_index)
    losses = _apply(ops.CrossEntropy, rows, classes)
    if label_smoothing:
        uniform = -rows.log_softmax(-1).mean(-1)
        losses = (1 - label_smoothing) * losses + label_smoothing * uniform
    return _reduce_kept(losses, kept, target, reduction)


def _last_axes(name: str, x: Tensor, shape: tuple[int, ...]) -> int:
    """The number of the last axes of ``x``, which have the sizes ``shape``."""
    axes = len(shape)
    if axes == 0 or tuple(x.shape[-axes:]) != tuple(shape):
        raise ShapeError(
            f"{name}: expected last axes of {tuple(shape)}, got shape {tuple(x.shape)}", caller()
        )
    return axes


def _kept(rows: Tensor, classes: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Which rows count, and classes in range: 0 for the others, checked when it runs."""
    kept = classes != ignore_index
    return kept, _apply(ops.CheckIndex, where(kept, classes, 0), size=rows.shape[1])


def _rows(name: str, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """[N, C, ...] and [N, ...] as [M, C] and i64[M]."""
    if not target.dtype.is_integer:
        raise DTypeError(f"{name}: expected integer classes, got {target.dtype}", caller())
    if input.ndim == 1:
        input, target = input.unsqueeze(0), target.unsqueeze(0)
    expected = (input.shape[0], *input.shape[2:])
    if input.ndim < 2 or tuple(target.shape) != expected:
        raise ShapeError(
            f"{name}: expected a target of shape {expected} for input {tuple(input.shape)}, "
            f"got {tuple(target.shape)}",
            caller(),
        )
    if input.ndim > 2:
        to_last, _ = _channel_last(input.ndim)
        input, target = input.permute(*to_last).flatten(0, -2), target.flatten()
    return input, target.to(i64)


def _reduce_kept(losses: Tensor, kept: Tensor, target: Tensor, reduction: Reduction) -> Tensor:
    losses = where(kept, losses, 0.0)
    if reduction == "mean":
        return losses.sum() / kept.to(losses.dtype).sum()
    return _reduce(losses.reshape(*target.shape), reduction)


def _reduce(losses: Tensor, reduction: Reduction) -> Tensor:
    match reduction:
        case "mean":
            return losses.mean()
        case "sum":
            return losses.sum()
        case "none":
            return losses
    raise NirError(f"expected reduction 'mean', 'sum' or 'none', got {reduction!r}", caller())


def _apply(op: type[Op], *operands: Tensor | None, **attributes: object) -> Tensor:
    """`apply` of an op with one result."""
    out: Tensor = apply(op, *operands, **attributes)
    return out


# ---- checks --------------------------------------------------------------------------------------


def _same_shape(name: str, input: Tensor, target: Tensor) -> Tensor:
    if tuple(input.shape) != tuple(target.shape):
        raise ShapeError(
            f"{name}: expected a target of shape {tuple(input.shape)}, got {tuple(target.shape)}",
            caller(),
        )
    return target.to(input.dtype)


def _expect_channels(name: str, x: Tensor) -> None:
    if x.ndim < 2:
        raise ShapeError(f"{name}: expected x [N,C,...], got shape {tuple(x.shape)}", caller())


def _expect_images(name: str, x: Tensor) -> None:
    if x.ndim != 4:
        raise ShapeError(f"{name}: expected images [N,C,H,W], got shape {tuple(x.shape)}", caller())


def _static(size: Dim, name: str) -> int:
    if not isinstance(size, int):
        raise ShapeError(f"{name}: expected a known size, got the symbolic {size}", caller())
    return size
