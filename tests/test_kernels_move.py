"""Pooling, gathers, scans, random bits and copies against numpy, on every ISA level."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from kernel_harness import ISAS, KernelError, call, guarded, same_bits

SUFFIX = {"float32": "f32", "float64": "f64", "int32": "i32", "int64": "i64", "uint8": "u8"}
NUMBERS = [np.float32, np.float64, np.int32, np.int64]
FLOATS = NUMBERS[:2]


def values(rng: np.random.Generator, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Few distinct values, so that ties are common; floats with nan and inf among them."""
    if np.dtype(dtype).kind != "f":
        return rng.integers(0, 5, shape).astype(dtype)
    x = rng.integers(-4, 5, shape).astype(dtype)
    odd = rng.random(shape)
    return np.where(odd < 0.03, np.nan, np.where(odd < 0.05, np.inf, x)).astype(dtype)


def run(name, isa, arrays, dims, shape, dtype, rows, cols, row_cuts=(), col_cuts=(), epilogue=None):
    """The result of a kernel in fresh guarded memory."""
    out, memory = guarded(shape, dtype)
    before = memory.copy()
    cuts = {"row_cuts": row_cuts, "col_cuts": col_cuts, "epilogue": epilogue}
    call(name, isa, [*arrays, out], dims, rows, cols, **cuts)
    start = out.ctypes.data - memory.ctypes.data
    assert (memory[:start] == before[:start]).all()
    assert (memory[start + out.nbytes :] == before[start + out.nbytes :]).all()
    return out.copy()


