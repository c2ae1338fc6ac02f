"""Elementwise ops: every operand has one shape, which is the result's; dtypes agree as stated."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from nir.errors import DeviceError, DTypeError, ShapeError
from nir.ir.op import Op, Sample, Value
from nir.ir.types import TensorType, bool_

Grad = Sequence[Any]

_EDGES = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40], np.float32)
_SMOOTH = np.array([-2.4, -1.1, -0.3, 0.4, 0.9, 1.7], np.float32)
_POSITIVE = np.array([0.1, 0.5, 1.0, 1.7, 3.2, 9.5], np.float32)
_INTS = np.array([-7, -1, 0, 1, 3, 8], np.int32)
_BOOLS = np.array([True, False, True, True, False, False])


def _same(op: Op, operands: Sequence[Value]) -> TensorType:
    first = operands[0].type
    for v in operands[1:]:
        if v.type.shape != first.shape:
            shown = ", ".join(str(o.type) for o in operands)
            raise ShapeError(f"{op.name}: expected operands of one shape, got {shown}")
        if v.type.dtype != first.dtype:
            shown = ", ".join(str(o.type) for o in operands)
            raise DTypeError(f"{op.name}: expected operands of one dtype, got {shown}")
        if v.type.device != first.device:
            raise DeviceError(f"{op.name}: operands on {first.device} and {v.type.device}")
    return first


def _require(op: Op, v: Value, kinds: Sequence[str]) -> None:
    if v.type.dtype.kind not in kinds:
        raise DTypeError(f"{op.name}: expected {' or '.join(kinds)}, got {v.type}")


_FLOAT = ("float",)
_NUMBER = ("float", "int", "uint")
_INTEGER = ("int", "uint")
_BITS = ("int", "uint", "bool")
_ANY = ("float", "int", "uint", "bool")


def _in_f32(fn: Callable[..., np.ndarray], *xs: np.ndarray) -> np.ndarray:
    """Half types compute in f32 and round once."""
    if xs[0].dtype.itemsize == 2 and xs[0].dtype.kind not in "iu":
        return np.asarray(fn(*(x.astype(np.float32) for x in xs)))
    return np.asarray(fn(*xs))


class _Unary(Op):
    x: Value
    kind = "elementwise"
    accepts: ClassVar[tuple[str, ...]] = _FLOAT
    to_bool: ClassVar[bool] = False
    compute: ClassVar[Callable[..., Any]]

    def infer(self) -> tuple[TensorType, ...]:
        _require(self, self.x, self.accepts)
        t = self.x.type
        return (t.with_(dtype=bool_) if self.to_bool else t,)

    def ref(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        with np.errstate(all="ignore"):
            out = _in_f32(self.compute, x)
        return (out.astype(np.bool_ if self.to_bool else x.dtype, copy=False),)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        return (None,)

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        out = []
        if "float" in cls.accepts:
            out += [Sample((_SMOOTH,)), Sample((_EDGES,), differentiable=False)]
            out += [Sample((_SMOOTH.astype(np.float64).reshape(2, 3),))]
        if "int" in cls.accepts:
            out.append(Sample((_INTS,), differentiable=False))
        if "bool" in cls.accepts:
            out.append(Sample((_BOOLS,), differentiable=False))
        return out


class _PositiveUnary(_Unary):
    @classmethod
    def samples(cls) -> Sequence[Sample]:
        return [
            Sample((_POSITIVE,)),
            Sample((_POSITIVE.astype(np.float64),)),
            Sample((_EDGES,), differentiable=False),
            Sample((-_POSITIVE,), differentiable=False),
        ]


class Neg(_Unary):
    """-x; integers wrap at the minimum."""

    accepts = _NUMBER
    compute = staticmethod(np.negative)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        return (-cotangents[0],)  # d(-x) = -dx


class Abs(_Unary):
    """|x|; the gradient at 0 is 0."""

    accepts = _NUMBER
    compute = staticmethod(np.abs)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        return (cotangents[0] * operands[0].sign(),)  # d|x| = sign(x) dx


class Sign(_Unary):
    """-1, 0 or 1; 0 for -0, nan for nan. The gradient is 0."""

    accepts = _NUMBER
    compute = staticmethod(np.sign)


class Exp(_Unary):
    """e**x."""

    compute = staticmethod(np.exp)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        return (cotangents[0] * results[0],)  # d exp(x) = exp(x) dx


class Expm1(_Unary):
    """e**x - 1, accurate near 0."""

    compute = staticmethod(np.expm1)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        return (cotangents[0] * (results[0] + 1.0),)  # d expm1(x) = (expm1(x) + 1) dx


class Log(_PositiveUnary):
    """Natural logarithm: -inf at 0, nan below."""

    compute = staticmethod(np.log)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        return (cotangents[0] / operands[0],)  # d log(x) = dx / x


class Log1p(_PositiveUnary):
    """log(1 + x), accurate near 0."""

    compute = staticmethod(np.log1p)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        return (cotangents[0] / (operands[0] + 1.0),)  # d log1p(x) = dx / (1 + x)


class Sqrt(_PositiveUnary):
    """Square root, correctly rounded: nan below 0, -0 at -0."""

    compute = staticmethod(np.sqrt)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        return (cotangents[0] * 0.5 / results[0],)  # d sqrt(x) = dx / (2 sqrt(x))


class Rsqrt(_PositiveUnary):
    """1 / sqrt(x), as that quotient: inf at 0."""

    @staticmethod
    def compute(x: np.ndarray) -> np.ndarray:
        return np.asarray(x.dtype.type(1) / np.sqrt(x))

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        return (cotangents[0] * -0.5 * results[0] / operands[0],)  # d x^-1/2 = -1/2 x^-3/2 dx


class Tanh(_Unary):
    """Hyperbolic tangent."""

    compute = staticmethod(np.tanh)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        return (cotangents[0] * (1.0 - results[0] * results[0]),)  # d tanh = (1 - tanh^2) dx


class Sigmoid(_Unary):
    """1 / (1 + e**-x), without overflow."""

    @staticmethod
    def compute(x: np.ndarray) -> np.ndarray:
        e = np.exp(-np.abs(x))
        return np.asarray(np.where(x >= 0, 1 / (1 + e), e / (1 + e)))

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        s = results[0]
        return (cotangents[0] * s * (1.0 - s),)  # d sigmoid = s (1 - s) dx


_erf64 = np.vectorize(math.erf, otypes=[np.float64])


class Erf(_Unary):
    """The error function."""

    @staticmethod
    def compute(x: np.ndarray) -> np.ndarray:
        return _erf64(x).reshape(x.shape) if x.size else x

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        x = operands[0]  # d erf(x) = 2/sqrt(pi) exp(-x^2) dx
        return (cotangents[0] * (-(x * x)).exp() * (2 / math.sqrt(math.pi)),)


class Sin(_Unary):
    """Sine of radians."""

    compute = staticmethod(np.sin)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        return (cotangents[0] * operands[0].cos(),)  # d sin(x) = cos(x) dx


class Cos(_Unary):
    """Cosine of radians."""

    compute = staticmethod(np.cos)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        return (-(cotangents[0] * operands[0].sin()),)  # d cos(x) = -sin(x) dx


class Floor(_Unary):
    """The largest integer not above x. The gradient is 0."""

    compute = staticmethod(np.floor)


class Ceil(_Unary):
    """The smallest integer not below x. The gradient is 0."""

    compute = staticmethod(np.ceil)


class Round(_Unary):
    """The nearest integer, halves to even. The gradient is 0."""

    compute = staticmethod(np.rint)


class Trunc(_Unary):
    """The integer part, towards 0. The gradient is 0."""

    compute = staticmethod(np.trunc)


class Relu(_Unary):
    """max(x, 0); nan stays nan, -0 becomes 0; the gradient at 0 is 0."""

    accepts = _NUMBER

    @staticmethod
    def compute(x: np.ndarray) -> np.ndarray:
        return np.where(x <= 0, x.dtype.type(0), x)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        # The result is as good as the operand here, and is stored anyway.
        y, ct = results[0], cotangents[0]
        return (y.gt(y.zeros_like()).where(ct, ct.zeros_like()),)


class LogicalNot(_Unary):
    """not x, of bools."""

    accepts = ("bool",)
    compute = staticmethod(np.logical_not)


class BitNot(_Unary):
    """The complement of each bit."""

    accepts = _BITS
    compute = staticmethod(np.invert)


class IsNan(_Unary):
    """Whether x is nan."""

    to_bool = True
    compute = staticmethod(np.isnan)


class _Binary(Op):
    lhs: Value
    rhs: Value
    kind = "elementwise"
    accepts: ClassVar[tuple[str, ...]] = _NUMBER
    to_bool: ClassVar[bool] = False
    compute: ClassVar[Callable[..., Any]]

    def infer(self) -> tuple[TensorType, ...]:
        t = _same(self, (self.lhs, self.rhs))
        _require(self, self.lhs, self.accepts)
        return (t.with_(dtype=bool_) if self.to_bool else t,)

    def ref(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
        with np.errstate(all="ignore"):
            out = _in_f32(self.compute, x, y)
        return (out.astype(np.bool_ if self.to_bool else x.dtype, copy=False),)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        return (None, None)

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        out = []
        if "float" in cls.accepts:
            other = np.array([1.5, 0.7, -2.0, 3.0, 0.2, -0.8], np.float32)
            out += [
                Sample((_SMOOTH, other)),
                Sample((_SMOOTH.astype(np.float64), other.astype(np.float64))),
            ]
            grid = np.meshgrid(_EDGES, np.append(_EDGES, np.float32(2.0)))
            out.append(Sample((grid[0].ravel(), grid[1].ravel()), differentiable=False))
        if "int" in cls.accepts:
            grid = np.meshgrid(_INTS, np.array([-3, 0, 1, 2, 5], np.int32))
            out.append(Sample((grid[0].ravel(), grid[1].ravel()), differentiable=False))
        if "bool" in cls.accepts:
            out.append(Sample((_BOOLS, ~_BOOLS[::-1]), differentiable=False))
        return out


class Add(_Binary):
    """lhs + rhs; integers wrap."""

    compute = staticmethod(np.add)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        return cotangents[0], cotangents[0]  # d(x + y) = dx + dy


class Sub(_Binary):
    """lhs - rhs; integers wrap."""

    compute = staticmethod(np.subtract)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        return cotangents[0], -cotangents[0]  # d(x - y) = dx - dy


class Mul(_Binary):
    """lhs * rhs; integers wrap."""

    compute = staticmethod(np.multiply)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        (x, y), ct = operands, cotangents[0]
        return ct * y, ct * x  # d(xy) = y dx + x dy


class Div(_Binary):
    """lhs / rhs, of floats."""

    accepts = _FLOAT
    compute = staticmethod(np.divide)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        y, q = operands[1], results[0]
        g = cotangents[0] / y
        return g, -(g * q)  # d(x/y) = dx/y - (x/y) dy/y


def _floor_div(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if x.dtype.kind in "iu":
        safe = np.where(y == 0, y.dtype.type(1), y)
        return np.asarray(np.where(y == 0, x.dtype.type(0), np.floor_divide(x, safe)))
    return np.asarray(np.floor(x / y))


def _mod(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if x.dtype.kind in "iu":
        safe = np.where(y == 0, y.dtype.type(1), y)
        return np.asarray(np.where(y == 0, x.dtype.type(0), np.mod(x, safe)))
    return np.asarray(x - np.floor(x / y) * y)


class FloorDiv(_Binary):
    """floor(lhs / rhs); an integer divided by 0 gives 0. The gradient is 0."""

    compute = staticmethod(_floor_div)


class Mod(_Binary):
    """lhs - floor(lhs / rhs) * rhs, with rhs's sign; an integer modulo 0 gives 0."""

    compute = staticmethod(_mod)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        x, y = operands  # d(x mod y) = dx - floor(x / y) dy
        return cotangents[0], -(cotangents[0] * (x / y).floor())

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        x = np.array([5.3, -5.3, 7.0, 0.4], np.float32)
        y = np.array([2.0, 2.0, -3.5, 1.5], np.float32)
        grid = np.meshgrid(_INTS, np.array([-3, 0, 1, 2, 5], np.int32))
        return [
            Sample((x[[0, 1, 3]], y[[0, 1, 3]])),
            Sample((x, y), differentiable=False),
            Sample((grid[0].ravel(), grid[1].ravel()), differentiable=False),
        ]


