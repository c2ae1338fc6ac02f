"""Neural-network ops: each has a decomposition into simpler ones, and a gradient worth its name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from nir.errors import DTypeError, ShapeError
from nir.ir.dim import prod
from nir.ir.op import Op, Sample, Value
from nir.ir.types import TensorType, i64

Grad = Sequence[Any]

# Samples in a mixed order; arithmetic, since numpy.random takes 12 ms to import.
_X = ((np.arange(30) * 7 % 30) / 10 - 1.4).astype(np.float32).reshape(2, 3, 5)
_LARGE = np.array([[1e5, -1e5, 0.0], [-np.inf, 1.0, 2.0]], np.float32)


def _float(op: Op, *values: Value | None) -> None:
    types = [v.type for v in values if v is not None]
    if any(t.dtype != types[0].dtype or not t.dtype.is_float for t in types):
        raise DTypeError(f"{op.name}: expected one float dtype, got {', '.join(map(str, types))}")


def _mean(x: np.ndarray, axes: tuple[int, ...], keepdims: bool = False) -> np.ndarray:
    """The mean; that of nothing is nan, without numpy's warning."""
    count = math.prod(x.shape[a] for a in axes)
    return np.asarray(x.sum(axes, keepdims=keepdims) / x.dtype.type(count))


def _wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32) if x.dtype.itemsize == 2 else x


def _others(ndim: int, axis: int) -> tuple[int, ...]:
    return tuple(a for a in range(ndim) if a != axis)


class _AlongAxis(Op):
    x: Value
    axis: int
    kind = "other"

    def infer(self) -> tuple[TensorType, ...]:
        t = self.x.type
        _float(self, self.x)
        if not 0 <= self.axis < t.ndim:
            raise ShapeError(f"{self.name}: axis {self.axis} of a tensor of {t.ndim} axes (x: {t})")
        return (t,)

    def _spread(self, small: Any, like: Any) -> Any:
        return small.broadcast(like.shape, _others(len(like.shape), self.axis))

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        return [
            Sample((_X,), {"axis": 2}),
            Sample((_X.astype(np.float64),), {"axis": 1}),
            Sample((_LARGE,), {"axis": 1}, differentiable=False),
        ]


def _softmax(x: np.ndarray, axis: int) -> np.ndarray:
    with np.errstate(all="ignore"):
        e = np.exp(x - x.max(axis, keepdims=True, initial=-np.inf))
        return np.asarray(e / e.sum(axis, keepdims=True))