def everywhere(name, arrays, dims, shape, dtype, rows, cols) -> np.ndarray:
    """The result, the same on every ISA level, whole and split, with each element finished once."""
    whole = [run(name, isa, arrays, dims, shape, dtype, rows, cols) for isa in ISAS]
    seen = np.zeros((rows, cols), int)

    def epilogue(_ctx, _ptrs, _dims, r0, r1, c0, c1):
        seen[r0:r1, c0:c1] += 1
        return 0

    cuts = sorted({rows // 3, rows // 2}), sorted({cols // 2})
    for isa, result in zip(ISAS, whole, strict=True):
        assert same_bits(whole[0], result), f"{isa} differs from {ISAS[0]}"
        seen[:] = 0
        cut = run(name, isa, arrays, dims, shape, dtype, rows, cols, *cuts, epilogue)
        assert same_bits(whole[0], cut), f"{isa} depends on the split"
        assert "max_pool2d_grad" in name or (seen == 1).all()
    return whole[0]


# ---- pooling -----------------------------------------------------------------------------------

# (N, H, W, C), kernel, stride, padding (top, bottom, left, right)
POOLS = [
    ((2, 4, 6, 3), (2, 2), (2, 2), (0, 0, 0, 0)),
    ((1, 7, 5, 17), (3, 2), (2, 1), (1, 1, 1, 0)),
    ((2, 5, 5, 70), (3, 3), (1, 1), (1, 1, 1, 1)),
    ((1, 6, 7, 4), (2, 3), (3, 4), (0, 0, 0, 0)),
    ((3, 1, 1, 1), (1, 1), (1, 1), (0, 0, 0, 0)),
    ((0, 4, 4, 2), (2, 2), (2, 2), (0, 0, 0, 0)),
    ((1, 2, 2, 3), (2, 2), (2, 2), (2, 2, 2, 2)),  # windows of nothing but padding
]


def windows(shape, kernel, stride, pad):
    """(oh, ow, rows of the image, columns of the image) of each window."""
    _, h, w, _ = shape
    oh = (h + pad[0] + pad[1] - kernel[0]) // stride[0] + 1
    ow = (w + pad[2] + pad[3] - kernel[1]) // stride[1] + 1
    for i, j in itertools.product(range(oh), range(ow)):
        y, x = i * stride[0] - pad[0], j * stride[1] - pad[2]
        rows = [r for r in range(y, y + kernel[0]) if 0 <= r < h]
        yield i, j, rows, [c for c in range(x, x + kernel[1]) if 0 <= c < w]


def pool_sizes(shape, kernel, stride, pad):
    *_, (i, j, _, _) = windows(shape, kernel, stride, pad)
    return (shape[0], i + 1, j + 1, shape[3])


def pool_dims(shape, out, kernel, stride, pad, include=False):
    return [*shape, out[1], out[2], *kernel, *stride, pad[0], pad[2], int(include)]


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_max_pool(pool, dtype) -> None:
    shape, kernel, stride, pad = pool
    rng = np.random.default_rng(0)
    out = pool_sizes(*pool)
    x, v = values(rng, shape, dtype), rng.integers(1, 99, shape).astype(dtype)
    dy = rng.integers(1, 99, out).astype(dtype)
    lowest = -np.inf if np.dtype(dtype).kind == "f" else np.iinfo(dtype).min
    y, select, dx = np.full(out, lowest, dtype), np.zeros(out, dtype), np.zeros(shape, dtype)
    for i, j, rows, cols in windows(*pool):
        if not rows or not cols:
            continue
        part = x[:, rows][:, :, cols].reshape(shape[0], len(rows) * len(cols), shape[3])
        best = part.argmax(axis=1)
        y[:, i, j] = part.max(axis=1)
        for n, c in np.ndindex(shape[0], shape[3]):
            r, q = rows[best[n, c] // len(cols)], cols[best[n, c] % len(cols)]
            select[n, i, j, c] = v[n, r, q, c]
            dx[n, r, q, c] += dy[n, i, j, c]
    dims, s = pool_dims(shape, out, kernel, stride, pad), SUFFIX[np.dtype(dtype).name]
    rows, c = int(np.prod(out[:3])), shape[3]
    got = everywhere(f"nir_max_pool2d_{s}", [x], dims, out, dtype, rows, c)
    np.testing.assert_array_equal(got, y)
    got = everywhere(f"nir_max_pool2d_select_{s}", [x, v], dims, out, dtype, rows, c)
    np.testing.assert_array_equal(got, select)
    got = everywhere(f"nir_max_pool2d_grad_{s}", [x, dy], dims, shape, dtype, shape[0], c)
    np.testing.assert_array_equal(got, dx)


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("pool", POOLS[:-1], ids=str)
def test_avg_pool(pool, dtype, include) -> None:
    shape, kernel, stride, pad = pool
    rng = np.random.default_rng(1)
    out = pool_sizes(*pool)
    x, dy = rng.standard_normal(shape).astype(dtype), rng.standard_normal(out).astype(dtype)
    y, dx = np.zeros(out), np.zeros(shape)
    for i, j, rows, cols in windows(*pool):
        count = np.prod(kernel) if include else len(rows) * len(cols)
        y[:, i, j] = x[:, rows][:, :, cols].astype(np.float64).sum(axis=(1, 2)) / count
        for r, q in itertools.product(rows, cols):
            dx[:, r, q] += dy[:, i, j] / count
    dims, s = pool_dims(shape, out, kernel, stride, pad, include), SUFFIX[np.dtype(dtype).name]
    tol = 16 * np.finfo(dtype).eps
    rows, c = int(np.prod(out[:3])), shape[3]
    got = everywhere(f"nir_avg_pool2d_{s}", [x], dims, out, dtype, rows, c)
    np.testing.assert_allclose(got, y, rtol=tol, atol=tol)
    rows = int(np.prod(shape[:3]))
    got = everywhere(f"nir_avg_pool2d_grad_{s}", [dy], dims, shape, dtype, rows, c)
    np.testing.assert_allclose(got, dx, rtol=tol, atol=tol)


# ---- gather and scatter ------------------------------------------------------------------------

GATHERS = [(1, 5, 7, 1), (3, 4, 6, 5), (2, 1, 3, 33), (0, 3, 2, 4), (2, 3, 0, 4), (2, 6, 9, 0)]


@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.int64])
@pytest.mark.parametrize("sizes", GATHERS, ids=str)
def test_take(sizes, dtype, index) -> None:
    outer, n, m, inner = sizes
    rng = np.random.default_rng(2)
    x = rng.integers(0, 99, (outer, n, inner)).astype(dtype)
    i, along = (
        rng.integers(-n, n, m).astype(index),
        rng.integers(-n, n, (outer, m, inner)).astype(index),
    )
    s = f"b{8 * x.itemsize}_{SUFFIX[np.dtype(index).name]}"
    shape = (outer, m, inner)
    got = everywhere(f"nir_take_{s}", [x, i], sizes, shape, dtype, outer * m, inner)
    np.testing.assert_array_equal(got, x[:, i])
    got = everywhere(f"nir_take_along_{s}", [x, along], sizes, shape, dtype, outer * m, inner)
    np.testing.assert_array_equal(got, np.take_along_axis(x, along % n, axis=1))


@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("sizes", GATHERS, ids=str)
def test_scatter_add(sizes, dtype, index) -> None:
    outer, n, m, inner = sizes
    rng = np.random.default_rng(3)
    x, u = (rng.integers(-9, 9, s).astype(dtype) for s in ((outer, n, inner), (outer, m, inner)))
    i, along = (
        rng.integers(-n, n, m).astype(index),
        rng.integers(-n, n, (outer, m, inner)).astype(index),
    )
    s = f"{SUFFIX[np.dtype(dtype).name]}_{SUFFIX[np.dtype(index).name]}"
    want, want_along = x.copy(), x.copy()
    np.add.at(want, (slice(None), i), u)
    for o, j, k in np.ndindex(outer, m, inner):
        want_along[o, along[o, j, k], k] += u[o, j, k]
    shape = (outer, n, inner)
    got = everywhere(f"nir_scatter_add_{s}", [x, i, u], sizes, shape, dtype, outer * n, inner)
    np.testing.assert_array_equal(got, want)
    name = f"nir_scatter_add_along_{s}"
    got = everywhere(name, [x, along, u], sizes, shape, dtype, outer * n, inner)
    np.testing.assert_array_equal(got, want_along)
    call(f"nir_scatter_add_{s}", ISAS[0], [x, i, u, x], sizes, outer * n, inner)  # in place
    np.testing.assert_array_equal(x, want)


@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("sizes", GATHERS, ids=str)
def test_put(sizes, dtype, index) -> None:
    outer, n, m, inner = sizes
    rng = np.random.default_rng(3)
    x, u = (rng.integers(0, 99, s).astype(dtype) for s in ((outer, n, inner), (outer, m, inner)))
    i = rng.integers(-n, n, m).astype(index)
    want = x.copy()
    for j, k in enumerate(i):  # in order: of equal indices the last wins
        want[:, k] = u[:, j]
    name = f"nir_put_b{8 * x.itemsize}_{SUFFIX[np.dtype(index).name]}"
    got = everywhere(name, [x, i, u], sizes, (outer, n, inner), dtype, outer * n, inner)
    np.testing.assert_array_equal(got, want)
    call(name, ISAS[0], [x, i, u, x], sizes, outer * n, inner)  # in place
    np.testing.assert_array_equal(x, want)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [4, -5, 2**31 - 1, -(2**31)])
