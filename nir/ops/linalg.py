"""Matrix products and the packing of their right operand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nir.errors import DTypeError, NotDifferentiable, ShapeError
from nir.ir.dim import Dim, prod
from nir.ir.op import Op, Sample, Value
from nir.ir.types import TensorType

Grad = Sequence[Any]


def _swap(x: np.ndarray) -> np.ndarray:
    return np.swapaxes(x, -1, -2)


class Matmul(Op):
    """lhs @ rhs over the last two axes: (..., M, K) x (..., K, N) -> (..., M, N).

    Batch axes are equal. ``transpose_lhs`` / ``transpose_rhs`` read that operand with its last two
    axes swapped. Half types accumulate in f32. rhs may have layout "panel16" (see `Pack`): its
    logical shape is the same, and it is then (..., K, N).
    """

    lhs: Value
    rhs: Value
    transpose_lhs: bool = False
    transpose_rhs: bool = False
    kind = "contraction"

    def infer(self) -> tuple[TensorType, ...]:
        a, b = self.lhs.type, self.rhs.type
        shown = f"(lhs: {a}, rhs: {b})"
        if a.ndim < 2 or b.ndim < 2:
            raise ShapeError(f"matmul: expected operands of 2 or more axes {shown}")
        if a.dtype != b.dtype or a.dtype.kind == "bool":
            raise DTypeError(f"matmul: expected operands of one number dtype {shown}")
        if b.layout and self.transpose_rhs:
            raise ShapeError(f"matmul: a packed rhs is (..., K, N), not transposed {shown}")
        m, ka = a.shape[-2:][::-1] if self.transpose_lhs else a.shape[-2:]
        kb, n = b.shape[-2:][::-1] if self.transpose_rhs else b.shape[-2:]
        if ka != kb:
            raise ShapeError(
                f"matmul: inner dimensions differ: {ka} (lhs: {a}) and {kb} (rhs: {b})"
            )
        if a.shape[:-2] != b.shape[:-2]:
            raise ShapeError(f"matmul: batch dimensions differ {shown}")
        return (a.with_(shape=(*a.shape[:-2], m, n)),)

    def flops(self) -> Dim:
        k = self.lhs.type.shape[-2 if self.transpose_lhs else -1]
        return 2 * prod(self.result.type.shape) * k

    def ref(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, ...]:
        a = _swap(a) if self.transpose_lhs else a
        b = _swap(b) if self.transpose_rhs else b
        half = a.dtype.itemsize == 2 and a.dtype.kind not in "iu"
        with np.errstate(all="ignore"):
            if half:
                return (np.matmul(a.astype(np.float32), b.astype(np.float32)).astype(a.dtype),)
            return (np.matmul(a, b),)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        # C = A B: dA = dC B^T, dB = A^T dC; a transposed operand gets its cotangent transposed.
        (a, b), ct = operands, cotangents[0]
        if self.rhs.type.layout:
            raise NotDifferentiable("matmul: weights are packed by a pass, after differentiation")
        ta, tb = self.transpose_lhs, self.transpose_rhs
        da = (
            b.matmul(ct, transpose_lhs=tb, transpose_rhs=True)
            if ta
            else ct.matmul(b, transpose_rhs=not tb)
        )
        db = (
            ct.matmul(a, transpose_lhs=True, transpose_rhs=ta)
            if tb
            else a.matmul(ct, transpose_lhs=not ta)
        )
        return da, db

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        rng = np.random.default_rng(0)
        a, b = rng.standard_normal((5, 3)), rng.standard_normal((3, 4))
        f32 = np.float32
        return [
            Sample((a.astype(f32), b.astype(f32))),
            Sample((a.T.copy(), b), {"transpose_lhs": True}),
            Sample((a.astype(f32), b.T.astype(f32)), {"transpose_rhs": True}),
            Sample(
                (a.T.astype(f32), b.T.astype(f32)), {"transpose_lhs": True, "transpose_rhs": True}
            ),
            Sample(
                (
                    rng.standard_normal((2, 3, 4, 5)).astype(f32),
                    rng.standard_normal((2, 3, 5, 2)).astype(f32),
                )
            ),
            Sample((np.arange(6).reshape(2, 3), np.arange(12).reshape(3, 4)), differentiable=False),
            Sample((a[:, :0].astype(f32), b[:0].astype(f32))),
            Sample((a[:0].astype(f32), b.astype(f32))),
        ]


class Pack(Op):
    """w in layout "panel16": the same matrix, stored in panels of 16 columns for `Matmul`.

    w is (..., K, N), or (..., N, K) with ``transpose``; the result's logical shape is (..., K, N).
    In the reference the layout has no effect.
    """

    w: Value
    transpose: bool = False
    kind = "other"

    def infer(self) -> tuple[TensorType, ...]:
        t = self.w.type
        if t.ndim < 2:
            raise ShapeError(f"pack: expected a matrix, got w: {t}")
        shape = (*t.shape[:-2], t.shape[-1], t.shape[-2]) if self.transpose else t.shape
        return (t.with_(shape=shape, layout="panel16"),)

    def ref(self, w: np.ndarray) -> tuple[np.ndarray, ...]:
        return (np.ascontiguousarray(_swap(w)) if self.transpose else w,)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        ct = cotangents[0]
        n = len(ct.shape)
        return (ct.transpose((*range(n - 2), n - 1, n - 2)) if self.transpose else ct,)

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        w = np.arange(15, dtype=np.float32).reshape(3, 5)
        return [
            Sample((w,), differentiable=False),
            Sample((w,), {"transpose": True}, differentiable=False),
        ]
