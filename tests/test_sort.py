"""sort, argsort and topk: values, order of equals, nan, every dtype and layout, gradients."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest
from kernel_harness import ISAS, KernelError, call, guarded, same_bits

import nir
from nir.errors import IndexRangeError, ShapeError
from tests.peers import torch_or_skip

torch = torch_or_skip()

DTYPES = {
    "f32": np.float32, "f64": np.float64, "f16": np.float16, "bf16": ml_dtypes.bfloat16,
    "i64": np.int64, "i32": np.int32, "i16": np.int16, "i8": np.int8, "u8": np.uint8,
}  # fmt: skip
FLOATS = ("f32", "f64", "f16", "bf16")


def values(rng: np.random.Generator, shape: tuple[int, ...], name: str) -> np.ndarray:
    """All kinds of values: large and small, many equals, zeros of both signs, nan of both signs."""
    dtype = DTYPES[name]
    if name not in FLOATS:
        info = np.iinfo(dtype)
        x = rng.integers(info.min, info.max, shape, dtype, endpoint=True)
        return np.where(rng.random(shape) < 0.4, rng.integers(0, 3, shape).astype(dtype), x)
    x = rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 4, shape)
    odd = rng.integers(0, 12, shape)
    specials = [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, 1.0]
    for i, special in enumerate(specials):
        x = np.where(odd == i, special, x)
    return x.astype(dtype)


def order(x: np.ndarray, descending: bool) -> np.ndarray:
    """Python's stable sort of each row of [outer, n, inner], by size, nan above everything."""
    out = np.empty(x.shape, np.int64)
    for r, c in np.ndindex(x.shape[0], x.shape[2]):
        column = [float(v) if x.dtype.kind not in "iu" else int(v) for v in x[r, :, c]]
        keys = [(v != v, 0 if v != v else v) for v in column]
        out[r, :, c] = sorted(range(len(keys)), key=keys.__getitem__, reverse=descending)
    return out


# ---- the kernels ---------------------------------------------------------------------------------


def launch(name: str, isa: str, x: np.ndarray, dims: list[int], n_out: int, scratch: int, cuts=()):
    outer, _, inner = x.shape
    found, memory = guarded((outer, n_out, inner), x.dtype)
    at, memory_at = guarded((outer, n_out, inner), np.int64)
    before = memory.copy(), memory_at.copy()
    options = {"row_cuts": cuts[:1], "col_cuts": cuts[1:], "scratch": scratch}
    call(name, isa, [x, found, at], dims, outer, inner, **options)
    for out, all_, old in ((found, memory, before[0]), (at, memory_at, before[1])):
        start = out.ctypes.data - all_.ctypes.data
        assert (all_[:start] == old[:start]).all()
        assert (all_[start + out.nbytes :] == old[start + out.nbytes :]).all()
    return found.copy(), at.copy()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 7, 1), (2, 200, 1), (2, 50, 3), (1, 1, 2), (2, 0, 2)])
