"""Random ops: known answers, the numbers' layout, and their distribution."""

from __future__ import annotations

import numpy as np
import pytest

from nir.ir.dim import symbol
from nir.ir.graph import Builder
from nir.ir.interp import run
from nir.ir.types import DType, TensorType, f32, f64, i64
from nir.ops.expr import Expr

SCALAR = TensorType(i64)


def draw(
    op: str, key: int, counter: int, *attributes: object, p: float | None = None
) -> np.ndarray:
    b = Builder()
    k, c = (Expr(b, b.input(SCALAR)) for _ in range(2))
    extra = () if p is None else (Expr(b, b.input(TensorType(f32))),)
    graph = b.build([getattr(k, op)(c, *extra, *attributes).value])
    inputs = [np.array(key), np.array(counter)] + ([] if p is None else [np.array(p, np.float32)])
    (out,) = run(graph, inputs)
    return out


def philox4x32(counter: tuple[int, ...], key: tuple[int, int]) -> list[int]:
    """Philox4x32-10 in integers, from its definition (Salmon et al., SC 2011, section 3.3)."""
    x0, x1, x2, x3 = counter
    k0, k1 = key
    mask = 0xFFFFFFFF
    for _ in range(10):
        a, b = x0 * 0xD2511F53, x2 * 0xCD9E8D57
        x0, x1, x2, x3 = (b >> 32) ^ x1 ^ k0, b & mask, (a >> 32) ^ x3 ^ k1, a & mask
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return [x0, x1, x2, x3]


# The known-answer vectors that the authors of Philox publish with their library.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_the_oracle_gives_the_known_answers(counter, key, words) -> None:
    assert [f"{w:08x}" for w in philox4x32(counter, key)] == words.split()


@pytest.mark.parametrize("key", [0, 1, -1, 0x0123456789ABCDEF, -(2**63)])
@pytest.mark.parametrize("first", [0, 7, 2**32 - 2, -1])
def test_bits_are_the_words_of_consecutive_blocks(key: int, first: int) -> None:
    bits = draw("random_bits", key, first, (11,)).view(np.uint32)
    expected: list[int] = []
    for block in range(3):
        n = (first + block) % 2**64
        expected += philox4x32((n & 0xFFFFFFFF, n >> 32, 0, 0), (key % 2**32, (key % 2**64) >> 32))
    assert bits.tolist() == expected[:11]


def test_known_answer_through_the_op() -> None:
    bits = draw("random_bits", 0, 0, (4,)).view(np.uint32)
    assert " ".join(f"{w:08x}" for w in bits) == KNOWN[0][2]


def test_a_shape_only_folds_the_sequence() -> None:
    flat = draw("random_bits", 5, 9, (24,))
    np.testing.assert_array_equal(draw("random_bits", 5, 9, (2, 3, 4)), flat.reshape(2, 3, 4))
    # A later counter goes on where whole blocks end.
    np.testing.assert_array_equal(draw("random_bits", 5, 10, (20,)), flat[4:])


def test_a_symbolic_shape() -> None:
    n = symbol("B")
    b = Builder()
    x, k, c = (Expr(b, b.input(t)) for t in (TensorType(f32, (n, 3)), SCALAR, SCALAR))
    graph = b.build([k.random_normal(c, x.shape, f32).value])
    (out,) = run(graph, [np.zeros((4, 3), np.float32), np.array(1), np.array(2)])
    np.testing.assert_array_equal(out, draw("random_normal", 1, 2, (4, 3), f32))


@pytest.mark.parametrize("dtype", [f32, f64], ids=str)
def test_uniform(dtype: DType) -> None:
    u = draw("random_uniform", 11, 3, (100_000,), dtype)
    assert u.dtype == dtype.numpy and u.min() >= 0 and u.max() < 1
    np.testing.assert_array_equal(u * 2**24, np.floor(u * 2**24))
    assert abs(u.mean() - 0.5) < 0.005 and abs(u.var() - 1 / 12) < 0.002
    counts, _ = np.histogram(u, 16, (0, 1))
    # chi-square with 15 degrees of freedom: 37.7 has probability 0.001
    assert ((counts - 6250) ** 2 / 6250).sum() < 37.7
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.015


@pytest.mark.parametrize("dtype", [f32, f64], ids=str)
def test_normal(dtype: DType) -> None:
    z = draw("random_normal", 12, 3, (100_000,), dtype).astype(np.float64)
    assert np.isfinite(z).all()
    assert abs(z.mean()) < 0.015 and abs(z.var() - 1) < 0.02
    assert abs((z**3).mean()) < 0.05 and abs((z**4).mean() - 3) < 0.15
    assert abs(np.corrcoef(z[:-1], z[1:])[0, 1]) < 0.015


@pytest.mark.parametrize("p", [0.0, 0.1, 0.75, 1.0])
def test_bernoulli(p: float) -> None:
    x = draw("random_bernoulli", 13, 3, (100_000,), p=p)
    assert x.dtype == np.bool_ and abs(x.mean() - p) < 0.006
    if p in (0.0, 1.0):
        assert x.mean() == p


def test_keys_and_counters_give_unlike_numbers() -> None:
    a = draw("random_bits", 1, 0, (1000,))
    for other in (draw("random_bits", 2, 0, (1000,)), draw("random_bits", 1, 1000, (1000,))):
        assert (a == other).sum() <= 1
