"""Conversion between dtypes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nir.ir.op import Op, Sample, Value
from nir.ir.types import DTYPES, DType, TensorType, f64

Grad = Sequence[Any]


class Cast(Op):
    """x in another dtype.

    Float to integer truncates towards zero, saturates out of range and takes nan to 0; integers
    wrap; to bool is ``x != 0``; to a narrower float rounds to nearest even.
    """

    x: Value
    dtype: DType
    kind = "elementwise"

    def infer(self) -> tuple[TensorType, ...]:
        return (self.x.type.with_(dtype=self.dtype),)

    def ref(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        to = self.dtype.numpy
        floating = x.dtype.kind not in "iub"
        with np.errstate(all="ignore"):
            if self.dtype.kind == "bool":
                return (x != 0,)
            if floating and self.dtype.is_integer:
                info = np.iinfo(to)
                wide = np.nan_to_num(
                    np.trunc(x.astype(np.float64)), nan=0.0, posinf=2e19, neginf=-2e19
                )
                out = np.clip(wide, float(info.min), float(info.max)).astype(to)
                out = np.where(wide >= float(info.max), to.type(info.max), out)
                return (out.astype(to),)
            return (x.astype(to),)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        x = operands[0]
        if not (x.dtype.is_float and self.dtype.is_float):
            return (None,)
        return (cotangents[0].cast(x.dtype),)

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        numbers = np.array([0.0, -0.0, 2.7, -2.7, 1e10, -1e20, np.nan, np.inf], np.float32)
        integers = np.array([-7000, -1, 0, 1, 8000], np.int32)
        bools = np.array([True, False])
        names = ("i64", "i32", "i16", "i8", "u8", "bool", "f64", "f32")
        return [
            Sample((np.array([-2.5, -0.3, 1.7], np.float32),), {"dtype": f64}),
            *(
                Sample((x,), {"dtype": DTYPES[name]}, differentiable=False)
                for x in (numbers, integers, bools)
                for name in names
            ),
        ]
