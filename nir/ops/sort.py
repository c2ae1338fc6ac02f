"""Order along an axis: sort and top-k, each with the indices of what it returns.

One total order settles both ops: numbers by size, -0 and +0 as equals, every nan above everything
else. Ascending, that is numpy's order and PyTorch's; descending, PyTorch's. Equals keep their
order, so the result is unique.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nir.errors import IndexRangeError, ShapeError
from nir.ir.op import Op, Sample, Value
from nir.ir.types import TensorType, i64

Grad = Sequence[Any]

_X = np.array(
    [[[0.3, -1.2, 2.5], [1.1, 0.7, -0.4]], [[-2.2, 0.9, 1.6], [0.1, -0.6, 3.1]]], np.float32
)
_TIES = np.array([[1, 3, 3, -0.0], [2, 0.0, 1, -0.0]], np.float32)
_ODD = np.array([[1, np.nan, -np.inf, 0.5], [np.inf, np.nan, 2, np.nan]], np.float32)


def _order(x: np.ndarray, axis: int, descending: bool) -> np.ndarray:
    """Indices (i64) that sort ``x``: argsort, stable in both directions."""
    wide = x.astype(np.float32) if x.dtype.itemsize == 2 and x.dtype.kind not in "iu" else x
    if not descending:
        return np.asarray(np.argsort(wide, axis, kind="stable"), np.int64)
    # From the other end equals come in reverse order, and turning the result round undoes that.
    back = np.flip(np.argsort(np.flip(wide, axis), axis, kind="stable"), axis)
    return np.asarray(x.shape[axis] - 1 - back, np.int64)


def _checked(name: str, t: TensorType, axis: int) -> TensorType:
    if not 0 <= axis < t.ndim:
        raise ShapeError(f"{name}: axis {axis} of a tensor of {t.ndim} axes (x: {t})")
    return t


def _back(x: Any, indices: Any, ct: Any, axis: int) -> Grad:
    # values = take_along(x, indices), and the indices do not move with x.
    return (None if ct is None else x.zeros_like().scatter_add_along(indices, ct, axis),)


class Sort(Op):
    """(x sorted along ``axis``, the i64 indices that its elements had), ascending or descending.

    Stable: equals keep their order, in both directions. nan counts as larger than every number:
    it is last in ascending order and first in descending order. An empty axis stays empty.
    """

    x: Value
    axis: int
    descending: bool = False
    kind = "other"

    def infer(self) -> tuple[TensorType, ...]:
        t = _checked(self.name, self.x.type, self.axis)
        return t, t.with_(dtype=i64)

    def ref(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        indices = _order(x, self.axis, self.descending)
        return np.take_along_axis(x, indices, self.axis), indices

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        return _back(operands[0], results[1], cotangents[0], self.axis)

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        return [
            Sample((_X,), {"axis": 2}),
            Sample((_X,), {"axis": 0, "descending": True}),
            Sample((_X.astype(np.float64),), {"axis": 1}),
            Sample((_TIES,), {"axis": 1}, differentiable=False),
            Sample((_TIES,), {"axis": 1, "descending": True}, differentiable=False),
            Sample((_ODD,), {"axis": 1}, differentiable=False),
            Sample((_ODD,), {"axis": 1, "descending": True}, differentiable=False),
            Sample((np.array([3, -1, 3, 0, -7], np.int32),), {"axis": 0}, differentiable=False),
            Sample((np.array([[True, False, True]]),), {"axis": 1}, differentiable=False),
            Sample((_X[:, :0],), {"axis": 1}, differentiable=False),
        ]


class TopK(Op):
    """The first ``k`` of `Sort` along ``axis``, values and i64 indices: the largest or smallest.

    The largest come in descending order (nan first), the smallest in ascending order (nan last);
    of equals the first ones. An axis shorter than k raises ShapeError, or IndexRangeError at run
    time where its size is symbolic.
    """

    x: Value
    k: int
    axis: int
    largest: bool = True
    kind = "other"

    def infer(self) -> tuple[TensorType, ...]:
        t = _checked(self.name, self.x.type, self.axis)
        size = t.shape[self.axis]
        if self.k < 0 or (isinstance(size, int) and self.k > size):
            raise ShapeError(f"top_k: expected k from 0 to {size}, got {self.k} (x: {t})")
        out = t.with_(shape=(*t.shape[: self.axis], self.k, *t.shape[self.axis + 1 :]))
        return out, out.with_(dtype=i64)

    def ref(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        size = x.shape[self.axis]
        if self.k > size:
            raise IndexRangeError(
                f"top_k: index {self.k - 1} is out of range for an axis of size {size}"
            )
        indices = _order(x, self.axis, self.largest).take(range(self.k), self.axis)
        return np.take_along_axis(x, indices, self.axis), indices

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        return _back(operands[0], results[1], cotangents[0], self.axis)

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        return [
            Sample((_X,), {"k": 2, "axis": 2}),
            Sample((_X,), {"k": 1, "axis": 0, "largest": False}),
            Sample((_X.astype(np.float64),), {"k": 2, "axis": 1}),
            Sample((_TIES,), {"k": 3, "axis": 1}, differentiable=False),
            Sample((_ODD,), {"k": 3, "axis": 1}, differentiable=False),
            Sample((_ODD,), {"k": 2, "axis": 1, "largest": False}, differentiable=False),
            Sample((np.array([3, -1, 3, 0, -7]),), {"k": 2, "axis": 0}, differentiable=False),
            Sample((_X,), {"k": 0, "axis": 1}, differentiable=False),
        ]
