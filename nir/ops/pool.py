"""2-D pooling over NHWC images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nir.errors import DTypeError, ShapeError
from nir.ir.dim import Dim
from nir.ir.op import Op, Sample, Value
from nir.ir.types import TensorType

Grad = Sequence[Any]
Pair = tuple[int, int]
Padding = tuple[Pair, Pair]

# No two alike, in a mixed order; arithmetic, since numpy.random takes 12 ms to import.
_X = (np.arange(120) * 77 % 120).astype(np.float32).reshape(2, 5, 4, 3) / 9
_TIES = np.array([[0, 2, 2, 1], [2, 2, 0, 1], [1, 1, 1, 1]], np.float32).reshape(1, 3, 4, 1)
_WINDOWS: tuple[dict[str, Any], ...] = (
    {"kernel": (2, 2), "stride": (2, 2), "padding": ((0, 0), (0, 0))},
    {"kernel": (3, 2), "stride": (2, 1), "padding": ((1, 1), (0, 1))},
)


def pooled(size: Sequence[Dim], op: Any) -> tuple[Dim, Dim]:
    """(OH, OW): floor((n + pads - kernel) / stride) + 1."""
    oh, ow = (
        (n + (p[0] + p[1] - k)) // s + 1
        for n, k, s, p in zip(size, op.kernel, op.stride, op.padding, strict=True)
    )
    return oh, ow


def _image(op: Any, v: Value) -> TensorType:
    t = v.type
    if t.ndim != 4:
        raise ShapeError(f"{op.name}: expected an NHWC image, got {t}")
    if any(k < 1 for k in op.kernel) or any(s < 1 for s in op.stride):
        raise ShapeError(
            f"{op.name}: expected kernel and stride >= 1, got {op.kernel}, {op.stride}"
        )
    if any(p >= k for k, pair in zip(op.kernel, op.padding, strict=True) for p in pair):
        raise ShapeError(
            f"{op.name}: expected padding below the kernel {op.kernel}, got {op.padding}"
        )
    return t


def _windows(op: Any, x: np.ndarray, fill: Any) -> np.ndarray:
    """(N, OH, OW, C, KH * KW): the elements of each window, ``fill`` in the padding."""
    padded = np.pad(x, ((0, 0), *op.padding, (0, 0)), constant_values=fill)
    oh, ow = pooled(x.shape[1:3], op)
    view = np.lib.stride_tricks.sliding_window_view(padded, op.kernel, axis=(1, 2))
    view = view[:, :: op.stride[0], :: op.stride[1]][:, :oh, :ow]
    return view.reshape(*view.shape[:4], op.kernel[0] * op.kernel[1])


def _lowest(x: np.ndarray) -> Any:
    return np.iinfo(x.dtype).min if x.dtype.kind in "iu" else -np.inf


def _winners(op: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(values, position in the window) of the first nan, else of the first largest element."""
    windows = _windows(op, x, _lowest(x))
    inside = _windows(op, np.ones(x.shape, np.bool_), False)
    # Padding never wins, not even over the lowest value.
    rank = np.where(inside, 1, 0)
    best = windows.max(-1, keepdims=True)
    hit = np.where(np.isnan(best), np.isnan(windows), windows == best) & (rank == 1)
    at = hit.argmax(-1)
    return np.take_along_axis(windows, at[..., None], -1)[..., 0], np.where(hit.any(-1), at, -1)


