"""Ops without tensor operands: constants and counters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nir.errors import ShapeError
from nir.ir.dim import Dim, Shape, numbers
from nir.ir.op import Op, Sample
from nir.ir.types import DType, TensorType, dtype, f32, i32, i64

Grad = Sequence[Any]


class Full(Op):
    """A tensor of one number. ``value`` may be a symbolic size: the size itself, as a number."""

    value: float | int | bool | Dim
    shape: Shape
    dtype: DType
    kind = "source"

    def infer(self) -> tuple[TensorType, ...]:
        if any(isinstance(d, int) and d < 0 for d in self.shape):
            raise ShapeError(f"full: expected sizes >= 0, got {self.shape}")
        return (TensorType(self.dtype, self.shape),)

    def ref(self) -> tuple[np.ndarray, ...]:
        with np.errstate(all="ignore"):
            return (np.full(numbers(self.shape), np.asarray(self.value).astype(self.dtype.numpy)),)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        return ()

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        return [
            Sample((), {"value": 1.5, "shape": (2, 3), "dtype": f32}),
            Sample((), {"value": -3, "shape": (), "dtype": i64}),
            Sample((), {"value": float("nan"), "shape": (0, 2), "dtype": f32}),
        ]


class Iota(Op):
    """0, 1, 2, ... along ``axis``, the same along the others."""

    shape: Shape
    axis: int
    dtype: DType
    kind = "source"

    def infer(self) -> tuple[TensorType, ...]:
        if not 0 <= self.axis < len(self.shape):
            raise ShapeError(f"iota: axis {self.axis} of a tensor of {len(self.shape)} axes")
        return (TensorType(self.dtype, self.shape),)

    def ref(self) -> tuple[np.ndarray, ...]:
        shape = [1] * len(self.shape)
        shape[self.axis] = -1
        count = np.arange(numbers(self.shape)[self.axis]).astype(self.dtype.numpy).reshape(shape)
        return (np.ascontiguousarray(np.broadcast_to(count, numbers(self.shape))),)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        return ()

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        return [
            Sample((), {"shape": (5,), "axis": 0, "dtype": i64}),
            Sample((), {"shape": (2, 3, 2), "axis": 1, "dtype": f32}),
            Sample((), {"shape": (0, 3), "axis": 0, "dtype": i32}),
        ]


class Constant(Op):
    """A tensor that the graph carries with it."""

    data: np.ndarray
    kind = "source"

    def infer(self) -> tuple[TensorType, ...]:
        return (TensorType(dtype(self.data.dtype), tuple(self.data.shape)),)

    def ref(self) -> tuple[np.ndarray, ...]:
        return (np.ascontiguousarray(self.data).reshape(self.data.shape),)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        return ()

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        return [
            Sample((), {"data": np.array([1.5, -0.0, np.nan], np.float32)}),
            Sample((), {"data": np.arange(6).reshape(2, 3)}),
            Sample((), {"data": np.array(True)}),
        ]
