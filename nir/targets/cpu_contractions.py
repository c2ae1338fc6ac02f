"""CPU kernels for matmul, convolutions and the packing of their weights.

The layouts of ``dims`` are at the top of each source in kernels/cpu.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nir.frozen import replace
from nir.ir.dim import Dim, Shape, ceildiv, prod
from nir.ops.conv import Conv2d, Conv2dInputGrad, Conv2dWeightGrad, PackConv2d
from nir.ops.linalg import Matmul, Pack
from nir.targets.kernel_call import KernelCall

# Constants of kernels/cpu/gemm.h and conv2d*.cc, for the size of scratch.
PANEL = 16
BLOCK_K = 256
PACKED_ROWS = 336
SLIVER = 32
MAX_ROWS = 14
FEW_TILES = 8
MANY_ELEMENTS = 1 << 21
ROW_STEP = 16
BATCH_ROWS = 512
POINTERS = 3584
CLASSES = 256
FEW_CHANNELS = 16
ROW_ELEMENTS = 65536
GRAD_COLUMNS = 256
GRAD_SUMS = 1 << 18
GRAD_TILE_ROWS = 8
WINOGRAD_PATCHES = 128
WINOGRAD_FEW = 32
WINOGRAD_CHANNELS = 65536
SUM_MOST = 128
SUM_LEAST = 64
SUM_ELEMENTS = 16384
_LINE = 64

_NUMBERS = ("f32", "f64", "i32", "i64")
_FLOATS = ("f32", "f64")


def panels(columns: Dim) -> Dim:
    """Panels of 16 columns that hold ``columns``."""
    return ceildiv(columns, PANEL)


def _pack_b(
    dtype: str, batch: Dim, k1: Dim, k2: Dim, n: Dim, strides: Shape, size: int
) -> KernelCall:
    rows = batch * panels(n)
    return KernelCall(
        f"nir_pack_b_{dtype}",
        (batch, k1, k2, n, *strides),
        rows,
        work=rows * k1 * k2 * (2 * PANEL * size),
    )


def pack(op: Pack) -> KernelCall | None:
    t = op.w.type
    if t.dtype.name not in _NUMBERS:
        return None
    *batch, k, n = op.result.type.shape
    s_k, s_n = (1, k) if op.transpose else (n, 1)
    return _pack_b(t.dtype.name, prod(batch), 1, k, n, (k * n, 0, s_k, s_n), t.dtype.itemsize)


def matmul(op: Matmul) -> KernelCall | None:
    a, b = op.lhs.type, op.rhs.type
    dtype, size = a.dtype.name, a.dtype.itemsize
    if dtype not in _NUMBERS:
        return None
    *batch_axes, m, n = op.result.type.shape
    k = a.shape[-2] if op.transpose_lhs else a.shape[-1]
    batch = prod(batch_axes)
    a_m, a_k = (1, m) if op.transpose_lhs else (k, 1)
    # Elements of B from one matrix to the next, and between its rows or columns.
    b_batch, b_stride = (k * n, k if op.transpose_rhs else n)
    layout = "cols" if op.transpose_rhs else "rows"
    if b.layout == "panel16":
        layout, b_batch, b_stride = "packed", panels(n) * k * PANEL, 0
    row_grain, col_grain, even = _grains(layout, batch, m, n, k)
    return KernelCall(
        f"nir_matmul_{dtype}_{layout}",
        (
            1, batch, m, n, k,
            0, m * k, a_m, a_k,
            0, b_batch, b_stride,
            0, m * n, n,
        ),
        rows=batch * m,
        cols=n,
        row_grain=row_grain,
        col_grain=col_grain,
        even=even,
        scratch=(PACKED_ROWS * BLOCK_K + BLOCK_K * SLIVER) * size,
        work=_quarter(batch * m * n * k),
        by_lines=layout == "packed" and not batch_axes and not op.transpose_lhs,
    )  # fmt: skip


def _grains(layout: str, batch: Dim, m: Dim, n: Dim, k: Dim) -> tuple[int, int, bool]:
    """Rows and columns of a product that are not cut further, and whether to cut it evenly.

    Each piece brings what it multiplies of B into panels for itself, where B is not packed, and
    each piece of columns packs A. So what costs less is repeated, and a B that no cache holds is
    read by as few pieces as there are threads.
    """
    narrow = 2 * PANEL
    if not isinstance(m, int) or m <= MAX_ROWS:
        return 8, narrow, False
    tiles = -(-m // MAX_ROWS)
    few = -(-m // (tiles + tiles % 2))
    if isinstance(n, int) and isinstance(k, int) and batch == 1:
        match layout:
            case "cols" if m >= BATCH_ROWS and n >= m:
                return m, 2 * narrow, False
            case "rows" if m < BATCH_ROWS and k * n >= MANY_ELEMENTS:
                return (m, narrow, True) if n > m else (few, narrow, True)
            case "rows" if m <= FEW_TILES * MAX_ROWS and n >= 4 * m:
                return m, narrow, False
    if m < BATCH_ROWS:
        return few, narrow, False
    return (8 if layout == "packed" else 2 * MAX_ROWS), narrow, False


def _quarter(products: Dim) -> Dim:
    # Flops are two per product, and `work` counts eight of them as a byte.
    return products // 4


def pack_conv2d(op: PackConv2d) -> KernelCall | None:
    t = op.w.type
    if t.dtype.name not in _FLOATS:
        return None
    kh, kw, ci, co = _hwio(t.shape, op.weight_layout)
    s_tap, s_ci, s_co = weight_strides(op.weight_layout, kh, kw, ci, co)
    if op.winograd:
        k, n, s_k, s_n = (co, ci, s_co, s_ci) if op.input_grad else (ci, co, s_ci, s_co)
        return KernelCall(
            f"nir_pack_winograd_{t.dtype.name}",
            (k, n, s_tap, s_k, s_n, int(op.input_grad)),
            panels(n),
            work=panels(n) * k * (25 * PANEL * t.dtype.itemsize),
        )
    if op.x_layout == "NCHW":
        return _pack_b(t.dtype.name, 1, ci, kh * kw, co, (0, s_ci, s_tap, s_co), t.dtype.itemsize)
    per_group = co // op.groups
    k2, n, s_k2, s_n = (per_group, ci, s_co, s_ci) if op.input_grad else (ci, per_group, s_ci, s_co)
    strides = (per_group * s_co, s_tap, s_k2, s_n)
    return _pack_b(t.dtype.name, op.groups, kh * kw, k2, n, strides, t.dtype.itemsize)


def _hwio(shape: Shape, layout: str) -> Any:
    if layout == "OIHW":
        co, ci, kh, kw = shape
        return kh, kw, ci, co
    return shape


def weight_strides(layout: str, kh: Dim, kw: Dim, ci: Dim, co: Dim) -> tuple[Dim, Dim, Dim]:
    """Elements from one kernel position, input channel and output channel to the next."""
    return (1, kh * kw, ci * kh * kw) if layout == "OIHW" else (ci * co, co, 1)


def nhwc(shape: Shape) -> Any:
    """The sizes (N, H, W, C) of an NCHW image."""
    n, c, h, w = shape
    return n, h, w, c


def _window(op: Any, x: Shape, y: Shape, kernel: tuple[Dim, Dim]) -> tuple[Dim, ...]:
    """The sixteen dims of kernels/cpu/conv.h, from the shapes of input and output images."""
    (top, _), (left, _) = op.padding
    return (*x, *y[1:], *kernel, *op.stride, top, left, *op.dilation, op.groups)


def _gather_scratch(source_channels: int, groups: int, taps: int, size: int) -> int:
    """Bytes that conv2d.cc takes.

    Pieces and blocks, pixels (twice) and tiles, classes, pointers with lengths and offsets, zeros,
    copied rows.
    """
    channels = source_channels // groups
    pieces = taps * max(1, -(-channels // BLOCK_K))
    rows = 0
    if channels < FEW_CHANNELS:
        rows = max(ROW_ELEMENTS, MAX_ROWS * taps * channels)
    fixed = BATCH_ROWS * (2 * 32 + 32) + CLASSES * 12 + POINTERS * (8 + 4 + 8)
    return fixed + pieces * (40 + 8) + (BLOCK_K + rows) * size + 12 * _LINE


def _ring_scratch(op: Conv2d, kernel: tuple[int, int], channels: int, out_w: Dim, size: int) -> Dim:
    """Bytes that conv2d_planar.cc takes: lines of x with their padding, and pointers to them."""
    width = (out_w - 1) * op.stride[1] + (kernel[1] - 1) * op.dilation[1] + 1
    lines = channels * ((kernel[0] - 1) * op.dilation[0] + 1)
    return lines * size * width + channels * kernel[0] * 8 + 2 * _LINE


def _convolution(op: Any, image: Any, input_grad: bool) -> KernelCall | None:
    """conv2d of ``image`` = x, or conv2d_input_grad of ``image`` = dy."""
    t, out = image.type, op.result.type
    dtype, size = t.dtype.name, t.dtype.itemsize
    if dtype not in _FLOATS:
        return None
    kh, kw, ci, co = op._weight(op.w, input_grad)
    planar = not input_grad and op.x_layout == "NCHW"
    image_shape = nhwc(t.shape) if planar else t.shape
    static = (kh, kw, ci, co, image_shape[3])
    if not all(isinstance(d, int) for d in static):
        return None
    if op.weight_layout == "winograd":
        return _winograd(op, image, input_grad)
    taps, depthwise = kh * kw, ci == 1 and co == op.groups and op.weight_layout != "packed"
    depthwise = depthwise and not planar
    x, y = (out.shape, image_shape) if input_grad else (image_shape, out.shape)
    dims = _window(op, x, y, (kh, kw))
    kernel = "conv2d_depthwise" if depthwise else "conv2d_planar" if planar else "conv2d"
    rows = prod(out.shape[:3])
    call = KernelCall(
        f"nir_{kernel}{'_input_grad' if input_grad else ''}_{dtype}",
        dims,
        rows=rows,
        cols=out.shape[3],
        row_grain=_pixel_grain(out.shape, t.shape, taps * ci * co, 8) if op.groups == 1 else 8,
        col_grain=2 * PANEL if op.groups == 1 else 0,
        scratch=(
            _ring_scratch(op, (kh, kw), ci, out.shape[2], size)
            if planar
            else _gather_scratch(image_shape[3], op.groups, taps, size)
        ),
        work=_quarter(prod(y) * (taps * ci)),
        pack=None if op.weight_layout == "packed" else 1,
        by_lines=planar,
    )
    if not depthwise:
        return call
    s_tap, _, s_co = weight_strides(op.weight_layout, kh, kw, ci, co)
    return replace(
        call,
        dims=(*dims, s_tap, s_co),
        # The weights turned, and lists of the taps and kernel rows that a line reads.
        scratch=taps * co * size + (kh + kw) * 32 + 7 * _LINE,
        col_grain=PANEL,
        pack=None,
        by_lines=not input_grad,
    )


def _pixel_grain(out: Shape, image: Shape, weights: int, otherwise: int) -> int:
    """All rows where weights exceed the image: threads share columns, and read weights once."""
    rows = prod(out[:3])
    if isinstance(rows, int) and out[3] >= 8 * PANEL and weights > prod(image):
        return max(1, rows)
    return otherwise


def _winograd(op: Any, image: Any, input_grad: bool) -> KernelCall:
    x, out = image.type, op.result.type
    channels, columns = x.shape[3], out.shape[3]
    # The gradient of an image is a convolution of dy, padded by what the window exceeds padding.
    (top, _), (left, _) = op.padding
    pads = (2 - top, 2 - left) if input_grad else (top, left)
    patches = max(WINOGRAD_FEW, min(WINOGRAD_PATCHES, WINOGRAD_CHANNELS // (channels + columns)))
    _, h, w, _ = out.shape
    rows = prod(out.shape[:3])
    # A patch has two lines; of images with an odd number the next image begins a new one.
    lines = 2 if isinstance(h, int) and h % 2 == 0 else h
    patch_rows = lines * w if isinstance(lines * w, int) else 8
    return KernelCall(
        f"nir_conv2d_winograd_{x.dtype.name}",
        (*x.shape, *out.shape[1:], 3, 3, 1, 1, *pads, 1, 1, 1),
        rows=rows,
        cols=columns,
        row_grain=_pixel_grain(out.shape, x.shape, 9 * channels * columns, patch_rows),
        col_grain=2 * PANEL,
        scratch=(16 * (patches * (channels + columns) + 2 * PANEL) + channels) * x.dtype.itemsize
        + 3 * _LINE,
        # Four products in place of nine.
        work=_quarter(rows * columns * (4 * channels)),
    )


def conv2d(op: Conv2d) -> KernelCall | None:
    return _convolution(op, op.x, False)


def conv2d_input_grad(op: Conv2dInputGrad) -> KernelCall | None:
    return _convolution(op, op.dy, True)


def conv2d_weight_grad(op: Conv2dWeightGrad) -> KernelCall | None:
    x, dy = op.x.type, op.dy.type
    dtype, size = x.dtype.name, x.dtype.itemsize
    if dtype not in _FLOATS:
        return None
    kh, kw = op.kernel_size
    planar = op.x_layout == "NCHW"
    x_shape = nhwc(x.shape) if planar else x.shape
    ci, co = x_shape[3] // op.groups, dy.shape[3]
    if not isinstance(ci, int) or not isinstance(co, int):
        return None
    taps = kh * kw
    strides = weight_strides(op.weight_layout, kh, kw, ci, co)
    dims = _window(op, x_shape, dy.shape, (kh, kw))
    if op.winograd:
        patches = max(SUM_LEAST, min(SUM_MOST, SUM_ELEMENTS // max(ci, 1)))
        step = ROW_STEP * ceildiv(ci, ROW_STEP) + PANEL * ceildiv(co, PANEL)
        points = 16 * (patches * step + ci * co + 3 * PANEL)
        return KernelCall(
            f"nir_conv2d_winograd_weight_grad_{dtype}",
            (*dims, *strides),
            rows=ci,
            cols=co,
            row_grain=max(1, ci),
            col_grain=PANEL,
            even=True,
            scratch=(points + max(ci, co)) * size + 5 * _LINE,
            work=_quarter(prod(dy.shape) * (4 * ci)),
        )
    depthwise = ci == 1 and co == op.groups and not planar
    joined = op.groups == op.dilation[1] == 1 and (planar or ci < FEW_CHANNELS)
    edges = BLOCK_K * kw * (1 if planar else ci) if joined else 0
    sums = 0
    if strides[2] != 1:
        sums = max(GRAD_SUMS // size, GRAD_TILE_ROWS * taps * min(co // op.groups, GRAD_COLUMNS))
    scratch = (BLOCK_K * GRAD_COLUMNS + edges + sums) * size + BLOCK_K * 24 + 4 * _LINE
    rows = taps * ci
    # Threads that share columns need not pack the same dy; those of few columns share rows.
    by_columns = co >= 4 * PANEL and op.groups == 1
    tile_rows = GRAD_TILE_ROWS * taps
    row_grain = rows if by_columns else max(tile_rows, -(-rows // 4 // tile_rows) * tile_rows)
    if joined and not by_columns:
        row_grain = max(GRAD_TILE_ROWS, -(-rows // 4))
    s_tap, _, s_co = strides
    return KernelCall(
        f"nir_conv2d{'_depthwise' if depthwise else ''}_weight_grad_{dtype}",
        (*dims, s_tap, s_co) if depthwise else (*dims, *strides, int(planar)),
        rows=rows,
        cols=co,
        # The taps of a depthwise weight share what they read of dy: channels are split.
        row_grain=taps if depthwise else row_grain,
        col_grain=PANEL if depthwise else 2 * PANEL,
        scratch=taps * 2 * _LINE if depthwise else scratch,
        work=_quarter(prod(dy.shape) * (taps * ci)),
    )


CONTRACTIONS: dict[str, Callable[[Any], KernelCall | None]] = {
    "pack": pack,
    "matmul": matmul,
    "pack_conv2d": pack_conv2d,
    "conv2d": conv2d,
    "conv2d_input_grad": conv2d_input_grad,
    "conv2d_weight_grad": conv2d_weight_grad,
}