def _scatter(op: Any, at: np.ndarray, dy: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    out = np.zeros(shape, dy.dtype)
    grid: Any = np.indices(at.shape)
    n, oh, ow, c = grid
    h = oh * op.stride[0] - op.padding[0][0] + at // op.kernel[1]
    w = ow * op.stride[1] - op.padding[1][0] + at % op.kernel[1]
    ok = at >= 0
    np.add.at(out, (n[ok], h[ok], w[ok], c[ok]), dy[ok])
    return out


class _MaxPool(Op):
    kind = "other"

    def _attributes(self) -> dict[str, Any]:
        return {"kernel": self.kernel, "stride": self.stride, "padding": self.padding}  # type: ignore[attr-defined]


class MaxPool2d(_MaxPool):
    """The largest of each window of an NHWC image.

    Padding never wins; nan does. The gradient goes to the first maximum of the window.
    """

    x: Value
    kernel: Pair
    stride: Pair
    padding: Padding

    def infer(self) -> tuple[TensorType, ...]:
        t = _image(self, self.x)
        oh, ow = pooled(t.shape[1:3], self)
        if any(isinstance(o, int) and o < 1 for o in (oh, ow)):
            raise ShapeError(f"max_pool2d: window {self.kernel} exceeds the padded image (x: {t})")
        return (t.with_(shape=(t.shape[0], oh, ow, t.shape[3])),)

    def ref(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        return (_winners(self, x)[0],)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        return (operands[0].max_pool2d_grad(cotangents[0], **self._attributes()),)

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        nan = _TIES.copy()
        nan[0, 1, 2, 0] = np.nan
        return [
            *(Sample((_X,), w) for w in _WINDOWS),
            Sample((_TIES,), _WINDOWS[1], differentiable=False),
            Sample((nan,), _WINDOWS[0], differentiable=False),
            Sample((_X[:0],), _WINDOWS[0]),
        ]


class MaxPool2dGrad(_MaxPool):
    """The cotangent of max_pool2d's x: dy added at the position of each window's first maximum."""

    x: Value
    dy: Value
    kernel: Pair
    stride: Pair
    padding: Padding

    def infer(self) -> tuple[TensorType, ...]:
        t, d = _image(self, self.x), self.dy.type
        expected = t.with_(shape=(t.shape[0], *pooled(t.shape[1:3], self), t.shape[3]))
        if d.shape != expected.shape:
            raise ShapeError(f"max_pool2d_grad: expected dy {expected}, got {d} (x: {t})")
        if d.dtype != t.dtype:
            raise DTypeError(f"max_pool2d_grad: expected one dtype, got x: {t}, dy: {d}")
        return (t,)

    def ref(self, x: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, ...]:
        return (_scatter(self, _winners(self, x)[1], dy, x.shape),)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        # Linear in dy, piecewise constant in x.
        return None, operands[0].max_pool2d_select(cotangents[0], **self._attributes())

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        dy = np.cos(np.arange(96, dtype=np.float32))
        return [
            Sample((_X, dy[:24].reshape(2, 2, 2, 3)), _WINDOWS[0]),
            Sample((_X, dy[:72].reshape(2, 3, 4, 3)), _WINDOWS[1]),
            Sample((_TIES, dy[:2].reshape(1, 1, 2, 1)), _WINDOWS[0], differentiable=False),
            Sample((_TIES, dy[:8].reshape(1, 2, 4, 1)), _WINDOWS[1], differentiable=False),
        ]


class MaxPool2dSelect(_MaxPool):
    """The elements of v (shaped as x) at the position of each window's first maximum of x."""

    x: Value
    v: Value
    kernel: Pair
    stride: Pair
    padding: Padding

    def infer(self) -> tuple[TensorType, ...]:
        t, v = _image(self, self.x), self.v.type
        if v != t:
            raise ShapeError(f"max_pool2d_select: expected v of x's type {t}, got {v}")
        return (t.with_(shape=(t.shape[0], *pooled(t.shape[1:3], self), t.shape[3])),)

    def ref(self, x: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, ...]:
        at = _winners(self, x)[1]
        picked = np.take_along_axis(_windows(self, v, 0), np.maximum(at, 0)[..., None], -1)[..., 0]
        return (np.where(at >= 0, picked, v.dtype.type(0)),)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        return None, operands[0].max_pool2d_grad(cotangents[0], **self._attributes())

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        return [Sample((_X, np.sin(_X)), w) for w in _WINDOWS] + [
            Sample((_TIES, np.arange(12, dtype=np.float32).reshape(1, 3, 4, 1)), w, False)
            for w in _WINDOWS
        ]


class AvgPool2d(_MaxPool):
    """The mean of each window of an NHWC image; ``count_include_pad`` counts padding as zeros."""

    x: Value
    kernel: Pair
    stride: Pair
    padding: Padding
    count_include_pad: bool = True

    def infer(self) -> tuple[TensorType, ...]:
        t = _image(self, self.x)
        if not t.dtype.is_float:
            raise DTypeError(f"avg_pool2d: expected float, got {t}")
        oh, ow = pooled(t.shape[1:3], self)
        if any(isinstance(o, int) and o < 1 for o in (oh, ow)):
            raise ShapeError(f"avg_pool2d: window {self.kernel} exceeds the padded image (x: {t})")
        return (t.with_(shape=(t.shape[0], oh, ow, t.shape[3])),)

    def ref(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        total = _windows(self, x.astype(np.float64), 0.0).sum(-1)
        return ((total / _counts(self, x.shape)).astype(x.dtype),)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        size = tuple(operands[0].shape[1:3])
        more = {"count_include_pad": self.count_include_pad}
        return (cotangents[0].avg_pool2d_grad(input_size=size, **self._attributes(), **more),)

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        return [
            *(Sample((_X,), w) for w in _WINDOWS),
            Sample((_X,), {**_WINDOWS[1], "count_include_pad": False}),
        ]


def _counts(op: Any, shape: Sequence[int]) -> Any:
    if op.count_include_pad:
        return float(op.kernel[0] * op.kernel[1])
    return _windows(op, np.ones((1, *shape[1:3], 1)), 0.0).sum(-1)


class AvgPool2dGrad(_MaxPool):
    """The cotangent of avg_pool2d's x: each dy spread evenly over its window."""

    dy: Value
    input_size: tuple[Dim, Dim]
    kernel: Pair
    stride: Pair
    padding: Padding
    count_include_pad: bool = True

    def infer(self) -> tuple[TensorType, ...]:
        d = _image(self, self.dy)
        expected = pooled(self.input_size, self)
        if tuple(d.shape[1:3]) != expected:
            raise ShapeError(f"avg_pool2d_grad: expected dy of size {expected}, got {d}")
        return (d.with_(shape=(d.shape[0], *self.input_size, d.shape[3])),)

    def ref(self, dy: np.ndarray) -> tuple[np.ndarray, ...]:
        size: Any = self.input_size
        shape = (dy.shape[0], *size, dy.shape[3])
        share = dy.astype(np.float64) / _counts(self, shape)
        out = np.zeros(shape)
        inside = np.moveaxis(_windows(self, np.ones(shape, np.bool_), False), -1, 0)
        for k, mask in enumerate(inside):
            out += _scatter(self, np.where(mask, k, -1), share, shape)
        return (out.astype(dy.dtype),)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        more = {"count_include_pad": self.count_include_pad}
        return (cotangents[0].avg_pool2d(**self._attributes(), **more),)

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        out = []
        for w, (oh, ow) in zip(_WINDOWS, ((2, 2), (3, 4)), strict=True):
            dy = np.cos(np.arange(2 * oh * ow * 3, dtype=np.float32)).reshape(2, oh, ow, 3)
            out += [
                Sample((dy,), {"input_size": (5, 4), **w, "count_include_pad": c})
                for c in (True, False)
            ]
        return out