def test_index_out_of_range(isa: str, bad: int) -> None:
    x, u, y = np.zeros((1, 4, 2), np.float32), np.zeros((1, 3, 2), np.float32), np.zeros((1, 4, 2))
    for dtype, s in ((np.int32, "i32"), (np.int64, "i64")):
        i, along = np.array([0, bad, 1], dtype), np.zeros((1, 3, 2), dtype)
        along[0, 2, 1] = bad
        for name, arrays in (
            (f"nir_take_b32_{s}", [x, i, y]),
            (f"nir_take_along_b32_{s}", [x, along, y]),
            (f"nir_scatter_add_f32_{s}", [x, i, u, y]),
            (f"nir_put_b32_{s}", [x, i, u, y]),
            (f"nir_scatter_add_along_f32_{s}", [x, along, u, y]),
        ):
            rows = 3 if "take" in name else 4
            with pytest.raises(KernelError) as error:
                call(name, isa, arrays, [1, 4, 3, 2], rows, 2)
            assert error.value.args == (1, (bad, 4))


@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_check_index(index: type) -> None:
    name = f"nir_check_index_{SUFFIX[np.dtype(index).name]}"
    for n in (0, 1, 5, 1000):
        x = np.arange(n).astype(index) % 7
        np.testing.assert_array_equal(everywhere(name, [x], (7,), (n,), index, n, 1), x)
        for bad in (7, -1, np.iinfo(index).max, np.iinfo(index).min) if n else ():
            x[n // 2] = bad
            for isa in ISAS:
                with pytest.raises(KernelError) as error:
                    call(name, isa, [x, x.copy()], (7,), n, 1)
                assert error.value.args == (4, (bad, 7))


# ---- scans -------------------------------------------------------------------------------------

AXES = [(1, 1, 1), (3, 7, 1), (2, 100, 1), (2, 5, 3), (1, 9, 130), (0, 4, 2), (2, 4, 0), (1, 47, 1)]


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("shape", [*AXES, (2, 0, 3)], ids=str)
def test_cumsum(shape, dtype) -> None:
    rng = np.random.default_rng(4)
    x = rng.integers(-9, 9, shape).astype(dtype)
    s = SUFFIX[np.dtype(dtype).name]
    got = everywhere(f"nir_cumsum_{s}", [x], shape, shape, dtype, shape[0], shape[2])
    np.testing.assert_array_equal(got, x.cumsum(axis=1))


@pytest.mark.parametrize("dtype", [*NUMBERS, np.uint8])
@pytest.mark.parametrize("shape", AXES, ids=str)
def test_arg(shape, dtype) -> None:
    s = SUFFIX[np.dtype(dtype).name]
    for seed, fn in itertools.product(range(8), (np.argmax, np.argmin)):
        x = values(np.random.default_rng(seed), shape, dtype)
        if seed == 0:
            x[:] = 1  # all tied
        out = (shape[0], shape[2])
        name = f"nir_{fn.__name__}_{s}"
        got = everywhere(name, [x], shape, out, np.int64, shape[0], shape[2])
        np.testing.assert_array_equal(got, fn(x, axis=1))


# ---- random bits -------------------------------------------------------------------------------


def philox_block(key: int, counter: int) -> list[int]:
    """One block of Philox4x32-10 in Python integers."""
    mask = 0xFFFFFFFF
    k = [key & mask, key >> 32]
    c = [counter & mask, counter >> 32, 0, 0]
    for _ in range(10):
        p, q = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(q >> 32) ^ c[1] ^ k[0], q & mask, (p >> 32) ^ c[3] ^ k[1], p & mask]
        k = [(k[0] + 0x9E3779B9) & mask, (k[1] + 0xBB67AE85) & mask]
    return c


