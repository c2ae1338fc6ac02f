"""Convolution kernels against numpy float64, and bit for bit across ISA levels and splits."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from kernel_harness import ISAS, call, ceil_div, guarded, same_bits


@dataclass(frozen=True)
class Conv:
    n: int
    h: int
    w: int
    c: int
    o: int
    kh: int
    kw: int
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, bottom, left, right
    dil: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def out(self) -> tuple[int, int]:
        t, b, le, r = self.pad
        return (
            (self.h + t + b - self.dil[0] * (self.kh - 1) - 1) // self.stride[0] + 1,
            (self.w + le + r - self.dil[1] * (self.kw - 1) - 1) // self.stride[1] + 1,
        )

    @property
    def dims(self) -> list[int]:
        return [
            self.n, self.h, self.w, self.c, *self.out, self.o, self.kh, self.kw,
            *self.stride, self.pad[0], self.pad[2], *self.dil, self.groups,
        ]  # fmt: skip


CASES = [
    Conv(2, 5, 6, 3, 4, 3, 3, pad=(1, 1, 1, 1)),
    Conv(2, 4, 4, 32, 32, 3, 3, pad=(1, 1, 1, 1)),
    Conv(1, 9, 7, 20, 50, 3, 2, stride=(2, 1), pad=(1, 0, 0, 2)),
    Conv(2, 13, 11, 3, 16, 7, 7, stride=(4, 4), pad=(3, 3, 3, 3)),
    Conv(1, 8, 9, 17, 33, 3, 3, stride=(2, 3), pad=(2, 1, 1, 2), dil=(2, 1)),
    Conv(1, 10, 9, 5, 7, 2, 3, dil=(3, 2), pad=(0, 3, 2, 1)),
    Conv(3, 6, 5, 24, 36, 3, 3, pad=(1, 1, 1, 1), groups=2),
    Conv(2, 6, 6, 12, 8, 3, 3, stride=(2, 2), pad=(1, 1, 1, 1), groups=4),
    Conv(1, 1, 1, 40, 24, 3, 3, pad=(1, 1, 1, 1)),  # eight of nine taps only read padding
    Conv(1, 3, 3, 300, 20, 2, 2),  # channels over more than one block
    Conv(4, 7, 7, 64, 96, 1, 1),
    Conv(2, 8, 8, 6, 5, 1, 1, stride=(3, 2)),  # inputs that no output reads
    Conv(1, 4, 30, 16, 130, 1, 5, stride=(1, 2), pad=(0, 0, 2, 2)),
    Conv(1, 7, 7, 6, 12, 3, 3, pad=(1, 1, 1, 1), groups=6),  # two outputs a channel
    Conv(0, 5, 5, 8, 8, 3, 3, pad=(1, 1, 1, 1)),
    Conv(1, 12, 12, 1, 1, 9, 9, pad=(8, 8, 8, 8)),
]
DEPTHWISE = [
    Conv(2, 6, 7, 19, 19, 3, 3, pad=(1, 1, 1, 1), groups=19),
    Conv(1, 9, 8, 40, 40, 5, 3, stride=(2, 2), pad=(2, 1, 1, 0), groups=40),
    Conv(1, 8, 8, 8, 8, 3, 3, stride=(3, 1), pad=(2, 2, 2, 2), dil=(2, 2), groups=8),
    Conv(5, 9, 9, 3, 3, 2, 2, groups=3),
    Conv(1, 3, 17, 32, 32, 3, 3, pad=(1, 1, 1, 1), groups=32),
    Conv(1, 5, 18, 48, 48, 3, 3, stride=(2, 2), pad=(1, 1, 1, 1), groups=48),
    Conv(2, 4, 1, 16, 16, 3, 3, pad=(1, 1, 1, 1), groups=16),
    Conv(1, 2, 2, 16, 16, 3, 3, pad=(2, 2, 2, 2), groups=16),
    Conv(1, 3, 9, 16, 16, 2, 3, pad=(1, 0, 0, 1), groups=16),
    Conv(1, 3, 2, 16, 16, 3, 3, stride=(2, 2), pad=(1, 1, 1, 1), groups=16),
]
SUFFIX = {np.float32: "f32", np.float64: "f64"}


def taps(c: Conv, x: np.ndarray):
    """For each tap: its indices and the padded input seen through it, [N, OH, OW, C]."""
    t, b, le, r = c.pad
    padded = np.pad(x, ((0, 0), (t, b), (le, r), (0, 0)))
    oh, ow = c.out
    for i in range(c.kh):
        for j in range(c.kw):
            y, z = i * c.dil[0], j * c.dil[1]
            where = (
                slice(None),
                slice(y, y + (oh - 1) * c.stride[0] + 1, c.stride[0]),
                slice(z, z + (ow - 1) * c.stride[1] + 1, c.stride[1]),
            )
            yield i, j, where, padded


def oracle(c: Conv, x: np.ndarray, w: np.ndarray, dy: np.ndarray):
    """(y, dx, dw) in float64."""
    x, w, dy = (a.astype(np.float64) for a in (x, w, dy))
    g, cg, og = c.groups, c.c // c.groups, c.o // c.groups
    split_w = w.reshape(c.kh, c.kw, cg, g, og)
    split_dy = dy.reshape(*dy.shape[:3], g, og)
    y, dw = np.zeros(split_dy.shape), np.zeros(split_w.shape)
    dx = np.zeros((c.n, c.h + c.pad[0] + c.pad[1], c.w + c.pad[2] + c.pad[3], c.c))
    for i, j, where, padded in taps(c, x):
        seen = padded[where].reshape(*dy.shape[:3], g, cg)
        y += np.einsum("nhwgc,cgo->nhwgo", seen, split_w[i, j])
        dw[i, j] = np.einsum("nhwgc,nhwgo->cgo", seen, split_dy)
        dx[where] += np.einsum("nhwgo,cgo->nhwgc", split_dy, split_w[i, j]).reshape(
            (*seen.shape[:3], c.c)
        )
    dx = dx[:, c.pad[0] : c.pad[0] + c.h, c.pad[2] : c.pad[2] + c.w]
    return y.reshape(dy.shape), dx, dw.reshape(w.shape)


def data(c: Conv, dtype: type, seed: int = 0):
    rng = np.random.default_rng(seed)
    shapes = (c.n, c.h, c.w, c.c), (c.kh, c.kw, c.c // c.groups, c.o), (c.n, *c.out, c.o)
    return tuple(rng.standard_normal(s).astype(dtype) for s in shapes)


def pack_weights(
    c: Conv, w: np.ndarray, isa: str, *, input_grad: bool, planar: bool = False
) -> np.ndarray:
    cg, og = c.c // c.groups, c.o // c.groups
    k2, n, s_k2, s_n = (og, cg, 1, c.o) if input_grad else (cg, og, c.o, 1)
    panels = ceil_div(n, 16)
    out = np.empty((c.groups, panels, c.kh * c.kw * k2, 16), w.dtype)
    dims = [c.groups, c.kh * c.kw, k2, n, og, cg * c.o, s_k2, s_n]
    if planar:
        dims = [1, cg, c.kh * c.kw, n, 0, c.o, cg * c.o, 1]
    call(f"nir_pack_b_{SUFFIX[w.dtype.type]}", isa, [w, out], dims, c.groups * panels)
    return out


def conv_scratch(c: Conv, source_channels: int, size: int) -> int:
    channels, taps = source_channels // c.groups, c.kh * c.kw
    pieces = taps * max(1, ceil_div(channels, 256))
    rows = max(65536, 14 * taps * channels)
    return 124672 + pieces * 48 + (256 + rows) * size


def run(
    kind: str, c: Conv, x, w, dy, isa, row_cuts=(), col_cuts=(), epilogue=None, oihw=False,
    planar=False,
):  # fmt: skip
    """One of the three convolutions by its kernel.

    ``oihw`` stores a weight gradient that way, ``planar`` gives the kernel x as NCHW.
    """
    if planar:
        x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    dtype, size = x.dtype.type, x.itemsize
    depthwise = "depthwise" in kind
    first = dy if kind.endswith("input_grad") else x
    if kind.endswith("weight_grad"):
        cg, taps = c.c // c.groups, c.kh * c.kw
        arrays, rows, cols = [x, dy], taps * cg, c.o
        shape = (c.o, cg, c.kh, c.kw) if oihw else w.shape
        strides = [1, taps, taps * cg] if oihw else [cg * c.o, c.o, 1]
        strides.append(planar)
        if depthwise:
            strides = [1, taps] if oihw else [c.o, 1]
        edges = 256 * c.kw * (1 if planar else cg if cg < 16 else 0)
        sums = max((1 << 18) // size, 8 * taps * min(c.o // c.groups, 256)) * oihw
        scratch = taps * 128 if depthwise else (65536 + edges + sums) * size + 256 * 24 + 256
    else:
        grad = kind.endswith("input_grad")
        if depthwise:
            weights = np.ascontiguousarray(w.transpose(3, 2, 0, 1)) if oihw else w
        else:
            weights = pack_weights(c, w, isa, input_grad=grad, planar=planar)
        shape = x.shape if grad else dy.shape
        arrays, rows, cols, strides = [first, weights], int(np.prod(shape[:3])), shape[3], []
        strides = []
        scratch = conv_scratch(c, c.o if grad else c.c, size)
        if planar:
            kind = "conv2d_planar"
            width = (c.out[1] - 1) * c.stride[1] + (c.kw - 1) * c.dil[1] + 1
            lines = c.c * ((c.kh - 1) * c.dil[0] + 1)
            scratch = lines * max(width, 0) * size + c.c * c.kh * 8 + 128
        if depthwise:
            strides = [1, c.kh * c.kw] if oihw else [c.o, 1]
            scratch = c.kh * c.kw * c.c * size + (c.kh + c.kw) * 32 + 7 * 64
    out, memory = guarded(shape, dtype)
    before = memory.copy()
    call(
        f"nir_{kind}_{SUFFIX[dtype]}", isa, [*arrays, out], [*c.dims, *strides], rows, cols,
        row_cuts=row_cuts, col_cuts=col_cuts, epilogue=epilogue,
        scratch=scratch,
    )  # fmt: skip
    start = out.ctypes.data - memory.ctypes.data
    assert (memory[:start] == before[:start]).all()
    assert (memory[start + out.nbytes :] == before[start + out.nbytes :]).all()
    return out.copy()


def close(got: np.ndarray, want: np.ndarray, terms: int) -> None:
    eps = np.finfo(got.dtype).eps
    scale = np.abs(want).max(initial=1.0)
    np.testing.assert_allclose(got, want, rtol=0, atol=8 * eps * np.sqrt(max(terms, 1)) * scale)


def terms_of(kind: str, c: Conv) -> int:
    if kind.endswith("weight_grad"):
        return c.n * c.out[0] * c.out[1]
    return c.kh * c.kw * max(c.c, c.o) // c.groups


RESULT = {"conv2d": 0, "conv2d_input_grad": 1, "conv2d_weight_grad": 2}


@pytest.mark.parametrize("dtype", SUFFIX)
@pytest.mark.parametrize("kind", RESULT)
@pytest.mark.parametrize("c", CASES, ids=str)
def test_conv(c: Conv, kind: str, dtype: type) -> None:
    x, w, dy = data(c, dtype)
    want = oracle(c, x, w, dy)[RESULT[kind]]
    results = [run(kind, c, x, w, dy, isa) for isa in ISAS]
    close(results[0], want, terms_of(kind, c))
    for isa, other in zip(ISAS, results, strict=True):
        assert same_bits(results[0], other), f"{isa} differs from {ISAS[0]}"


@pytest.mark.parametrize("dtype", SUFFIX)
@pytest.mark.parametrize("kind", RESULT)
@pytest.mark.parametrize("c", DEPTHWISE, ids=str)
def test_depthwise(c: Conv, kind: str, dtype: type) -> None:
    x, w, dy = data(c, dtype)
    want = oracle(c, x, w, dy)[RESULT[kind]]
    name = kind.replace("conv2d", "conv2d_depthwise")
    results = [run(name, c, x, w, dy, isa) for isa in ISAS]
    close(results[0], want, terms_of(kind, c))
    for isa, other in zip(ISAS, results, strict=True):
        assert same_bits(results[0], other), f"{isa} differs from {ISAS[0]}"
    rows = want.size // want.shape[3]
    cut = run(name, c, x, w, dy, ISAS[0], row_cuts=[rows // 3], col_cuts=[1])
    assert same_bits(results[0], cut)
    stored = run(name, c, x, w, dy, ISAS[0], col_cuts=[1], oihw=True)
    assert same_bits(
        results[0], stored.transpose(2, 3, 1, 0) if kind == "conv2d_weight_grad" else stored
    )
    # The kernel for any groups gives the same numbers, if not the same speed.
    close(run(kind, c, x, w, dy, ISAS[0]), want, terms_of(kind, c))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", RESULT)
@pytest.mark.parametrize("c", [CASES[1], CASES[2], CASES[3], CASES[4], CASES[12]], ids=str)
def test_splits_and_epilogue(c: Conv, kind: str, isa: str) -> None:
    c = replace(c, n=3)
    x, w, dy = data(c, np.float32, seed=1)
    whole = run(kind, c, x, w, dy, isa)
    rows, cols = whole.size // whole.shape[3], whole.shape[3]
    row_cuts = sorted({1, rows // 4, rows // 2, rows - 1})
    seen = np.zeros((rows, cols), int)

    def epilogue(_ctx, _ptrs, _dims, r0, r1, c0, c1):
        seen[r0:r1, c0:c1] += 1
        return 0

    cut = run(kind, c, x, w, dy, isa, row_cuts, [k for k in (16,) if k < cols], epilogue)
    assert same_bits(whole, cut)
    assert (seen == 1).all()


@pytest.mark.parametrize("c", [CASES[0], CASES[4], CASES[6], CASES[8], CASES[12]], ids=str)
def test_weight_grad_in_oihw(c: Conv) -> None:
    x, w, dy = data(c, np.float32)
    want = run("conv2d_weight_grad", c, x, w, dy, ISAS[0]).transpose(3, 2, 0, 1)
    for isa in ISAS:
        got = run("conv2d_weight_grad", c, x, w, dy, isa, oihw=True)
        assert same_bits(np.ascontiguousarray(want), got)
    rows = c.kh * c.kw * c.c // c.groups
    cut = run("conv2d_weight_grad", c, x, w, dy, ISAS[0], row_cuts=[rows // 3], oihw=True)
    assert same_bits(cut, got)


@pytest.mark.parametrize("dtype", SUFFIX)
@pytest.mark.parametrize("kind", ["conv2d", "conv2d_weight_grad"])
@pytest.mark.parametrize("c", [c for c in CASES if c.groups == 1 and c.c < 64], ids=str)
def test_nchw_images(c: Conv, kind: str, dtype: type) -> None:
    x, w, dy = data(c, dtype)
    want = oracle(c, x, w, dy)[RESULT[kind]]
    results = [run(kind, c, x, w, dy, isa, planar=True) for isa in ISAS]
    close(results[0], want, terms_of(kind, c))
    for isa, other in zip(ISAS, results, strict=True):
        assert same_bits(results[0], other), f"{isa} differs from {ISAS[0]}"
    rows = c.kh * c.kw * c.c if kind == "conv2d_weight_grad" else int(np.prod(dy.shape[:3]))
    cut = run(kind, c, x, w, dy, ISAS[0], row_cuts=[rows // 3], planar=True)
    assert same_bits(results[0], cut)
    if kind == "conv2d_weight_grad":
        stored = run(kind, c, x, w, dy, ISAS[0], row_cuts=[rows // 3], planar=True, oihw=True)
        assert same_bits(np.ascontiguousarray(results[0].transpose(3, 2, 0, 1)), stored)


@pytest.mark.parametrize("isa", ISAS)
def test_nan_and_inf_reach_only_what_reads_them(isa: str) -> None:
    narrow = Conv(1, 6, 6, 4, 20, 3, 3, pad=(1, 1, 1, 1))
    for c in (narrow, replace(narrow, c=32)):
        x, w, dy = data(c, np.float32)
        x[0, 2, 3, 1], x[0, 5, 5, 0] = np.nan, np.inf
        y = run("conv2d", c, x, w, dy, isa)
        nan = np.isnan(y).any(axis=3)[0]
        assert nan[1:4, 2:5].all() and nan.sum() == 9
        assert np.isinf(y[0, 4:, 4:]).all()
