"""Attention and its gradient: softmax(q k^T scale + mask) v as one op, closed under `grad`.

A pass may let both read operands where a projection left them, and write results where the next
one reads them (`_Views`); as traced, every operand is (batch, heads, tokens, features).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import field
from typing import Any

import numpy as np

from nir.errors import DTypeError, NotDifferentiable, ShapeError
from nir.frozen import Frozen
from nir.ir.dim import Dim, Shape, floordiv
from nir.ir.op import Op, Sample, Value
from nir.ir.types import TensorType, i64
from nir.ops.vjp import backward

Grad = Sequence[Any]

AXES = "BHTD"
_ORDERS = ("BHTD", "BTHD", "TBHD", "HBTD", "HTBD", "THBD")
_PLAIN = (AXES, AXES, AXES, AXES)


def _wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32) if x.dtype.itemsize == 2 else x


def order_from(order: str) -> tuple[int, ...]:
    """The transpose that brings axes in ``order`` into that of ``AXES``."""
    return tuple(order.index(a) for a in AXES)


def order_to(order: str) -> tuple[int, ...]:
    """The transpose from the order of ``AXES`` to ``order``."""
    return tuple(AXES.index(a) for a in order)


class Sizes(Frozen):
    """B batches of H heads: T queries of D features, S keys, values of E features."""

    b: Dim
    h: Dim
    t: Dim
    s: Dim
    d: Dim
    e: Dim


def _text(shape: Shape) -> str:
    return f"[{','.join(map(str, shape))}]"


def _by_axis(t: TensorType, order: str) -> dict[str, Dim]:
    return dict(zip(order, t.shape, strict=True))


class _Views(Op):
    """Operands q, k, v and what is common to attention and its gradient.

    ``causal`` lets query t see keys 0 .. t + S - T only. ``mask`` broadcasts to (B, H, T, S): bool,
    True where a query sees a key, or numbers that are added to the scores.
    ``orders`` says in which order the axes of q, k, v and the result (or its cotangent) lie. Heads
    of q, k and v begin at ``first``; they are ``heads``, or all where that is None.
    """

    q: Value
    k: Value
    v: Value
    mask: Value | None
    causal: bool
    scale: float
    orders: tuple[str, str, str, str] = field(default=_PLAIN, kw_only=True)
    first: tuple[Dim, Dim, Dim] = field(default=(0, 0, 0), kw_only=True)
    heads: Dim | None = field(default=None, kw_only=True)
    kind = "other"

    def sizes(self) -> Sizes:
        q, k, v = (
            _by_axis(x.type, o) for x, o in zip((self.q, self.k, self.v), self.orders, strict=False)
        )
        heads = q["H"] if self.heads is None else self.heads
        return Sizes(q["B"], heads, q["T"], k["T"], q["D"], v["D"])

    def _flops(self, of_d: int, of_e: int) -> Dim:
        """Of products over D and over E; causal ones need half."""
        n = self.sizes()
        total = 2 * n.b * n.h * n.t * n.s * (of_d * n.d + of_e * n.e)
        return floordiv(total, 2) if self.causal else total

    def _check(self, *more: Value) -> Sizes:
        q, k, v, mask = self.q.type, self.k.type, self.v.type, self.mask
        shown = f"q: {q}, k: {k}, v: {v}" + (f", mask: {mask.type}" if mask else "")
        if any(
            t.dtype != q.dtype or not t.dtype.is_float for t in (q, k, v, *(m.type for m in more))
        ):
            raise DTypeError(f"{self.name}: expected one float dtype, got {shown}")
        if not q.ndim == k.ndim == v.ndim == 4:
            raise ShapeError(f"{self.name}: expected (batch, heads, tokens, features), got {shown}")
        if len(self.orders) != 4 or any(o not in _ORDERS for o in self.orders):
            raise ShapeError(
                f"{self.name}: expected four orders of {', '.join(_ORDERS)}, got "
                f"{', '.join(self.orders)}"
            )
        n = self.sizes()
        by_axis = [_by_axis(t, o) for t, o in zip((q, k, v), self.orders, strict=False)]
        heads_fit = self.heads is not None or all(a["H"] == n.h for a in by_axis)
        if (
            any(a["B"] != n.b for a in by_axis)
            or not heads_fit
            or by_axis[1]["D"] != n.d
            or by_axis[2]["T"] != n.s
        ):
            raise ShapeError(f"{self.name}: shapes do not fit: {shown}")
        if mask is not None:
            full = (n.b, n.h, n.t, n.s)
            if mask.type.dtype != q.dtype and mask.type.dtype.kind != "bool":
                raise DTypeError(f"{self.name}: expected a mask of bool or {q.dtype}, got {shown}")
            if mask.type.ndim != 4 or any(
                m not in (1, w) for m, w in zip(mask.type.shape, full, strict=True)
            ):
                raise ShapeError(
                    f"{self.name}: expected a mask that broadcasts to {_text(full)}, got {shown}"
                )
        return n

    def _laid(self, sizes: Shape, order: str) -> Shape:
        by_axis = dict(zip(AXES, sizes, strict=True))
        return tuple(by_axis[a] for a in order)

    def _arrays(self, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> list[np.ndarray]:
        """q, k and v as (B, H, T, D), in at least f32."""
        out = []
        h = self.sizes().h
        for x, order, first in zip((q, k, v), self.orders, self.first, strict=False):
            out.append(_wide(x).transpose(order_from(order))[:, first : first + h])
        return out

    def _exprs(self, operands: Grad) -> list[Any]:
        """q, k and v as (B, H, T, D)."""
        out = []
        h = self.sizes().h
        for x, order, first in zip(operands, self.orders, self.first, strict=False):
            x = x if order == AXES else x.transpose(order_from(order))
            if x.shape[1] != h:
                sizes = (x.shape[0], h, *x.shape[2:])
                x = x.slice((0, first, 0, 0), sizes, (1, 1, 1, 1))
            out.append(x)
        return out

    def _scores_array(self, q: np.ndarray, k: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        scores = q @ k.swapaxes(2, 3) * q.dtype.type(self.scale)
        if mask is not None:
            hidden = np.where(mask, 0, -np.inf).astype(q.dtype) if mask.dtype == bool else mask
            scores = scores + _wide(hidden)
        if self.causal:
            t, s = scores.shape[2:]
            scores = np.where(np.arange(s) <= np.arange(t)[:, None] + (s - t), scores, -np.inf)
        return np.asarray(scores, q.dtype)

    def _scores(self, q: Any, k: Any, mask: Any | None) -> Any:
        scores = q.matmul(k, transpose_rhs=True) * self.scale
        lowest = scores.full_like(-math.inf)
        if mask is not None:
            kept = tuple(a for a in range(4) if mask.shape[a] == scores.shape[a])
            spread = mask.reshape(tuple(mask.shape[a] for a in kept)).broadcast(scores.shape, kept)
            if spread.dtype.kind == "bool":
                spread = spread.where(scores.zeros_like(), lowest)
            scores = scores + spread
        if self.causal:
            t, s = scores.shape[2:]
            row = scores.iota((t, s), 0, i64)
            seen = row.iota((t, s), 1, i64).le(row + row.full_like(s - t))
            scores = seen.broadcast(scores.shape, (2, 3)).where(scores, lowest)
        return scores

    def _refuse_views(self) -> None:
        if self.orders != _PLAIN or self.heads is not None:
            raise NotDifferentiable(f"{self.name}: views are made by passes, after differentiation")


def _rows(x: Any, like: Any) -> Any:
    """(B, H, T) along the last axis of ``like``."""
    return x.broadcast(like.shape, (0, 1, 2))


class Attention(_Views):
    """softmax(q k^T scale + mask) v, and the log-sum-exp of each query's scores.

    q (B, H, T, D), k (B, H, S, D), v (B, H, S, E) -> (B, H, T, E) and (B, H, T) (Vaswani et al.,
    2017). A query that sees no key gets 0; its log-sum-exp is inf, so that exp(score - it) is 0.
    """

    def infer(self) -> tuple[TensorType, ...]:
        n, t = self._check(), self.q.type
        return (
            t.with_(shape=self._laid((n.b, n.h, n.t, n.e), self.orders[3])),
            t.with_(shape=(n.b, n.h, n.t)),
        )

    def flops(self) -> Dim:
        return self._flops(1, 1)

    def ref(
        self, q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, ...]:
        wq, wk, wv = self._arrays(q, k, v)
        with np.errstate(all="ignore"):
            scores = self._scores_array(wq, wk, mask)
            top = scores.max(3, keepdims=True, initial=-np.inf)
            top = np.where(np.isneginf(top), 0, top)
            e = np.exp(scores - top)
            total = e.sum(3, keepdims=True)
            out = (e / np.where(total == 0, 1, total)).astype(wq.dtype) @ wv
            lse = np.where(total == 0, np.inf, top + np.log(total))[..., 0]
        laid = np.ascontiguousarray(out.transpose(order_to(self.orders[3])))
        return laid.astype(q.dtype), lse.astype(q.dtype)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        # With P = softmax(S): d P = dO V^T, dS = P (dP - sum(dO O) + d lse), as d lse / dS = P.
        self._refuse_views()
        (q, k, v, *rest), (out, lse), (ct, ct_lse) = operands, results, cotangents
        mask = rest[0] if rest else None
        if ct is None:
            ct, delta = out.zeros_like(), -ct_lse
        else:
            delta = (ct * out).sum((3,))
            delta = delta if ct_lse is None else delta - ct_lse
        common = {"causal": self.causal, "scale": self.scale}
        grads = list(q.attention_grad(k, v, mask, ct, lse, delta, **common))
        if mask is None:
            return grads
        if mask.dtype.kind == "bool":
            return [*grads, None]
        scores = self._scores(q, k, mask)
        p = (scores - _rows(lse, scores)).exp()
        ds = p * (ct.matmul(v, transpose_rhs=True) - _rows(delta, scores))
        summed = tuple(a for a in range(4) if mask.shape[a] != ds.shape[a])
        return [*grads, ds.sum(summed).reshape(mask.shape) if summed else ds]

    def decompose(self, operands: Grad) -> Grad:
        q, k, v = self._exprs(operands[:3])
        scores = self._scores(q, k, operands[3] if self.mask is not None else None)
        top = scores.max((3,))
        top = top.eq(top.full_like(-math.inf)).where(top.zeros_like(), top)
        e = (scores - _rows(top, scores)).exp()
        total = e.sum((3,))
        none = total.eq(total.zeros_like())
        share = e / _rows(none.where(total.full_like(1.0), total), e)
        out = share.matmul(v)
        out = out if self.orders[3] == AXES else out.transpose(order_to(self.orders[3]))
        return out, none.where(top.full_like(math.inf), top + total.log())

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        q, k, v = _operands()
        f = [x.astype(np.float32) for x in (q, k, v)]
        rng = np.random.default_rng(22)
        seen = rng.random((2, 1, 4, 5)) < 0.7
        hiding = np.where(seen, 0.0, -np.inf).astype(np.float32)
        hiding[0, 0, 2] = -np.inf
        no_mask = {"mask": None, "causal": False, "scale": 0.6}
        both = np.concatenate([f[1], f[2]], 1)
        return [
            Sample(tuple(f), no_mask),
            Sample(tuple(f), no_mask | {"causal": True}),
            Sample((np.concatenate((f[0], -f[0]), 2), f[1], f[2]), no_mask),
            Sample((q, k, v), {"mask": None, "causal": True, "scale": 1.0}),
            Sample((*f, seen[:1]), {"causal": False, "scale": 0.6}),
            Sample((*f, rng.standard_normal((1, 2, 4, 5)).astype(np.float32)),
                   {"causal": True, "scale": 0.6}),
            Sample((*f, hiding), {"causal": False, "scale": 0.6}, differentiable=False),
            Sample((*f, seen[:, :, :1]), {"causal": False, "scale": 0.6}),
            Sample(
                (f[0].transpose(0, 2, 1, 3).copy(), both, both.transpose(2, 0, 1, 3).copy()),
                no_mask | {"orders": ("BTHD", "BHTD", "TBHD", "TBHD"), "first": (0, 0, 2),
                           "heads": 2},
                differentiable=False,
            ),
        ]  # fmt: skip


class AttentionGrad(_Views):
    """The gradients of `Attention` in q, k and v, given its log-sum-exp.

    ``ct`` is the result's cotangent and ``delta`` (B, H, T) = sum(ct * result) - the log-sum-exp's
    cotangent. Each gradient lies in its operand's order, of the heads in use. ``joined``: all three
    lie in one tensor of that order with 3 H heads, as one projection made q, k and v.
    """

    ct: Value
    lse: Value
    delta: Value
    joined: bool = field(default=False, kw_only=True)

    def infer(self) -> tuple[TensorType, ...]:
        n, t = self._check(self.ct, self.lse, self.delta), self.q.type
        expected = self._laid((n.b, n.h, n.t, n.e), self.orders[3])
        rows = (n.b, n.h, n.t)
        if (self.ct.type.shape, self.lse.type.shape, self.delta.type.shape) != (
            expected, rows, rows
        ):  # fmt: skip
            raise ShapeError(
                f"attention_grad: expected ct {_text(expected)}, lse and delta {_text(rows)}, got "
                f"{self.ct.type}, {self.lse.type} and {self.delta.type}"
            )
        if self.joined:
            if len(set(self.orders[:3])) != 1 or (n.t, n.d) != (n.s, n.e):
                raise ShapeError("attention_grad: joined gradients have one shape and order")
            return (t.with_(shape=self._laid((n.b, 3 * n.h, n.t, n.d), self.orders[0])),)
        shapes = ((n.t, n.d), (n.s, n.d), (n.s, n.e))
        return tuple(
            t.with_(shape=self._laid((n.b, n.h, *sizes), order))
            for sizes, order in zip(shapes, self.orders, strict=False)
        )

    def flops(self) -> Dim:
        return self._flops(3, 2)

    def ref(self, *operands: np.ndarray) -> tuple[np.ndarray, ...]:
        q, k, v, *masks, ct, lse, delta = operands
        wq, wk, wv = self._arrays(q, k, v)
        wct = _wide(ct).transpose(order_from(self.orders[3]))
        with np.errstate(all="ignore"):
            scores = self._scores_array(wq, wk, masks[0] if masks else None)
            p = np.exp(scores - _wide(lse)[..., None])
            ds = p * (wct @ wv.swapaxes(2, 3) - _wide(delta)[..., None])
            ds = (ds * wq.dtype.type(self.scale)).astype(wq.dtype)
            grads = [ds @ wk, ds.swapaxes(2, 3) @ wq, p.swapaxes(2, 3) @ wct]
        laid = [g.transpose(order_to(o)) for g, o in zip(grads, self.orders, strict=False)]
        if self.joined:
            laid = [np.concatenate(laid, self.orders[0].index("H"))]
        return tuple(np.ascontiguousarray(g).astype(q.dtype) for g in laid)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        # Second order is rare: the gradient of the gradient written out.
        self._refuse_views()
        b = operands[0].builder
        before = len(b.nodes)
        parts = self.decompose(operands)
        seeds = {p.value: ct for p, ct in zip(parts, cotangents, strict=True) if ct is not None}
        found = backward(b, b.nodes[before:], seeds, [x.value for x in operands])
        return [found.get(x.value) for x in operands]

    def decompose(self, operands: Grad) -> Grad:
        q, k, v = self._exprs(operands[:3])
        *masks, ct, lse, delta = operands[3:]
        if self.orders[3] != AXES:
            ct = ct.transpose(order_from(self.orders[3]))
        scores = self._scores(q, k, masks[0] if masks else None)
        p = (scores - _rows(lse, scores)).exp()
        ds = p * (ct.matmul(v, transpose_rhs=True) - _rows(delta, scores)) * self.scale
        grads = [
            ds.matmul(k), ds.matmul(q, transpose_lhs=True), p.matmul(ct, transpose_lhs=True)
        ]  # fmt: skip
        laid = [
            g if o == AXES else g.transpose(order_to(o))
            for g, o in zip(grads, self.orders, strict=False)
        ]
        if self.joined:
            return (laid[0].concat((laid[1], laid[2]), axis=self.orders[0].index("H")),)
        return laid

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        q, k, v = _operands()
        rng = np.random.default_rng(23)
        ct, delta = rng.standard_normal((2, 2, 4, 3)), rng.standard_normal((2, 2, 4))
        lse = 1.5 + rng.random((2, 2, 4))
        f = [x.astype(np.float32) for x in (q, k, v, ct, lse, delta)]
        seen = rng.random((1, 2, 4, 5)) < 0.7
        plain = {"mask": None, "causal": False, "scale": 0.6}
        both = np.concatenate([f[1], f[2]], 1).transpose(0, 2, 1, 3).copy()
        three = np.concatenate([f[0], f[0][::-1], f[1][:, :, :4]], 1).transpose(2, 0, 1, 3).copy()
        turned = f[3].transpose(0, 2, 1, 3).copy()
        return [
            Sample(tuple(f), plain),
            Sample(tuple(f), plain | {"causal": True}),
            Sample((q, k, v, ct, lse, delta), plain),
            Sample((*f[:3], seen, *f[3:]), {"causal": False, "scale": 0.6}),
            Sample(
                (f[0], both, both, turned, *f[4:]),
                plain | {"orders": ("BHTD", "BTHD", "BTHD", "BTHD"), "first": (0, 0, 2),
                         "heads": 2},
                differentiable=False,
            ),
            Sample(
                (three, three, three, turned, *f[4:]),
                plain | {"orders": ("TBHD", "TBHD", "TBHD", "BTHD"), "first": (0, 2, 4),
                         "heads": 2, "joined": True},
                differentiable=False,
            ),
        ]  # fmt: skip


def _operands() -> list[np.ndarray]:
    rng = np.random.default_rng(21)
    return [rng.standard_normal((2, 2, t, 3)) for t in (4, 5, 5)]
