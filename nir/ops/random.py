"""Random numbers from a counter: the same key and counter give the same numbers everywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from nir.errors import DTypeError
from nir.ir.dim import Shape, ceildiv, numbers, prod
from nir.ir.op import Op, Sample, Value
from nir.ir.types import DType, TensorType, bool_, f32, f64, i32, i64

Grad = Sequence[Any]

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)


def philox(key: int, first: int, blocks: int) -> np.ndarray:
    """Philox4x32-10 (Salmon et al., SC 2011) of counters first, first + 1, ...: (blocks, 4) u32."""
    count = np.uint64(first & 0xFFFFFFFFFFFFFFFF) + np.arange(blocks, dtype=np.uint64)
    c = [count & _LOW, count >> np.uint64(32), np.zeros_like(count), np.zeros_like(count)]
    k0, k1 = key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF
    for _ in range(10):
        p0, p1 = _M0 * c[0], _M1 * c[2]
        c = [
            (p1 >> np.uint64(32)) ^ c[1] ^ np.uint64(k0), p1 & _LOW,
            (p0 >> np.uint64(32)) ^ c[3] ^ np.uint64(k1), p0 & _LOW,
        ]  # fmt: skip
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return np.stack(c, axis=-1).astype(np.uint32)


class _Random(Op):
    key: Value
    counter: Value
    kind = "other"

    def _check(self) -> None:
        for name in ("key", "counter"):
            t = getattr(self, name).type
            if t.dtype != i64 or t.shape:
                raise DTypeError(f"{self.name}: expected {name}: i64[], got {t}")

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        return (None,) * len(operands)


_KEY, _COUNTER = np.array(0x123456789ABCDEF), np.array(7)


class RandomBits(_Random):
    """Random i32: element i is word i % 4 of Philox4x32-10's block counter + i // 4.

    The block's number fills words 0 and 1 of Philox's counter, low half first; words 2 and 3 are 0.
    The i64 key gives the two key words, low half first.
    """

    shape: Shape

    def infer(self) -> tuple[TensorType, ...]:
        self._check()
        return (TensorType(i32, self.shape),)

    def ref(self, key: np.ndarray, counter: np.ndarray) -> tuple[np.ndarray, ...]:
        shape = numbers(self.shape)
        n = math.prod(shape)
        words = philox(int(key), int(counter), -(-n // 4)).reshape(-1)[:n]
        return (words.view(np.int32).reshape(shape),)

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        return [Sample((_KEY, _COUNTER), {"shape": s}) for s in ((9,), (2, 3), (), (0,))] + [
            Sample((np.array(-5), np.array(-1)), {"shape": (8,)})
        ]


def _unit(bits: Any, dtype: DType) -> Any:
    """[0, 1) from the upper 24 bits of each word."""
    shifted = bits.shift_right_logical(bits.full_like(8))
    return shifted.cast(dtype) * 2.0**-24


def blocks(shape: Shape) -> Any:
    """Counter values that a draw of ``shape`` uses up."""
    return ceildiv(prod(shape), 4)


class _RandomFloat(_Random):
    shape: Shape
    dtype: DType

    def infer(self) -> tuple[TensorType, ...]:
        self._check()
        if self.dtype not in (f32, f64):
            raise DTypeError(f"{self.name}: expected f32 or f64, got {self.dtype}")
        return (TensorType(self.dtype, self.shape),)

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        return [
            Sample((_KEY, _COUNTER), {"shape": (5, 3), "dtype": f32}),
            Sample((_KEY, _COUNTER), {"shape": (7,), "dtype": f64}),
            Sample((_KEY, _COUNTER), {"shape": (0,), "dtype": f32}),
        ]


class RandomUniform(_RandomFloat):
    """Uniform in [0, 1): multiples of 2**-24, from the words of `RandomBits`."""

    def ref(self, key: np.ndarray, counter: np.ndarray) -> tuple[np.ndarray, ...]:
        (bits,) = RandomBits(self.key, self.counter, self.shape).ref(key, counter)
        return (
            (bits.view(np.uint32) >> np.uint32(8)).astype(self.dtype.numpy)
            * self.dtype.numpy.type(2.0**-24),
        )

    def decompose(self, operands: Grad) -> Grad:
        key, counter = operands
        return (_unit(key.random_bits(counter, self.shape), self.dtype),)


class RandomNormal(_RandomFloat):
    """Standard normal by Box-Muller: sqrt(-2 log(1 - u)) cos(2 pi v).

    u are the uniforms from ``counter`` on, v those of the ceil(n / 4) blocks after them.
    """

    def ref(self, key: np.ndarray, counter: np.ndarray) -> tuple[np.ndarray, ...]:
        draw = RandomUniform(self.key, self.counter, self.shape, self.dtype)
        (u,) = draw.ref(key, counter)
        (v,) = draw.ref(key, counter + blocks(self.shape))
        one, t = u.dtype.type(1), u.dtype.type
        return ((np.sqrt(t(-2) * np.log(one - u)) * np.cos(t(2 * math.pi) * v)).astype(u.dtype),)

    def decompose(self, operands: Grad) -> Grad:
        key, counter = operands
        later = counter + counter.full_like(blocks(self.shape))
        u = _unit(key.random_bits(counter, self.shape), self.dtype)
        v = _unit(key.random_bits(later, self.shape), self.dtype)
        return (((1.0 - u).log() * -2.0).sqrt() * (v * (2 * math.pi)).cos(),)


class RandomBernoulli(Op):
    """True with probability p: where the uniform f32 draw lies below it."""

    key: Value
    counter: Value
    p: Value
    shape: Shape
    kind = "other"

    def infer(self) -> tuple[TensorType, ...]:
        for name, dtype in (("key", i64), ("counter", i64), ("p", f32)):
            t = getattr(self, name).type
            if t.dtype != dtype or t.shape:
                raise DTypeError(f"random_bernoulli: expected {name}: {dtype}[], got {t}")
        return (TensorType(bool_, self.shape),)

    def ref(self, key: np.ndarray, counter: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, ...]:
        (u,) = RandomUniform(self.key, self.counter, self.shape, f32).ref(key, counter)
        return (u < p,)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        return (None, None, None)

    def decompose(self, operands: Grad) -> Grad:
        key, counter, p = operands
        u = _unit(key.random_bits(counter, self.shape), f32)
        return (u.lt(p.broadcast(self.shape, ())),)

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        p = (np.array(0.3, np.float32), np.array(0.0, np.float32), np.array(1.0, np.float32))
        return [Sample((_KEY, _COUNTER, x), {"shape": (3, 5)}) for x in p]
