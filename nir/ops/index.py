"""Indexing by tensors: gather, scatter-add, and the check of an index that goes elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nir.errors import DTypeError, IndexRangeError, ShapeError
from nir.ir.dim import Dim, prod
from nir.ir.op import OPS, Op, Sample, Value
from nir.ir.types import TensorType, i32, i64

Grad = Sequence[Any]

_X = np.arange(12, dtype=np.float32).reshape(4, 3) / 5


def _check(op: Op, x: Value, indices: Value, axis: int) -> None:
    if not 0 <= axis < x.type.ndim:
        raise ShapeError(f"{op.name}: axis {axis} of a tensor of {x.type.ndim} axes (x: {x.type})")
    if indices.type.dtype not in (i32, i64):
        raise DTypeError(f"{op.name}: expected i32 or i64 indices, got {indices.type}")


def _wrapped(name: str, indices: np.ndarray, size: int) -> np.ndarray:
    """Indices with negative ones counted from the end; out of range is an error."""
    bad = (indices < -size) | (indices >= size)
    if bad.any():
        first = indices[bad].flat[0]
        raise IndexRangeError(f"{name}: index {first} is out of range for an axis of size {size}")
    return np.where(indices < 0, indices + size, indices)


class Take(Op):
    """x at ``indices`` (i32 or i64) along ``axis``: the index's shape stands in the axis's place.

    Negative indices count from the end; one out of range raises IndexRangeError at run time.
    """

    x: Value
    indices: Value
    axis: int
    kind = "other"

    def infer(self) -> tuple[TensorType, ...]:
        _check(self, self.x, self.indices, self.axis)
        s = self.x.type.shape
        return (
            self.x.type.with_(
                shape=(*s[: self.axis], *self.indices.type.shape, *s[self.axis + 1 :])
            ),
        )

    def traffic(self) -> Dim:
        return self.indices.type.nbytes + 2 * self.result.type.nbytes

    def ref(self, x: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, ...]:
        return (np.take(x, _wrapped("take", indices, x.shape[self.axis]), self.axis),)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        x, indices = operands
        return x.zeros_like().scatter_add(indices, cotangents[0], self.axis), None

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        return [
            Sample((_X, np.array([[0, 3], [1, -1], [0, 0]])), {"axis": 0}),
            Sample((_X, np.array([2, 0, 2, -3], np.int32)), {"axis": 1}),
            Sample((_X, np.array(2)), {"axis": 0}),
            Sample((_X, np.zeros(0, np.int64)), {"axis": 0}),
        ]


class CheckIndex(Op):
    """``indices`` (i32 or i64) as they are; one outside 0 .. size-1 raises IndexRangeError.

    Nothing counts from the end. It stands where indices go on into arithmetic, as class labels do.
    """

    indices: Value
    size: Dim
    kind = "other"

    def infer(self) -> tuple[TensorType, ...]:
        if self.indices.type.dtype not in (i32, i64):
            raise DTypeError(f"check_index: expected i32 or i64 indices, got {self.indices.type}")
        return (self.indices.type,)

    def ref(self, indices: np.ndarray) -> tuple[np.ndarray, ...]:
        bad = (indices < 0) | (indices >= self.size)
        if bad.any():
            raise IndexRangeError(
                f"check_index: expected an index from 0 to {self.size - 1}, got {indices[bad][0]}"
            )
        return (indices,)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        return (None,)

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        return [
            Sample((np.array([[0, 3], [1, 2]]),), {"size": 4}),
            Sample((np.array([2, 0], np.int32),), {"size": 3}),
            Sample((np.array(1),), {"size": 2}),
            Sample((np.zeros((0, 2), np.int64),), {"size": 0}),
        ]


def _check_updates(op: Op, x: Value, indices: Value, updates: Value, axis: int) -> TensorType:
    """The type of ``take(x, indices, axis)``. Raises ShapeError for updates of another shape."""
    _check(op, x, indices, axis)
    s = x.type.shape
    expected = x.type.with_(shape=(*s[:axis], *indices.type.shape, *s[axis + 1 :]))
    if updates.type.shape != expected.shape:
        raise ShapeError(f"{op.name}: expected updates {expected}, got {updates.type}")
    return expected


def _changes_places(op: ScatterAdd | Put) -> tuple[tuple[Value, Value], ...]:
    """Some elements of x change, and the others may lie where they are.

    Updates of x's own size might be x seen in another shape.
    """
    same = op.updates.type.nbytes == op.x.type.nbytes
    return () if same else ((op.x, op.result),)


class ScatterAdd(Op):
    """x with ``updates`` added at ``indices`` along ``axis``; repeated indices add up, in order.

    updates has the shape of ``take(x, indices, axis)``.
    """

    x: Value
    indices: Value
    updates: Value
    axis: int
    kind = "other"

    def infer(self) -> tuple[TensorType, ...]:
        _check_updates(self, self.x, self.indices, self.updates, self.axis)
        t, u = self.x.type, self.updates.type
        if u.dtype != t.dtype or t.dtype.kind == "bool":
            raise DTypeError(f"scatter_add: expected one number dtype, got x: {t}, updates: {u}")
        return (t,)

    def takes_over(self) -> tuple[tuple[Value, Value], ...]:
        return _changes_places(self)

    def flops(self) -> Dim:
        return prod(self.updates.type.shape)

    def ref(
        self, x: np.ndarray, indices: np.ndarray, updates: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        out = x.copy()
        index = _wrapped("scatter_add", indices, x.shape[self.axis])
        with np.errstate(all="ignore"):
            where: Any = (*(slice(None),) * self.axis, index)
            np.add.at(out, where, updates)
        return (out,)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        return cotangents[0], None, cotangents[0].take(operands[1], self.axis)

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        i = np.array([[0, 3], [1, -1], [0, 0]])
        j = np.array([2, 0, 2, -3], np.int32)
        rng = np.random.default_rng(1)
        return [
            Sample((_X, i, rng.standard_normal((3, 2, 3)).astype(np.float32)), {"axis": 0}),
            Sample((_X, j, rng.standard_normal((4, 4)).astype(np.float32)), {"axis": 1}),
            Sample((_X, np.zeros(0, np.int64), np.zeros((0, 3), np.float32)), {"axis": 0}),
        ]


class Put(Op):
    """x with ``updates`` in the places ``indices`` along ``axis``; of equal indices the last wins.

    updates has the shape of ``take(x, indices, axis)``. Where x is not read again the result is
    written over it, so that a cache grows without being copied.
    """

    x: Value
    indices: Value
    updates: Value
    axis: int
    kind = "other"

    def infer(self) -> tuple[TensorType, ...]:
        expected = _check_updates(self, self.x, self.indices, self.updates, self.axis)
        if self.updates.type.dtype != expected.dtype:
            raise DTypeError(f"put: expected updates {expected}, got {self.updates.type}")
        return (self.x.type,)

    def takes_over(self) -> tuple[tuple[Value, Value], ...]:
        return _changes_places(self)

    def ref(
        self, x: np.ndarray, indices: np.ndarray, updates: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        out = np.moveaxis(x.copy(), self.axis, 0)
        flat = _wrapped("put", indices, x.shape[self.axis]).reshape(-1)
        before, after = x.shape[: self.axis], x.shape[self.axis + 1 :]
        rows = np.moveaxis(updates.reshape(*before, flat.size, *after), self.axis, 0)
        for i, row in zip(flat, rows, strict=True):
            out[i] = row
        return (np.ascontiguousarray(np.moveaxis(out, 0, self.axis)),)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        x, indices, updates = operands
        ct, n, m = cotangents[0], x.shape[self.axis], indices.type.size
        # An update that a later one replaced has no part in the result: number them, and see whose
        # number is left in its place.
        flat = indices.reshape((m,))
        (number,) = indices.emit(OPS["iota"](shape=(m,), axis=0, dtype=i64))  # type: ignore[call-arg]
        (nobody,) = indices.emit(OPS["full"](value=-1, shape=(n,), dtype=i64))  # type: ignore[call-arg]
        wins = nobody.put(flat, number, 0).take(flat, 0).eq(number).reshape(indices.shape)
        axes = tuple(range(self.axis, self.axis + len(indices.shape)))
        passed = ct.take(indices, self.axis)
        return (
            ct.put(indices, updates.zeros_like(), self.axis),
            None,
            wins.broadcast(updates.shape, axes).where(passed, updates.zeros_like()),
        )

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        i = np.array([[0, 3], [1, -2]])
        j = np.array([2, 0, -2], np.int32)
        rng = np.random.default_rng(1)
        return [
            Sample((_X, i, rng.standard_normal((2, 2, 3)).astype(np.float32)), {"axis": 0}),
            Sample((_X, j, rng.standard_normal((4, 3)).astype(np.float32)), {"axis": 1}),
            Sample((_X, np.zeros(0, np.int64), np.zeros((0, 3), np.float32)), {"axis": 0}),
            Sample((_X > 1, np.array(1), np.ones(3, bool)), {"axis": 0}),
        ]


class TakeAlong(Op):
    """out[..., i, ...] = x[..., indices[..., i, ...], ...] along ``axis`` (PyTorch's gather)."""

    x: Value
    indices: Value
    axis: int
    kind = "other"

    def infer(self) -> tuple[TensorType, ...]:
        _check(self, self.x, self.indices, self.axis)
        t, i = self.x.type, self.indices.type
        if t.ndim != i.ndim or any(
            m != n for a, (m, n) in enumerate(zip(t.shape, i.shape, strict=True)) if a != self.axis
        ):
            raise ShapeError(
                f"take_along: shapes differ beside axis {self.axis}: x: {t}, indices: {i}"
            )
        return (t.with_(shape=i.shape),)

    def traffic(self) -> Dim:
        return self.indices.type.nbytes + 2 * self.result.type.nbytes

    def ref(self, x: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, ...]:
        index = _wrapped("take_along", indices, x.shape[self.axis])
        return (np.take_along_axis(x, index, self.axis),)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        x, indices = operands
        return x.zeros_like().scatter_add_along(indices, cotangents[0], self.axis), None

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        return [
            Sample((_X, np.array([[0, 1, 3], [2, -1, 0]])), {"axis": 0}),
            Sample((_X, np.array([[2], [0], [1], [-3]], np.int32)), {"axis": 1}),
        ]


class ScatterAddAlong(Op):
    """x with updates[..., i, ...] added at index indices[..., i, ...] of ``axis``."""

    x: Value
    indices: Value
    updates: Value
    axis: int
    kind = "other"

    def infer(self) -> tuple[TensorType, ...]:
        _check(self, self.x, self.indices, self.axis)
        t, i, u = self.x.type, self.indices.type, self.updates.type
        if u.shape != i.shape or t.ndim != i.ndim:
            raise ShapeError(f"scatter_add_along: expected updates of shape {i}, got {u} (x: {t})")
        if any(
            m != n for a, (m, n) in enumerate(zip(t.shape, i.shape, strict=True)) if a != self.axis
        ):
            raise ShapeError(
                f"scatter_add_along: shapes differ beside axis {self.axis}: x: {t}, indices: {i}"
            )
        if u.dtype != t.dtype or t.dtype.kind == "bool":
            raise DTypeError(
                f"scatter_add_along: expected one number dtype, got x: {t}, updates: {u}"
            )
        return (t,)

    def flops(self) -> Dim:
        return prod(self.updates.type.shape)

    def ref(
        self, x: np.ndarray, indices: np.ndarray, updates: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        out = x.copy()
        index: list[Any] = list(np.indices(indices.shape, sparse=True))
        index[self.axis] = _wrapped("scatter_add_along", indices, x.shape[self.axis])
        with np.errstate(all="ignore"):
            np.add.at(out, tuple(index), updates)
        return (out,)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        return cotangents[0], None, cotangents[0].take_along(operands[1], self.axis)

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        rng = np.random.default_rng(2)
        i = np.array([[0, 1, 3], [0, -1, 0]])
        return [Sample((_X, i, rng.standard_normal((2, 3)).astype(np.float32)), {"axis": 0})]
