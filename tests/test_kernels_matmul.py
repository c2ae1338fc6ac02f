"""pack_b and matmul against numpy float64, and bit for bit across ISA levels and splits."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_harness import ISAS, LIB, call, ceil_div, guarded, pack_b, same_bits

SUFFIX = {np.float32: "f32", np.float64: "f64", np.int32: "i32", np.int64: "i64"}
SHAPES = [
    (1, 1, 1), (1, 1000, 70), (2, 33, 257), (3, 5, 300), (5, 129, 31), (7, 16, 16), (13, 17, 15),
    (14, 32, 256), (15, 31, 512), (29, 65, 513), (43, 130, 1), (350, 47, 20), (64, 64, 64),
    (337, 96, 260),
]  # fmt: skip


LAYOUTS = ("packed", "rows", "cols")


def scratch_bytes(itemsize: int) -> int:
    return (336 * 256 + 256 * 32) * itemsize


def numbers(rng: np.random.Generator, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    if np.dtype(dtype).kind == "i":
        return rng.integers(-9, 9, shape, dtype)
    return rng.standard_normal(shape).astype(dtype)


def matmul(a, b, isa, *, layout="packed", row_cuts=(), col_cuts=(), epilogue=None):
    """a[X, Y, M, K] @ b[X, Y, K, N] by the kernel; strides of the arrays are handed on."""
    x, y, m, k = a.shape
    n = b.shape[3]
    size = a.itemsize
    sa = [s // size if a.shape[i] > 1 or i > 1 else 0 for i, s in enumerate(a.strides)]
    out, memory = guarded((x, y, m, n), a.dtype)
    before = memory.copy()
    if layout == "packed":
        operand = pack_b(b.reshape(x * y, k, n), isa)
        panel = ceil_div(n, 16) * k * 16
        sb = [y * panel, panel, 0]
    else:
        operand = b
        if layout == "cols":
            columns = np.ascontiguousarray(b.swapaxes(2, 3))
            operand = columns if b.strides[1] else np.broadcast_to(columns[:, :1], (x, y, n, k))
        sb = [s // size for s in operand.strides[:3]]
    call(
        f"nir_matmul_{SUFFIX[a.dtype.type]}_{layout}",
        isa,
        [a, operand, out],
        [x, y, m, n, k, *sa, *sb, y * m * n, m * n, n],
        x * y * m,
        n,
        row_cuts=row_cuts,
        col_cuts=col_cuts,
        scratch=scratch_bytes(size),
        epilogue=epilogue,
    )
    start = out.ctypes.data - memory.ctypes.data
    assert (memory[:start] == before[:start]).all()
    assert (memory[start + out.nbytes :] == before[start + out.nbytes :]).all()
    return out.copy()


def check(got: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    if a.dtype.kind == "i":
        np.testing.assert_array_equal(got, a @ b)
        return
    want = a.astype(np.float64) @ b.astype(np.float64)
    # Error bound of a blocked chain: (block length + number of blocks) * eps * |A| |B|.
    k = a.shape[-1]
    bound = (min(k, 256) + ceil_div(k, 256)) * np.finfo(a.dtype).eps
    assert (np.abs(got - want) <= bound * (np.abs(a) @ np.abs(b)) + 1e-30).all()


def test_levels_are_found() -> None:
    assert LIB.nir_best_isa().decode() == ISAS[0]
    assert "plain" in ISAS
    assert not LIB.nir_find_kernel(b"nir_matmul_f32_packed", b"sse9")
    assert not LIB.nir_find_kernel(b"nir_no_such_kernel", b"plain")
    assert not LIB.nir_has_isa(b"sse9")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", SUFFIX)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (2, 9, 17), (3, 8, 16), (1, 0, 5), (2, 3, 0), (2, 19, 40)]
)
def test_pack_b(isa: str, dtype: type, shape: tuple[int, int, int]) -> None:
    batch, k, n = shape
    rng = np.random.default_rng(0)
    for b in (numbers(rng, shape, dtype), numbers(rng, (batch, n, k), dtype).transpose(0, 2, 1)):
        want = np.zeros((batch, ceil_div(n, 16) * 16, k), dtype)
        want[:, :n] = b.transpose(0, 2, 1)
        want = want.reshape(batch, ceil_div(n, 16), 16, k).transpose(0, 1, 3, 2)
        np.testing.assert_array_equal(pack_b(b, isa), want)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", SUFFIX)
@pytest.mark.parametrize("shape", SHAPES)
def test_matmul(shape: tuple[int, int, int], dtype: type, layout: str) -> None:
    m, n, k = shape
    rng = np.random.default_rng(m * n + k)
    a, b = numbers(rng, (1, 1, m, k), dtype), numbers(rng, (1, 1, k, n), dtype)
    results = [matmul(a, b, isa, layout=layout) for isa in ISAS]
    check(results[0], a, b)
    for isa, other in zip(ISAS[1:], results[1:], strict=True):
        assert same_bits(results[0], other), f"{isa} differs from {ISAS[0]}"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_splits_layouts_and_epilogue(isa: str, layout: str) -> None:
    rng = np.random.default_rng(1)
    a, b = numbers(rng, (2, 3, 37, 290), np.float32), numbers(rng, (2, 3, 290, 75), np.float32)
    whole = matmul(a, b, isa, layout=layout)
    check(whole, a, b)
    cut = matmul(a, b, isa, layout=layout, row_cuts=[1, 14, 50, 111, 112], col_cuts=[16, 64])
    assert same_bits(whole, cut)
    transposed = np.ascontiguousarray(a.transpose(0, 1, 3, 2)).transpose(0, 1, 3, 2)
    assert same_bits(whole, matmul(transposed, b, isa, layout=layout))
    seen = np.zeros((2 * 3 * 37, 75), int)

    def epilogue(_ctx, _ptrs, _dims, r0, r1, c0, c1):
        seen[r0:r1, c0:c1] += 1
        return 0

    matmul(a, b, isa, layout=layout, row_cuts=[100], epilogue=epilogue)
    assert (seen == 1).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", ["rows", "cols"])
def test_broadcast_batch_of_b(isa: str, layout: str) -> None:
    rng = np.random.default_rng(2)
    a, b = numbers(rng, (1, 4, 9, 12), np.float32), numbers(rng, (1, 1, 12, 20), np.float32)
    shared = np.broadcast_to(b, (1, 4, 12, 20))
    check(matmul(a, shared, isa, layout=layout), a, shared)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_empty_and_special(isa: str, layout: str) -> None:
    ones = np.ones((1, 1, 5, 0), np.float32)
    assert (matmul(ones, np.ones((1, 1, 0, 20), np.float32), isa, layout=layout) == 0).all()
    assert (
        matmul(np.ones((1, 1, 0, 3), np.float32), np.ones((1, 1, 3, 4), np.float32), isa).size == 0
    )
    a = np.ones((1, 1, 17, 40), np.float32)
    b = np.ones((1, 1, 40, 21), np.float32)
    a[0, 0, 3, 7], a[0, 0, 4, 1], b[0, 0, 2, 20] = np.nan, np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(matmul(a, b, isa, layout=layout), a @ b)


def test_plain_fma_rounds_once() -> None:
    """The emulated multiply-add of the plain level, on cases that double rounding gets wrong."""
    rng = np.random.default_rng(3)
    bits = rng.integers(0, 1 << 32, (2, 2, 64, 3), np.uint64).astype(np.uint32)
    a, b = bits.view(np.float32)[0], bits.view(np.float32)[1]
    a = np.where(np.isfinite(a), a, np.float32(1.5))[None]
    b = np.where(np.isfinite(b), b, np.float32(1.5)).transpose(0, 2, 1)[None]
    reference = matmul(a, b, ISAS[0])
    for isa in ISAS:
        assert same_bits(reference, matmul(a, b, isa))


def test_error_of_the_epilogue_is_handed_on() -> None:
    a, b = np.ones((1, 1, 20, 4), np.float32), np.ones((1, 1, 4, 40), np.float32)
    with pytest.raises(Exception, match="7"):
        matmul(a, b, ISAS[0], epilogue=lambda *_: 7)