def test_philox_known_answer() -> None:
    """The published vector for key 0, counter 0."""
    want = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert philox_block(0, 0) == want
    zero = np.zeros((), np.int64)
    got = everywhere("nir_random_bits_i32", [zero, zero], [4], (4,), np.int32, 4, 1)
    assert got.view(np.uint32).tolist() == want


@pytest.mark.parametrize("n", [0, 1, 7, 64, 333])
@pytest.mark.parametrize("key", [1, -1, 2**40 + 17])
@pytest.mark.parametrize("counter", [0, 5, 2**32 - 3, -2])
def test_random_bits(n: int, key: int, counter: int) -> None:
    operands = [np.array(key, np.int64), np.array(counter, np.int64)]
    got = everywhere("nir_random_bits_i32", operands, [n], (n,), np.int32, n, 1)
    wide = 2**64
    blocks = [philox_block(key % wide, (counter + b) % wide) for b in range(-(-n // 4))]
    want = np.array(blocks, np.uint32).reshape(-1)[:n]
    np.testing.assert_array_equal(got.view(np.uint32), want)


# ---- copies ------------------------------------------------------------------------------------


def copy_dims(src: np.ndarray, dst: np.ndarray, src_base: np.ndarray, dst_base: np.ndarray):
    size = src.itemsize
    dims = [
        src.ndim,
        (src.ctypes.data - src_base.ctypes.data) // size,
        (dst.ctypes.data - dst_base.ctypes.data) // size,
    ]
    for n, s, d in zip(src.shape, src.strides, dst.strides, strict=True):
        dims += [n, s // size, d // size]
    return dims


VIEWS = {
    "transpose": lambda x: x.transpose(2, 0, 1),
    "transpose2": lambda x: x.transpose(1, 0, 2),
    "reverse": lambda x: x[::-1, :, ::-1],
    "slice": lambda x: x[1:, ::2, 1:-1],
    "swap": lambda x: x.transpose(0, 2, 1),
    "one": lambda x: x[0, 0, :],
    "broadcast": lambda x: np.broadcast_to(x[:, :1], x.shape),
    "empty": lambda x: x[:0],
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.int64])
def test_copy(dtype, view: str) -> None:
    rng = np.random.default_rng(5)
    base = rng.integers(0, 99, (3, 21, 37)).astype(dtype)
    src = VIEWS[view](base)
    rows, cols = int(np.prod(src.shape[:-1])), src.shape[-1]
    dims = copy_dims(src, src, base, base)
    dense = np.empty(src.shape, dtype)
    for axis in range(src.ndim):
        dims[5 + 3 * axis] = dense.strides[axis] // dense.itemsize
    dims[2] = 0
    name = f"nir_copy_b{8 * base.itemsize}"
    got = everywhere(name, [base], dims, src.shape, dtype, rows, cols)
    np.testing.assert_array_equal(got, src)
    # Into a strided part of something larger: what lies between stays.
    for isa in ISAS:
        target = np.full([2 * n + 3 for n in src.shape], 7, dtype)
        between = tuple(slice(1, 1 + 2 * n, 2) for n in src.shape)
        part, want = target[between], target.copy()
        want[between] = src
        call(name, isa, [base, target], copy_dims(src, part, base, target), rows, cols)
        np.testing.assert_array_equal(target, want)


# source shape, low, factor, high
PADS = [
    ((5,), (2,), (1,), (3,)),
    ((3, 4, 5), (0, 1, 2), (1, 1, 1), (2, 0, 1)),
    ((3, 4, 5), (0, 0, 0), (2, 1, 3), (0, 0, 0)),
    ((2, 3), (1, 2), (3, 2), (0, 4)),
    ((0, 3), (2, 1), (1, 1), (1, 1)),
    ((4, 0), (0, 2), (1, 2), (0, 1)),
    ((2, 2, 2, 2), (0, 1, 0, 0), (1, 1, 1, 1), (0, 0, 0, 0)),
]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
@pytest.mark.parametrize("case", PADS, ids=str)
def test_pad(case, dtype) -> None:
    shape, low, factor, high = case
    x = np.random.default_rng(6).integers(0, 99, shape).astype(dtype)
    value = np.array(7).astype(dtype)
    inner = [max(0, (n - 1) * f + 1) for n, f in zip(shape, factor, strict=True)]
    out = [lo + n + hi for lo, n, hi in zip(low, inner, high, strict=True)]
    want = np.full(out, value)
    where = zip(low, inner, factor, strict=True)
    want[tuple(slice(lo, lo + n, f) for lo, n, f in where)] = x
    dims = [x.ndim, int(value.view(f"u{value.itemsize}"))]
    for axis in zip(shape, low, factor, out, strict=True):
        dims += axis
    rows = int(np.prod(out[:-1]))
    got = everywhere(f"nir_pad_b{8 * x.itemsize}", [x], dims, tuple(out), dtype, rows, out[-1])
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("isa", ISAS)
def test_concat(isa: str) -> None:
    rng = np.random.default_rng(7)
    xs = [rng.standard_normal((6, n, 3)).astype(np.float32) for n in (2, 0, 5, 1)]
    want = np.concatenate(xs, axis=1)
    dims = [len(xs), *(x.nbytes // 6 for x in xs)]
    got = run("nir_concat_bytes", isa, xs, dims, want.shape, np.float32, 6, 1, row_cuts=[2])
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
def test_fill(dtype) -> None:
    bits = np.array(1.5).astype(dtype)
    unsigned = f"u{bits.itemsize}"
    dims = [int(bits.view(unsigned))]
    got = everywhere(f"nir_fill_b{8 * bits.itemsize}", [], dims, (100,), dtype, 100, 1)
    assert (got == bits).all()