class Softmax(_AlongAxis):
    """exp(x) / sum(exp(x)) along ``axis``, stable: the maximum is taken out first."""

    def ref(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        return (_softmax(_wide(x), self.axis).astype(x.dtype),)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        y, ct = results[0], cotangents[0]  # dx = y (dy - sum(dy y))
        return (y * (ct - self._spread((ct * y).sum((self.axis,)), y)),)

    def decompose(self, operands: Grad) -> Grad:
        x = operands[0]
        e = (x - self._spread(x.max((self.axis,)), x)).exp()
        return (e / self._spread(e.sum((self.axis,)), x),)


class LogSoftmax(_AlongAxis):
    """x - logsumexp(x) along ``axis``, stable."""

    def ref(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        wide = _wide(x)
        with np.errstate(all="ignore"):
            moved = wide - wide.max(self.axis, keepdims=True, initial=-np.inf)
            out = moved - np.log(np.exp(moved).sum(self.axis, keepdims=True))
        return (out.astype(x.dtype),)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        y, ct = results[0], cotangents[0]  # dx = dy - softmax(x) sum(dy)
        return (ct - y.exp() * self._spread(ct.sum((self.axis,)), y),)

    def decompose(self, operands: Grad) -> Grad:
        x = operands[0]
        moved = x - self._spread(x.max((self.axis,)), x)
        return (moved - self._spread(moved.exp().sum((self.axis,)).log(), x),)


class LayerNorm(Op):
    """(x - mean) / sqrt(var + eps) over the last axis, times weight, plus bias; var is biased.

    weight and bias have the last axis's shape; either may be absent.
    """

    x: Value
    weight: Value | None
    bias: Value | None
    eps: float
    kind = "other"

    def infer(self) -> tuple[TensorType, ...]:
        t = self.x.type
        _float(self, self.x, self.weight, self.bias)
        for name in ("weight", "bias"):
            v = getattr(self, name)
            if v is not None and v.type.shape != t.shape[-1:]:
                raise ShapeError(
                    f"layer_norm: expected {name} [{t.shape[-1]}], got {v.type} (x: {t})"
                )
        return (t,)

    def ref(self, x: np.ndarray, *affine: np.ndarray) -> tuple[np.ndarray, ...]:
        wide = _wide(x)
        with np.errstate(all="ignore"):
            moved = wide - _mean(wide, (-1,), keepdims=True)
            var = _mean(moved * moved, (-1,), keepdims=True)
            y = moved / np.sqrt(var + wide.dtype.type(self.eps))
            rest = list(affine)
            if self.weight is not None:
                y = y * rest.pop(0)
            if self.bias is not None:
                y = y + rest.pop(0)
        return (y.astype(x.dtype),)

    def _normal(self, x: Any) -> tuple[Any, Any]:
        """((x - mean) * rstd, rstd)."""
        rows, last = tuple(range(x.ndim - 1)), (x.ndim - 1,)
        moved = x - x.mean(last).broadcast(x.shape, rows)
        rstd = ((moved * moved).mean(last) + self.eps).rsqrt().broadcast(x.shape, rows)
        return moved * rstd, rstd

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        # dx = rstd (g - mean(g) - n mean(g n)) with n the normalised x, g = dy * weight.
        x, ct = operands[0], cotangents[0]
        rest = list(operands[1:])
        weight = rest.pop(0) if self.weight is not None else None
        rows, last = tuple(range(x.ndim - 1)), (x.ndim - 1,)
        n, rstd = self._normal(x)
        g = ct if weight is None else ct * weight.broadcast(x.shape, last)
        mean_g = g.mean(last).broadcast(x.shape, rows)
        mean_gn = (g * n).mean(last).broadcast(x.shape, rows)
        out = [rstd * (g - mean_g - n * mean_gn)]
        if weight is not None:
            out.append((ct * n).sum(rows))
        if self.bias is not None:
            out.append(ct.sum(rows))
        return out

    def decompose(self, operands: Grad) -> Grad:
        x, rest = operands[0], list(operands[1:])
        last = (x.ndim - 1,)
        y, _ = self._normal(x)
        if self.weight is not None:
            y = y * rest.pop(0).broadcast(x.shape, last)
        if self.bias is not None:
            y = y + rest.pop(0).broadcast(x.shape, last)
        return (y,)

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        rng = np.random.default_rng(21)
        w, b = rng.standard_normal((2, 5)).astype(np.float32)
        return [
            Sample((_X, w, b), {"eps": 1e-5}),
            Sample((_X,), {"eps": 1e-5, "weight": None, "bias": None}),
            Sample((_X.astype(np.float64), w.astype(np.float64)), {"eps": 1e-3, "bias": None}),
        ]


def _channel_params(op: Op, x: Value, **params: Value) -> None:
    _float(op, x, *params.values())
    t = x.type
    if t.ndim < 2:
        raise ShapeError(f"{op.name}: expected x with a batch and a channel axis, got {t}")
    for name, v in params.items():
        if v.type.shape != t.shape[-1:]:
            raise ShapeError(f"{op.name}: expected {name} [{t.shape[-1]}], got {v.type} (x: {t})")


class BatchNorm(Op):
    """Training batch norm over all axes but the last: (y, mean, var), with the biased variance.

    y = (x - mean) / sqrt(var + eps) * weight + bias (Ioffe and Szegedy, 2015).
    """

    x: Value
    weight: Value
    bias: Value
    eps: float
    kind = "other"

    def infer(self) -> tuple[TensorType, ...]:
        _channel_params(self, self.x, weight=self.weight, bias=self.bias)
        t = self.x.type
        stat = t.with_(shape=t.shape[-1:])
        return t, stat, stat

    def ref(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, ...]:
        wide, axes = _wide(x), tuple(range(x.ndim - 1))
        with np.errstate(all="ignore"):
            mean = _mean(wide, axes)
            moved = wide - mean
            var = _mean(moved * moved, axes)
            y = moved / np.sqrt(var + wide.dtype.type(self.eps)) * weight + bias
        return y.astype(x.dtype), mean.astype(x.dtype), var.astype(x.dtype)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        # dx = weight rstd (dy - mean(dy) - n mean(dy n)), and what flows in through mean and var:
        # d mean = dx / m, d var = 2 (x - mean) dx / m, with m the number of rows.
        (x, weight, _), (_, mean, var) = operands, results
        ct, ct_mean, ct_var = cotangents
        axes, last = tuple(range(x.ndim - 1)), (x.ndim - 1,)
        moved = x - mean.broadcast(x.shape, last)
        count = weight.full_like(prod(x.shape[:-1]))
        dx = dw = db = None
        if ct is not None:
            rstd = (var + self.eps).rsqrt()
            n = moved * rstd.broadcast(x.shape, last)
            db, dw = ct.sum(axes), (ct * n).sum(axes)
            scale = (weight * rstd).broadcast(x.shape, last)
            dx = scale * (
                ct
                - (db / count).broadcast(x.shape, last)
                - n * (dw / count).broadcast(x.shape, last)
            )
        if ct_mean is not None:
            from_mean = (ct_mean / count).broadcast(x.shape, last)
            dx = from_mean if dx is None else dx + from_mean
        if ct_var is not None:
            from_var = (ct_var * 2.0 / count).broadcast(x.shape, last) * moved
            dx = from_var if dx is None else dx + from_var
        return dx, dw, db

    def decompose(self, operands: Grad) -> Grad:
        x, weight, bias = operands
        axes, last = tuple(range(x.ndim - 1)), (x.ndim - 1,)
        mean = x.mean(axes)
        moved = x - mean.broadcast(x.shape, last)
        var = (moved * moved).mean(axes)
        scale = (var + self.eps).rsqrt() * weight
        y = moved * scale.broadcast(x.shape, last) + bias.broadcast(x.shape, last)
        return y, mean, var

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        rng = np.random.default_rng(21)
        w, b = rng.standard_normal((2, 5)).astype(np.float32)
        image = rng.standard_normal((2, 3, 2, 5))
        return [
            Sample((_X[0], w, b), {"eps": 1e-5}),
            Sample((image.astype(np.float32), w, b), {"eps": 1e-5}),
            Sample((image, w.astype(np.float64), b.astype(np.float64)), {"eps": 1e-3}),
        ]


class BatchNormInference(Op):
    """(x - mean) / sqrt(var + eps) * weight + bias, with given statistics over the last axis."""

    x: Value
    weight: Value
    bias: Value
    mean: Value
    var: Value
    eps: float
    kind = "other"

    def infer(self) -> tuple[TensorType, ...]:
        _channel_params(
            self, self.x, weight=self.weight, bias=self.bias, mean=self.mean, var=self.var
        )
        return (self.x.type,)

    def ref(self, x: np.ndarray, *params: np.ndarray) -> tuple[np.ndarray, ...]:
        weight, bias, mean, var = map(_wide, params)
        wide = _wide(x)
        with np.errstate(all="ignore"):
            y = (wide - mean) / np.sqrt(var + wide.dtype.type(self.eps)) * weight + bias
        return (y.astype(x.dtype),)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        x, weight, _, mean, var = operands
        ct = cotangents[0]
        axes, last = tuple(range(x.ndim - 1)), (x.ndim - 1,)
        rstd = (var + self.eps).rsqrt()
        moved = x - mean.broadcast(x.shape, last)
        dx = ct * (weight * rstd).broadcast(x.shape, last)
        centred = (ct * moved).sum(axes)
        # d rstd = -1/2 rstd^3 d var
        return (
            dx,
            centred * rstd,
            ct.sum(axes),
            -dx.sum(axes),
            centred * weight * rstd * rstd * rstd * -0.5,
        )

    def decompose(self, operands: Grad) -> Grad:
        x, weight, bias, mean, var = operands
        last = (x.ndim - 1,)
        scale = ((var + self.eps).rsqrt() * weight).broadcast(x.shape, last)
        return ((x - mean.broadcast(x.shape, last)) * scale + bias.broadcast(x.shape, last),)

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        rng = np.random.default_rng(21)
        w, b, m = rng.standard_normal((3, 5)).astype(np.float32)
        v = np.abs(rng.standard_normal(5)).astype(np.float32) + np.float32(0.1)
        return [
            Sample((_X[0], w, b, m, v), {"eps": 1e-5}),
            Sample(
                (_X.astype(np.float64), *(p.astype(np.float64) for p in (w, b, m, v))),
                {"eps": 1e-3},
            ),
        ]


class CrossEntropy(Op):
    """-log softmax(logits)[target] of each row: logits (N, C), target (N,) i64 -> losses (N,).

    A target outside 0 .. C-1 selects nothing: its loss is logsumexp, its gradient softmax.
    """

    logits: Value
    target: Value
    kind = "other"

    def infer(self) -> tuple[TensorType, ...]:
        x, t = self.logits.type, self.target.type
        _float(self, self.logits)
        if t.dtype != i64:
            raise DTypeError(f"cross_entropy: expected i64 targets, got {t}")
        if x.ndim != 2 or t.shape != x.shape[:1]:
            raise ShapeError(
                f"cross_entropy: expected logits [N,C] and targets [N], got {x} and {t}"
            )
        return (x.with_(shape=x.shape[:1]),)

    def ref(self, logits: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, ...]:
        wide = _wide(logits)
        with np.errstate(all="ignore"):
            top = wide.max(1, keepdims=True, initial=-np.inf)
            moved = wide - top
            hot = np.arange(wide.shape[1]) == target[:, None]
            picked = np.where(hot, moved, 0).sum(1)
            loss = np.log(np.exp(moved).sum(1)) - picked
            loss = np.where(hot.any(1), loss, loss + top[:, 0])
        return (loss.astype(logits.dtype),)

    def _hot(self, logits: Any, target: Any) -> Any:
        classes = target.iota(logits.shape, 1, i64)
        return classes.eq(target.broadcast(logits.shape, (0,)))

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        # d loss = softmax - one_hot(target)
        logits, target = operands
        one_hot = self._hot(logits, target).cast(logits.dtype)
        return (logits.softmax(1) - one_hot) * cotangents[0].broadcast(logits.shape, (0,)), None

    def decompose(self, operands: Grad) -> Grad:
        logits, target = operands
        top = logits.max((1,))
        moved = logits - top.broadcast(logits.shape, (0,))
        hot = self._hot(logits, target)
        picked = hot.where(moved, moved.zeros_like()).sum((1,))
        loss = moved.exp().sum((1,)).log() - picked
        found = hot.max((1,))
        return (found.where(loss, loss + top),)

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        return [
            Sample((_X[0], np.array([0, 4, 2]))),
            Sample((_X[0].astype(np.float64), np.array([3, 3, 1]))),
            Sample((_LARGE[:1], np.array([1])), differentiable=False),
            Sample((_X[0], np.array([-100, 7, 2])), differentiable=False),
            Sample((_X[0][:0], np.zeros(0, np.int64))),
        ]