def test_kernels(shape: tuple[int, int, int], dtype: str) -> None:
    x = values(np.random.default_rng(shape[1]), shape, dtype)
    outer, n, inner = shape
    item = 16 if x.itemsize == 8 else 8
    for isa, backward in itertools.product(ISAS, (False, True)):
        # Equals come in their order both ways: of a reversed sort of Python's too.
        want = order(x, backward)
        ordered = np.take_along_axis(x, want, 1)
        dims, bytes_ = [outer, n, inner, int(backward)], 2 * n * item
        for cuts in ((), (outer // 2, inner // 2)):
            found, at = launch(f"nir_sort_{dtype}", isa, x, dims, n, bytes_, cuts)
            np.testing.assert_array_equal(at, want)
            assert found.tobytes() == ordered.tobytes()
            for k in sorted({0, 1, n // 3, n} & set(range(n + 1))):
                found, at = launch(
                    f"nir_top_k_{dtype}", isa, x, [*dims, k], k, k * item, cuts
                )  # fmt: skip
                np.testing.assert_array_equal(at, want[:, :k])
                assert found.tobytes() == ordered[:, :k].tobytes()


@pytest.mark.parametrize("isa", ISAS)
def test_an_axis_shorter_than_k_is_an_error(isa: str) -> None:
    x = np.zeros((1, 3, 1), np.float32)
    with pytest.raises(KernelError) as error:
        launch("nir_top_k_f32", isa, x, [1, 3, 1, 1, 5], 5, 40)
    assert error.value.args == (1, (4, 3))


# ---- Tensors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("dtype", ["f32", "f64", "i64", "u8"])
def test_sort_like_torch(dtype: str, descending: bool, dim: int) -> None:
    x = values(np.random.default_rng(3), (4, 50, 6), dtype)
    found, at = nir.tensor(x).sort(dim, descending)
    want, where = torch.sort(torch.from_numpy(x), dim=dim, descending=descending, stable=True)
    np.testing.assert_array_equal(at.numpy(), where.numpy())
    assert same_bits(found.numpy(), want.numpy())
    np.testing.assert_array_equal(nir.argsort(nir.tensor(x), dim, descending).numpy(), where)
    assert same_bits(nir.sort(nir.tensor(x), dim, descending)[0].numpy(), want.numpy())


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize(("dim", "k"), [(0, 4), (1, 5), (-1, 1), (1, 50), (2, 0)])
def test_topk_like_torch(dim: int, k: int, largest: bool) -> None:
    x = np.random.default_rng(4).permutation(4 * 50 * 6).reshape(4, 50, 6).astype(np.float32)
    found, at = nir.tensor(x).topk(k, dim, largest)
    want, where = torch.from_numpy(x).topk(k, dim, largest)
    np.testing.assert_array_equal(found.numpy(), want.numpy())
    np.testing.assert_array_equal(at.numpy(), where.numpy())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradients_like_torch(dtype: type) -> None:
    rng = np.random.default_rng(5)
    x, v = rng.standard_normal((5, 9)).astype(dtype), rng.standard_normal((5, 9)).astype(dtype)
    ours = nir.Tensor(x, requires_grad=True)
    theirs = torch.from_numpy(x.copy()).requires_grad_()
    for a, b in (
        (ours.sort(0)[0] ** 2, torch.sort(theirs, dim=0)[0] ** 2),
        (ours.sort(1, True)[0] ** 3, torch.sort(theirs, dim=1, descending=True)[0] ** 3),
        (ours.topk(9)[0].sin(), theirs.topk(9)[0].sin()),
    ):
        (a * nir.Tensor(v)).sum().backward()
        (b * torch.from_numpy(v)).sum().backward()
    (ours.topk(2, largest=False)[0] * 3).sum().backward()
    (theirs.topk(2, largest=False)[0] * 3).sum().backward()
    tolerance = 1e-12 if dtype is np.float64 else 1e-5
    np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), tolerance, tolerance)


def test_an_axis_of_symbolic_size() -> None:
    def both(x):
        return x.sort(0)[0], x.topk(3, 0)[0]

    compiled = nir.compile(both, nir.spec("f32[N,2]"))
    for n in (3, 4, 100):
        x = np.random.default_rng(n).standard_normal((n, 2)).astype(np.float32)
        ordered, top = compiled(x)
        np.testing.assert_array_equal(ordered, np.sort(x, 0))
        np.testing.assert_array_equal(top, -np.sort(-x, 0)[:3])
    with pytest.raises(IndexRangeError, match="top_k: expected an index from -2 to 1, got 2"):
        compiled(np.zeros((2, 2), np.float32))


def test_errors_name_the_sizes() -> None:
    x = nir.zeros(2, 3)
    with pytest.raises(ShapeError, match=r"top_k: expected k from 0 to 3, got 4"):
        x.topk(4)
    with pytest.raises(ShapeError, match="sort"):
        x.sort(2)
