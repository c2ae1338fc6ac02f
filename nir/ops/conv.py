"""2-D convolution and its two gradients: images NHWC, weights HWIO, each linear in both operands.

The three ops are closed under differentiation: the gradient of each is made of the other two.
`weight_layout` says how the weight (or its gradient) lies: "HWIO" (kh, kw, ci / groups, co),
"OIHW" as PyTorch stores it, or "packed" or "winograd", a `PackConv2d` of it; `x_layout` that x lies
"NHWC" or, of one group, "NCHW". Passes choose.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nir.errors import DTypeError, NotDifferentiable, ShapeError
from nir.ir.dim import Dim, exact_div, floordiv, numbers, prod
from nir.ir.op import Op, Sample, Value
from nir.ir.types import TensorType

Grad = Sequence[Any]
Pair = tuple[int, int]
Padding = tuple[Pair, Pair]

_NONE: Padding = ((0, 0), (0, 0))
_LAYOUTS = ("HWIO", "OIHW", "packed", "winograd")
# G of Winograd's F(2, 3), which turns three taps into four points, and its left inverse.
_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
_G_LEFT = np.array([[1, 0, 0, 0], [0, 1, -1, 0], [0, 0, 0, 1]], np.float32)


def out_size(n: Dim, k: int, stride: int, pad: Pair, dilation: int) -> Dim:
    """Positions of a window: floor((n + pads - dilation * (k - 1) - 1) / stride) + 1."""
    return (n + (pad[0] + pad[1] - dilation * (k - 1) - 1)) // stride + 1


def _taps(
    kernel: Pair, size: Pair, stride: Pair, padding: Padding, dilation: Pair
) -> list[tuple[int, int, slice, slice, slice, slice]]:
    """(i, j, output rows and columns, input rows and columns) of each tap that meets data."""
    found = []
    h, w = size
    oh, ow = numbers(tuple(map(out_size, size, kernel, stride, padding, dilation)))

    def span(n: int, o: int, k: int, s: int, p: int, d: int) -> tuple[slice, slice] | None:
        # Input position of output q at tap k: q * s + k * d - p.
        first = max(0, -(-(p - k * d) // s))
        last = min(o - 1, (n - 1 + p - k * d) // s)
        if last < first:
            return None
        start = first * s + k * d - p
        return slice(first, last + 1), slice(start, start + (last - first) * s + 1, s)

    for i in range(kernel[0]):
        rows = span(h, oh, i, stride[0], padding[0][0], dilation[0])
        for j in range(kernel[1]):
            cols = span(w, ow, j, stride[1], padding[1][0], dilation[1])
            if rows and cols:
                found.append((i, j, rows[0], cols[0], rows[1], cols[1]))
    return found


_TO_NHWC, _TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)


def _nhwc(shape: tuple[Any, ...], layout: str) -> tuple[Any, ...]:
    """The sizes (N, H, W, C) of an image that lies in ``layout``."""
    return tuple(shape[a] for a in _TO_NHWC) if layout == "NCHW" else shape


def _wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32) if x.dtype.itemsize == 2 else x


class PackConv2d(Op):
    """A convolution's weight as matrices for the packed GEMM: (groups, K, N) in layout "panel16".

    K runs over (kh, kw, ci / groups) and N over co / groups; with ``input_grad`` K runs over
    (kh, kw, co / groups) and N over ci / groups, which is what `Conv2dInputGrad` multiplies by.
    For an image in ``x_layout`` "NCHW" K runs over (ci, kh, kw).

    With ``winograd`` a window of 3 x 3 and one group becomes 16 matrices (16, K, N): G g G' of each
    window g. K is ci and N co; with ``input_grad`` the other way round, of windows turned by half a
    turn.
    """

    w: Value
    weight_layout: str
    groups: int
    input_grad: bool
    x_layout: str = "NHWC"
    winograd: bool = False
    kind = "other"

    def infer(self) -> tuple[TensorType, ...]:
        kh, kw, ci, co = _hwio_shape(self.w.type.shape, self.weight_layout)
        if self.winograd:
            if (kh, kw, self.groups, self.x_layout) != (3, 3, 1, "NHWC"):
                raise ShapeError(
                    f"pack_conv2d: winograd expects a 3 x 3 window of one group for an NHWC image, "
                    f"got {self.w.type}, groups {self.groups}, {self.x_layout}"
                )
            k, n = (co, ci) if self.input_grad else (ci, co)
            return (self.w.type.with_(shape=(16, k, n), layout="panel16"),)
        co = co // self.groups
        k, n = (kh * kw * co, ci) if self.input_grad else (kh * kw * ci, co)
        return (self.w.type.with_(shape=(self.groups, k, n), layout="panel16"),)

    def ref(self, w: np.ndarray) -> tuple[np.ndarray, ...]:
        w = _to_hwio(w, self.weight_layout, (), 1, False)
        kh, kw, ci, co = w.shape
        if self.winograd:
            turned = w[::-1, ::-1].transpose(0, 1, 3, 2) if self.input_grad else w
            u = np.einsum("ai,ijkn,bj->abkn", _G, turned, _G, optimize=True)
            return (u.reshape(16, *turned.shape[2:]).astype(w.dtype),)
        split = w.reshape(kh, kw, ci, self.groups, co // self.groups)
        if self.x_layout == "NCHW":
            return (split.transpose(3, 2, 0, 1, 4).reshape(self.groups, -1, co // self.groups),)
        if self.input_grad:
            return (split.transpose(3, 0, 1, 4, 2).reshape(self.groups, -1, ci),)
        return (split.transpose(3, 0, 1, 2, 4).reshape(self.groups, -1, co // self.groups),)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        raise NotDifferentiable("pack_conv2d is made by passes, after differentiation")

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        w = np.arange(2 * 3 * 4 * 6, dtype=np.float32).reshape(2, 3, 4, 6)
        names = ("weight_layout", "groups", "input_grad", "x_layout", "winograd")
        square = np.arange(3 * 3 * 4 * 6, dtype=np.float32).reshape(3, 3, 4, 6)
        turned = [
            Sample((square,), dict(zip(names, given, strict=True)), differentiable=False)
            for given in (
                ("HWIO", 1, False, "NHWC", True),
                ("HWIO", 1, True, "NHWC", True),
            )
        ]
        return turned + [
            Sample((w,), dict(zip(names, given, strict=True)), differentiable=False)
            for given in (
                ("HWIO", 1, False, "NHWC", False),
                ("HWIO", 2, True, "NHWC", False),
                ("OIHW", 2, False, "NHWC", False),
                ("OIHW", 1, True, "NHWC", False),
                ("OIHW", 1, False, "NCHW", False),
                ("HWIO", 1, False, "NCHW", False),
            )
        ]


def _divides(groups: int, channels: Dim) -> bool:
    return exact_div(channels, groups) is not None


def _hwio_shape(shape: tuple[Dim, ...], layout: str) -> tuple[Any, Any, Any, Any]:
    if len(shape) != 4 or layout not in _LAYOUTS:
        raise ShapeError(
            f"conv2d: expected a weight of 4 axes in one of {_LAYOUTS}, got {shape} in {layout}"
        )
    if layout == "OIHW":
        o, i, h, w = shape
        return h, w, i, o
    return shape


def _to_hwio(
    w: np.ndarray,
    layout: str,
    kernel: tuple[int, ...],
    groups: int,
    input_grad: bool,
    x_layout: str = "NHWC",
) -> np.ndarray:
    match layout:
        case "HWIO":
            return w
        case "OIHW":
            return w.transpose(2, 3, 1, 0)
        case "winograd":
            points = w.reshape(4, 4, *w.shape[1:])
            found = np.einsum("ia,abkn,jb->ijkn", _G_LEFT, points, _G_LEFT, optimize=True)
            windows: np.ndarray = found.astype(w.dtype)
            return windows[::-1, ::-1].transpose(0, 1, 3, 2) if input_grad else windows
    g, k, n = w.shape
    kh, kw = kernel
    if x_layout == "NCHW":
        return w.reshape(k // (kh * kw), kh, kw, n).transpose(1, 2, 0, 3)
    split = w.reshape(g, kh, kw, k // (kh * kw), n)
    order = (1, 2, 4, 0, 3) if input_grad else (1, 2, 3, 0, 4)
    turned = split.transpose(order)
    return turned.reshape(kh, kw, turned.shape[2], -1)


class _Conv(Op):
    def _window(self) -> dict[str, Any]:
        return {n: getattr(self, n) for n in ("stride", "padding", "dilation", "groups")}

    def _check(self, *values: Value) -> None:
        types = [v.type for v in values]
        layout = getattr(self, "x_layout", "NHWC")
        if layout not in ("NHWC", "NCHW") or (layout == "NCHW" and self.groups != 1):  # type: ignore[attr-defined]
            raise ShapeError(
                f"{self.name}: expected an image in NHWC, or in NCHW and one group, got {layout}"
            )
        shown = ", ".join(map(str, types))
        window = self._window()
        if min(*window["stride"], *window["dilation"], window["groups"]) < 1:
            raise ShapeError(
                f"{self.name}: expected stride, dilation and groups >= 1, got {window['stride']}, "
                f"{window['dilation']} and {window['groups']}"
            )
        if any(p < 0 for pair in window["padding"] for p in pair):
            raise ShapeError(f"{self.name}: expected padding >= 0, got {window['padding']}")
        if any(t.dtype != types[0].dtype or not t.dtype.is_float for t in types):
            raise DTypeError(f"{self.name}: expected operands of one float dtype, got {shown}")
        if any(t.ndim != 4 for t in types if t.layout == ""):
            raise ShapeError(f"{self.name}: expected operands of 4 axes (NHWC, HWIO), got {shown}")

    def _flops(self, y: Value, taps: Dim) -> Dim:
        return 2 * prod(y.type.shape) * taps

    def _weight(self, w: Value, input_grad: bool) -> tuple[Any, Any, Any, Any]:
        """(kh, kw, ci / groups, co) of the weight operand."""
        t, g = w.type, self.groups  # type: ignore[attr-defined]
        if self.weight_layout not in ("packed", "winograd"):  # type: ignore[attr-defined]
            return _hwio_shape(t.shape, self.weight_layout)  # type: ignore[attr-defined]
        kh, kw = self.kernel_size  # type: ignore[attr-defined]
        _, k, n = t.shape
        if self.weight_layout == "winograd":  # type: ignore[attr-defined]
            return (kh, kw, n, k) if input_grad else (kh, kw, k, n)
        per_tap = k // (kh * kw)
        return (kh, kw, n, per_tap * g) if input_grad else (kh, kw, per_tap, n * g)


class Conv2d(_Conv):
    """Cross-correlation of an image with a weight, as in PyTorch.

        y[n, p, q, o] = sum over i, j, c of x[n, p*s + i*d - pad, q*s + j*d - pad, c] w[i, j, c, o]

    x: (N, H, W, ci); w: (kh, kw, ci / groups, co); y: (N, OH, OW, co). Padding is
    ((top, bottom), (left, right)) zeros. Group g reads input channels g*ci/groups and on.
    """

    x: Value
    w: Value
    stride: Pair = (1, 1)
    padding: Padding = _NONE
    dilation: Pair = (1, 1)
    groups: int = 1
    weight_layout: str = "HWIO"
    kernel_size: tuple[int, ...] = ()
    x_layout: str = "NHWC"
    kind = "contraction"

    def infer(self) -> tuple[TensorType, ...]:
        self._check(self.x, self.w)
        x = self.x.type.with_(shape=_nhwc(self.x.type.shape, self.x_layout))
        kh, kw, ci, co = self._weight(self.w, False)
        if x.shape[3] != ci * self.groups:
            raise ShapeError(
                f"conv2d: x has {x.shape[3]} channels (x: {x}), the weight expects "
                f"{ci * self.groups} (w: {self.w.type}, groups {self.groups})"
            )
        if not _divides(self.groups, co):
            raise ShapeError(
                f"conv2d: {co} output channels do not divide by groups {self.groups} "
                f"(w: {self.w.type})"
            )
        oh, ow = (
            out_size(n, k, s, p, d)
            for n, k, s, p, d in zip(
                x.shape[1:3], (kh, kw), self.stride, self.padding, self.dilation, strict=True
            )
        )
        if any(isinstance(o, int) and o < 1 for o in (oh, ow)):
            raise ShapeError(
                f"conv2d: kernel ({kh}, {kw}) with dilation {self.dilation} exceeds the padded "
                f"image (x: {x}, padding {self.padding})"
            )
        return (x.with_(shape=(x.shape[0], oh, ow, co)),)

    def flops(self) -> Dim:
        kh, kw, ci, _ = self._weight(self.w, False)
        return self._flops(self.result, kh * kw * ci)

    def ref(self, x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, ...]:
        w = _to_hwio(w, self.weight_layout, self.kernel_size, self.groups, False, self.x_layout)
        x = x.transpose(_TO_NHWC) if self.x_layout == "NCHW" else x
        kh, kw, ci, co = w.shape
        n, h, wd, _ = x.shape
        oh, ow = numbers(
            tuple(map(out_size, (h, wd), (kh, kw), self.stride, self.padding, self.dilation))
        )
        g = self.groups
        out = np.zeros((n, oh, ow, g, co // g), _wide(x).dtype)
        xs = _wide(x).reshape(n, h, wd, g, ci)
        ws = _wide(w).reshape(kh, kw, ci, g, co // g)
        with np.errstate(all="ignore"):
            for i, j, r, c, xr, xc in _taps(
                (kh, kw), (h, wd), self.stride, self.padding, self.dilation
            ):
                out[:, r, c] += np.einsum(
                    "nhwgc,cgo->nhwgo", xs[:, xr, xc], ws[i, j], optimize=True
                )
        return (out.reshape(n, oh, ow, co).astype(x.dtype),)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        (x, w), ct = operands, cotangents[0]
        kh, kw, *_ = _hwio_shape(w.shape, self.weight_layout)
        dx = ct.conv2d_input_grad(
            w,
            input_size=_nhwc(x.shape, self.x_layout)[1:3],
            **self._window(),
            weight_layout=self.weight_layout,
        )
        dw = x.conv2d_weight_grad(
            ct,
            kernel_size=(kh, kw),
            **self._window(),
            weight_layout=self.weight_layout,
            x_layout=self.x_layout,
        )
        return dx.transpose(_TO_NCHW) if self.x_layout == "NCHW" else dx, dw

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        rng = np.random.default_rng(3)

        def make(n: int, h: int, w: int, ci: int, co: int, k: Pair, **kw: Any) -> Sample:
            g = kw.get("groups", 1)
            x = rng.standard_normal((n, h, w, ci)).astype(np.float32)
            wt = rng.standard_normal((*k, ci // g, co)).astype(np.float32)
            return Sample((x, wt), kw)

        pad1 = ((1, 1), (1, 1))
        return [
            make(2, 5, 4, 3, 2, (3, 3), padding=pad1),
            make(1, 7, 6, 2, 3, (3, 2), stride=(2, 3), padding=((0, 1), (2, 0))),
            make(2, 6, 6, 2, 4, (3, 3), dilation=(2, 1), groups=2, padding=pad1),
            make(1, 5, 5, 4, 4, (3, 3), groups=4, padding=pad1, stride=(2, 2)),
            make(2, 3, 3, 5, 3, (1, 1)),
            make(0, 3, 3, 2, 3, (1, 1)),
            Sample(
                (
                    rng.standard_normal((2, 3, 7, 6)).astype(np.float32),
                    rng.standard_normal((3, 2, 3, 4)).astype(np.float32),
                ),
                {"stride": (2, 1), "padding": ((1, 1), (0, 1)), "x_layout": "NCHW"},
            ),
        ]


class Conv2dInputGrad(_Conv):
    """The cotangent of conv2d's x, given that of its y: the transposed convolution of dy with w.

    dy: (N, OH, OW, co) -> (N, *input_size, ci).
    """

    dy: Value
    w: Value
    input_size: tuple[Dim, Dim]
    stride: Pair = (1, 1)
    padding: Padding = _NONE
    dilation: Pair = (1, 1)
    groups: int = 1
    weight_layout: str = "HWIO"
    kernel_size: tuple[int, ...] = ()
    kind = "contraction"

    def infer(self) -> tuple[TensorType, ...]:
        self._check(self.dy, self.w)
        dy = self.dy.type
        kh, kw, ci, co = self._weight(self.w, True)
        sizes = tuple(
            out_size(n, k, s, p, d)
            for n, k, s, p, d in zip(
                self.input_size, (kh, kw), self.stride, self.padding, self.dilation, strict=True
            )
        )
        if tuple(dy.shape[1:]) != (*sizes, co):
            raise ShapeError(
                f"conv2d_input_grad: expected dy [{dy.shape[0]},{sizes[0]},{sizes[1]},{co}], "
                f"got {dy} (w: {self.w.type}, input_size {self.input_size})"
            )
        return (dy.with_(shape=(dy.shape[0], *self.input_size, ci * self.groups)),)

    def flops(self) -> Dim:
        kh, kw, ci, _ = self._weight(self.w, True)
        return self._flops(self.dy, kh * kw * ci)

    def ref(self, dy: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, ...]:
        w = _to_hwio(w, self.weight_layout, self.kernel_size, self.groups, True)
        kh, kw, ci, co = w.shape
        g, n = self.groups, dy.shape[0]
        size: Any = self.input_size
        out = np.zeros((n, *size, g, ci), _wide(dy).dtype)
        ds = _wide(dy).reshape(*dy.shape[:3], g, co // g)
        ws = _wide(w).reshape(kh, kw, ci, g, co // g)
        with np.errstate(all="ignore"):
            for i, j, r, c, xr, xc in _taps(
                (kh, kw), size, self.stride, self.padding, self.dilation
            ):
                out[:, xr, xc] += np.einsum(
                    "nhwgo,cgo->nhwgc", ds[:, r, c], ws[i, j], optimize=True
                )
        return (out.reshape(n, *size, g * ci).astype(dy.dtype),)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        (dy, w), ct = operands, cotangents[0]
        kh, kw, *_ = _hwio_shape(w.shape, self.weight_layout)
        return (
            ct.conv2d(w, **self._window(), weight_layout=self.weight_layout),
            ct.conv2d_weight_grad(
                dy, kernel_size=(kh, kw), **self._window(), weight_layout=self.weight_layout
            ),
        )

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        return _backward_samples("input")


class Conv2dWeightGrad(_Conv):
    """The cotangent of conv2d's w, given that of its y.

    dw[i, j, c, o] is the sum over images and positions of x at that tap times dy.

    x: (N, H, W, ci), dy: (N, OH, OW, co) -> (kh, kw, ci / groups, co), or OIHW. ``winograd`` says
    by which algorithm a kernel computes it; the reference computes the definition.
    """

    x: Value
    dy: Value
    kernel_size: Pair
    stride: Pair = (1, 1)
    padding: Padding = _NONE
    dilation: Pair = (1, 1)
    groups: int = 1
    weight_layout: str = "HWIO"
    x_layout: str = "NHWC"
    winograd: bool = False
    kind = "contraction"

    def infer(self) -> tuple[TensorType, ...]:
        self._check(self.x, self.dy)
        x, dy = self.x.type, self.dy.type
        x = x.with_(shape=_nhwc(x.shape, self.x_layout))
        sizes = tuple(
            out_size(n, k, s, p, d)
            for n, k, s, p, d in zip(
                x.shape[1:3],
                self.kernel_size,
                self.stride,
                self.padding,
                self.dilation,
                strict=True,
            )
        )
        if tuple(dy.shape[:3]) != (x.shape[0], *sizes):
            raise ShapeError(
                f"conv2d_weight_grad: expected dy [{x.shape[0]},{sizes[0]},{sizes[1]},..], "
                f"got {dy} (x: {x})"
            )
        if any(not _divides(self.groups, t.shape[3]) for t in (x, dy)):
            raise ShapeError(
                f"conv2d_weight_grad: channels do not divide by groups {self.groups} "
                f"(x: {x}, dy: {dy})"
            )
        (kh, kw), ci, co = self.kernel_size, x.shape[3] // self.groups, dy.shape[3]
        shape = (co, ci, kh, kw) if self.weight_layout == "OIHW" else (kh, kw, ci, co)
        return (x.with_(shape=shape),)

    def flops(self) -> Dim:
        channels = _nhwc(self.x.type.shape, self.x_layout)[3]
        return self._flops(self.dy, prod(self.kernel_size) * floordiv(channels, self.groups))

    def ref(self, x: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, ...]:
        kh, kw = self.kernel_size
        g = self.groups
        x = x.transpose(_TO_NHWC) if self.x_layout == "NCHW" else x
        n, h, w, c_in = x.shape
        co = dy.shape[3]
        out = np.zeros((kh, kw, c_in // g, g, co // g), _wide(x).dtype)
        xs = _wide(x).reshape(n, h, w, g, c_in // g)
        ds = _wide(dy).reshape(*dy.shape[:3], g, co // g)
        with np.errstate(all="ignore"):
            for i, j, r, c, xr, xc in _taps(
                (kh, kw), (h, w), self.stride, self.padding, self.dilation
            ):
                out[i, j] = np.einsum("nhwgc,nhwgo->cgo", xs[:, xr, xc], ds[:, r, c], optimize=True)
        hwio = out.reshape(kh, kw, c_in // g, co).astype(x.dtype)
        return (
            np.ascontiguousarray(hwio.transpose(3, 2, 0, 1))
            if self.weight_layout == "OIHW"
            else hwio,
        )

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        (x, dy), ct = operands, cotangents[0]
        dx = dy.conv2d_input_grad(
            ct,
            input_size=_nhwc(x.shape, self.x_layout)[1:3],
            **self._window(),
            weight_layout=self.weight_layout,
        )
        ddy = x.conv2d(
            ct, **self._window(), weight_layout=self.weight_layout, x_layout=self.x_layout
        )
        return dx.transpose(_TO_NCHW) if self.x_layout == "NCHW" else dx, ddy

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        return _backward_samples("weight")


def _backward_samples(which: str) -> list[Sample]:
    rng = np.random.default_rng(4)
    out = []
    for s in Conv2d.samples():
        x, w = s.operands
        window = {
            k: s.attributes[k]
            for k in ("stride", "padding", "dilation", "groups")
            if k in s.attributes
        }
        layout = s.attributes.get("x_layout", "NHWC")
        n, h, wd, _ = _nhwc(x.shape, layout)
        dil, st, pad = (
            window.get(k, d)
            for k, d in (("dilation", (1, 1)), ("stride", (1, 1)), ("padding", _NONE))
        )
        sizes = [
            int(out_size(m, k, a, p, d))
            for m, k, a, p, d in zip((h, wd), w.shape[:2], st, pad, dil, strict=True)
        ]
        dy = rng.standard_normal((n, *sizes, w.shape[3])).astype(np.float32)
        if which == "input":
            out.append(Sample((dy, w), {"input_size": (h, wd), **window}))
        else:
            given = {"kernel_size": tuple(w.shape[:2]), **window, "x_layout": layout}
            out.append(Sample((x, dy), given))
    return out