class Pow(_Binary):
    """lhs ** rhs, of floats: IEEE's pow. x**0 and 1**y are 1; a negative to a fraction is nan."""

    accepts = _FLOAT
    compute = staticmethod(np.power)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        # d(x^y) = y x^(y-1) dx + x^y log(x) dy; 0 where y is 0, and where x is 0 (for dy).
        (x, y), ct = operands, cotangents[0]
        zero = ct.zeros_like()
        dx = y.eq(zero).where(zero, ct * y * x ** (y - 1.0))
        dy = x.le(zero).where(zero, ct * results[0] * x.gt(zero).where(x, x.full_like(1.0)).log())
        return dx, dy

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        y = np.array([2.0, -1.0, 0.5, 3.0, 0.0, 1.0], np.float32)
        grid = np.meshgrid(_EDGES, np.array([0.0, 2.0, 3.0, -1.0, 0.5, np.nan], np.float32))
        return [
            Sample((_POSITIVE, y + np.float32(0.25))),
            Sample((_POSITIVE.astype(np.float64), y.astype(np.float64) + 0.25)),
            Sample((-_POSITIVE, y), differentiable=False),
            Sample((grid[0].ravel(), grid[1].ravel()), differentiable=False),
        ]


def _pick_grad(op: Op, operands: Grad, cotangents: Grad, wins: str) -> Grad:
    # Ties share: half to each side.
    (x, y), ct = operands, cotangents[0]
    zero, half = ct.zeros_like(), ct * 0.5
    tie = x.eq(y)
    left = getattr(x, wins)(y)
    return tie.where(half, left.where(ct, zero)), tie.where(half, left.where(zero, ct))


