"""Elementwise choice, logic and bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nir.errors import DTypeError, ShapeError
from nir.ir.op import Op, Sample, Value
from nir.ir.types import TensorType, bool_
from nir.ops.elementwise import _BITS, _INTEGER, _Binary

Grad = Sequence[Any]


class Where(Op):
    """x where condition holds, else y; condition is bool, x and y have one type."""

    condition: Value
    x: Value
    y: Value
    kind = "elementwise"

    def infer(self) -> tuple[TensorType, ...]:
        c, x, y = self.condition.type, self.x.type, self.y.type
        if c.dtype != bool_ or x.dtype != y.dtype:
            raise DTypeError(f"where: expected a bool condition and one dtype, got {c}, {x}, {y}")
        if not c.shape == x.shape == y.shape:
            raise ShapeError(f"where: expected operands of one shape, got {c}, {x}, {y}")
        return (x,)

    def ref(self, condition: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
        return (np.where(condition, x, y),)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        c, ct = operands[0], cotangents[0]
        zero = ct.zeros_like()
        return None, c.where(ct, zero), c.where(zero, ct)

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        c = np.array([True, False, True, False])
        x = np.array([1.0, np.nan, -2.0, 3.0], np.float32)
        y = np.array([0.5, -0.0, np.inf, 2.0], np.float32)
        return [
            Sample((c, np.array([1.0, 2.0, 3.0, 4.0]), np.array([5.0, 6.0, 7.0, 8.0]))),
            Sample((c, x, y), differentiable=False),
            Sample((c, np.full(4, 3), np.arange(4)), differentiable=False),
            Sample((c, c, ~c), differentiable=False),
        ]


class _Logical(_Binary):
    accepts = ("bool",)


class LogicalAnd(_Logical):
    """lhs and rhs, of bools."""

    compute = staticmethod(np.logical_and)


class LogicalOr(_Logical):
    """lhs or rhs, of bools."""

    compute = staticmethod(np.logical_or)


class LogicalXor(_Logical):
    """Exactly one of lhs and rhs, of bools."""

    compute = staticmethod(np.logical_xor)


class BitAnd(_Binary):
    """lhs & rhs, of integers or bools."""

    accepts = _BITS
    compute = staticmethod(np.bitwise_and)


class BitOr(_Binary):
    """lhs | rhs, of integers or bools."""

    accepts = _BITS
    compute = staticmethod(np.bitwise_or)


class BitXor(_Binary):
    """lhs ^ rhs, of integers or bools."""

    accepts = _BITS
    compute = staticmethod(np.bitwise_xor)


def _bits(x: np.ndarray) -> int:
    return x.dtype.itemsize * 8


class _Shift(_Binary):
    accepts = _INTEGER

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        x = np.array([1, -1, 12345, -98765, 0, 2**31 - 1], np.int32)
        n = np.array([0, 1, 31, 4, 40, -1], np.int32)
        return [
            Sample((x, n), differentiable=False),
            Sample((x.astype(np.int64), np.array([3, 63, 64, 2, 1, 8])), differentiable=False),
            Sample(
                (np.array([1, 200, 255], np.uint8), np.array([1, 3, 9], np.uint8)),
                differentiable=False,
            ),
        ]


class ShiftLeft(_Shift):
    """lhs << rhs; 0 where rhs is negative or not below the width."""

    @staticmethod
    def compute(x: np.ndarray, n: np.ndarray) -> np.ndarray:
        ok = (n >= 0) & (n < _bits(x))
        shifted = np.left_shift(x, np.where(ok, n, n.dtype.type(0)))
        return np.asarray(np.where(ok, shifted, x.dtype.type(0)))


class ShiftRight(_Shift):
    """lhs >> rhs, copies of the sign shifted in; the sign alone where rhs is out of range."""

    @staticmethod
    def compute(x: np.ndarray, n: np.ndarray) -> np.ndarray:
        ok = (n >= 0) & (n < _bits(x))
        return np.asarray(np.right_shift(x, np.where(ok, n, n.dtype.type(_bits(x) - 1))))


class ShiftRightLogical(_Shift):
    """lhs >> rhs, zeros shifted in; 0 where rhs is negative or not below the width."""

    @staticmethod
    def compute(x: np.ndarray, n: np.ndarray) -> np.ndarray:
        ok = (n >= 0) & (n < _bits(x))
        unsigned = x.view(f"u{x.dtype.itemsize}")
        shift = np.where(ok, n, n.dtype.type(0)).astype(unsigned.dtype)
        shifted = np.right_shift(unsigned, shift).view(x.dtype)
        return np.asarray(np.where(ok, shifted, x.dtype.type(0)))
