"""Reductions: the reduced axes drop out of the result's shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from nir.errors import DTypeError, ShapeError
from nir.ir.dim import prod
from nir.ir.op import Op, Sample, Value
from nir.ir.types import TensorType, i64

Grad = Sequence[Any]

_X = np.array(
    [[[0.3, -1.2, 2.5, 0.9], [1.1, 0.2, -0.7, 1.9], [-2.2, 0.6, 1.4, -0.1]],
     [[1.3, 2.2, -0.5, 0.4], [-1.6, 0.8, 0.7, -2.9], [2.1, -0.4, 1.8, 3.3]]],
    np.float32,
)  # fmt: skip


def _kept(ndim: int, axes: Sequence[int]) -> tuple[int, ...]:
    return tuple(a for a in range(ndim) if a not in axes)


def _accumulator(x: np.ndarray) -> np.ndarray:
    """Half types accumulate in f32."""
    return x.astype(np.float32) if x.dtype.itemsize == 2 and x.dtype.kind not in "iu" else x


class _Reduce(Op):
    x: Value
    axes: tuple[int, ...]
    kind = "reduction"
    accepts: ClassVar[tuple[str, ...]] = ("float", "int", "uint")

    def infer(self) -> tuple[TensorType, ...]:
        t = self.x.type
        if list(self.axes) != sorted(set(self.axes)) or any(not 0 <= a < t.ndim for a in self.axes):
            raise ShapeError(
                f"{self.name}: expected ascending axes below {t.ndim}, got {self.axes} (x: {t})"
            )
        if t.dtype.kind not in self.accepts:
            raise DTypeError(f"{self.name}: expected {' or '.join(self.accepts)}, got {t}")
        return (t.with_(shape=tuple(t.shape[a] for a in _kept(t.ndim, self.axes))),)

    def spread(self, small: Any, like: Any) -> Any:
        """A result, or its cotangent, back over the reduced axes."""
        return small.broadcast(like.shape, _kept(len(like.shape), self.axes))

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        ints = np.array([[3, -1, 4], [1, -5, 9]], np.int32)
        out = [
            *(
                Sample((_X,), {"axes": axes})
                for axes in ((2,), (0,), (0, 1), (1,), (0, 2), (0, 1, 2), ())
            ),
            Sample((_X.astype(np.float64),), {"axes": (1, 2)}),
            Sample((_X[:, :0],), {"axes": (1,)}, differentiable=False),
            Sample(
                (np.array([1.0, np.nan, 2.0], np.float32),), {"axes": (0,)}, differentiable=False
            ),
        ]
        if "int" in cls.accepts:
            out.append(Sample((ints,), {"axes": (0,)}, differentiable=False))
        return out


class Sum(_Reduce):
    """The sum; 0 of nothing. Integers wrap."""

    def ref(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        with np.errstate(all="ignore"):
            return (
                np.asarray(_accumulator(x).sum(self.axes, dtype=_accumulator(x).dtype)).astype(
                    x.dtype
                ),
            )

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        return (self.spread(cotangents[0], operands[0]),)


class Mean(_Reduce):
    """The sum divided by the number of elements; nan of nothing."""

    accepts = ("float",)

    def ref(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        count = math.prod(x.shape[a] for a in self.axes)
        with np.errstate(all="ignore"):
            wide = _accumulator(x)
            total = np.asarray(wide.sum(self.axes, dtype=wide.dtype))
            return ((total / wide.dtype.type(count)).astype(x.dtype),)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        x = operands[0]
        count = cotangents[0].full_like(prod(x.shape[a] for a in self.axes))
        return (self.spread(cotangents[0] / count, x),)

    def decompose(self, operands: Grad) -> Grad:
        x = operands[0]
        total = x.sum(self.axes)
        return (total / total.full_like(prod(x.shape[a] for a in self.axes)),)


class Prod(_Reduce):
    """The product; 1 of nothing. The gradient is the product of the others, zeros included."""

    def ref(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        with np.errstate(all="ignore"):
            return (
                np.asarray(_accumulator(x).prod(self.axes, dtype=_accumulator(x).dtype)).astype(
                    x.dtype
                ),
            )

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        # d prod = sum_i (product of the others) dx_i. With one zero only its own term is left,
        # with two none is: the zeros are taken out, and put back by counting.
        x, ct = operands[0], cotangents[0]
        one, zero = x.full_like(1.0), x.zeros_like()
        is_zero = x.eq(zero)
        safe = is_zero.where(one, x)
        zeros = self.spread(is_zero.cast(x.dtype).sum(self.axes), x)
        others = self.spread(safe.prod(self.axes), x) / safe
        left = zeros - is_zero.cast(x.dtype)
        return (left.eq(zero).where(others, zero) * self.spread(ct, x),)


class _Extreme(_Reduce):
    accepts = ("float", "int", "uint", "bool")

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        # Ties share evenly.
        x = operands[0]
        hit = x.eq(self.spread(results[0], x)).cast(x.dtype)
        return (hit * self.spread(cotangents[0] / hit.sum(self.axes), x),)


def _lowest(dtype: np.dtype) -> Any:
    if dtype.kind == "b":
        return False
    return np.iinfo(dtype).min if dtype.kind in "iu" else -np.inf


def _highest(dtype: np.dtype) -> Any:
    if dtype.kind == "b":
        return True
    return np.iinfo(dtype).max if dtype.kind in "iu" else np.inf


class Max(_Extreme):
    """The largest; nan if any is nan; the lowest value of the dtype (-inf) of nothing."""

    def ref(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        return (np.asarray(np.max(x, axis=self.axes, initial=_lowest(x.dtype))).astype(x.dtype),)


class Min(_Extreme):
    """The smallest; nan if any is nan; the highest value of the dtype (inf) of nothing."""

    def ref(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        return (np.asarray(np.min(x, axis=self.axes, initial=_highest(x.dtype))).astype(x.dtype),)


class LogSumExp(_Reduce):
    """log(sum(exp(x))), stable: the maximum is taken out first. -inf of nothing."""

    accepts = ("float",)

    def ref(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        wide = _accumulator(x)
        with np.errstate(all="ignore"):
            top = np.max(wide, axis=self.axes, keepdims=True, initial=-np.inf)
            finite = np.where(np.isfinite(top), top, 0).astype(wide.dtype)
            total = np.exp(wide - finite).sum(self.axes)
            return ((np.log(total) + finite.reshape(total.shape)).astype(x.dtype),)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        x = operands[0]  # d logsumexp = softmax(x) dx
        return ((x - self.spread(results[0], x)).exp() * self.spread(cotangents[0], x),)

    def decompose(self, operands: Grad) -> Grad:
        x = operands[0]
        top = x.max(self.axes)
        # An infinite maximum (all -inf, or an inf) is not taken out: inf - inf is nan.
        inf = top.full_like(math.inf)
        finite = top.abs().eq(inf).where(top.zeros_like(), top)
        return ((x - self.spread(finite, x)).exp().sum(self.axes).log() + finite,)


class _Arg(Op):
    x: Value
    axis: int
    kind = "other"

    def infer(self) -> tuple[TensorType, ...]:
        t = self.x.type
        if not 0 <= self.axis < t.ndim:
            raise ShapeError(f"{self.name}: axis {self.axis} of a tensor of {t.ndim} axes (x: {t})")
        if t.shape[self.axis] == 0:
            raise ShapeError(f"{self.name}: axis {self.axis} is empty (x: {t})")
        return (t.with_(dtype=i64, shape=tuple(t.shape[a] for a in _kept(t.ndim, (self.axis,)))),)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        return (None,)

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        ties = np.array([[1, 3, 3], [2, 2, 1]], np.float32)
        nans = np.array([[1, np.nan, 3], [np.nan, 2, np.nan]], np.float32)
        return [
            Sample((_X,), {"axis": 2}),
            Sample((_X,), {"axis": 0}),
            Sample((ties,), {"axis": 1}),
            Sample((nans,), {"axis": 1}),
            Sample((ties.astype(np.int64),), {"axis": 0}),
        ]


class ArgMax(_Arg):
    """Index (i64) of the largest along ``axis``: the first on ties, the first nan if any."""

    def ref(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        return (np.asarray(np.argmax(x, self.axis)).astype(np.int64),)


class ArgMin(_Arg):
    """Index (i64) of the smallest along ``axis``: the first on ties, the first nan if any."""

    def ref(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        return (np.asarray(np.argmin(x, self.axis)).astype(np.int64),)


class CumSum(Op):
    """Sums of the elements up to and with each one along ``axis``."""

    x: Value
    axis: int
    kind = "other"

    def infer(self) -> tuple[TensorType, ...]:
        t = self.x.type
        if not 0 <= self.axis < t.ndim:
            raise ShapeError(f"cum_sum: axis {self.axis} of a tensor of {t.ndim} axes (x: {t})")
        if t.dtype.kind == "bool":
            raise DTypeError(f"cum_sum: expected float or int, got {t}")
        return (t,)

    def ref(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        wide = _accumulator(x)
        with np.errstate(all="ignore"):
            return (np.cumsum(wide, self.axis, dtype=wide.dtype).astype(x.dtype),)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        # Each element counts in all sums from it on: the sums of the cotangent from the other end.
        return (cotangents[0].flip((self.axis,)).cum_sum(self.axis).flip((self.axis,)),)

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        return [
            Sample((_X,), {"axis": 1}),
            Sample((_X.astype(np.float64),), {"axis": 2}),
            Sample((np.array([3, -1, 4], np.int32),), {"axis": 0}, differentiable=False),
            Sample((_X[:0],), {"axis": 0}, differentiable=False),
        ]