class Maximum(_Binary):
    """The larger; nan if either is nan. At a tie the gradient goes half to each."""

    accepts = _ANY
    compute = staticmethod(np.maximum)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        return _pick_grad(self, operands, cotangents, "gt")


class Minimum(_Binary):
    """The smaller; nan if either is nan. At a tie the gradient goes half to each."""

    accepts = _ANY
    compute = staticmethod(np.minimum)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        return _pick_grad(self, operands, cotangents, "lt")


class Eq(_Binary):
    """lhs == rhs; false for nan."""

    accepts = _ANY
    to_bool = True
    compute = staticmethod(np.equal)


class Ne(_Binary):
    """lhs != rhs; true for nan."""

    accepts = _ANY
    to_bool = True
    compute = staticmethod(np.not_equal)


class Lt(_Binary):
    """lhs < rhs; false for nan."""

    accepts = _ANY
    to_bool = True
    compute = staticmethod(np.less)


class Le(_Binary):
    """lhs <= rhs; false for nan."""

    accepts = _ANY
    to_bool = True
    compute = staticmethod(np.less_equal)


class Gt(_Binary):
    """lhs > rhs; false for nan."""

    accepts = _ANY
    to_bool = True
    compute = staticmethod(np.greater)


class Ge(_Binary):
    """lhs >= rhs; false for nan."""

    accepts = _ANY
    to_bool = True
    compute = staticmethod(np.greater_equal)
