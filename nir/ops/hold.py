"""`Hold`: a value that waits for another, so that what is computed from it is computed again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nir.ir.op import Op, Sample, Value
from nir.ir.types import TensorType

Grad = Sequence[object]


class Hold(Op):
    """x, once ``after`` is there.

    Passes do not see through it: what a backward computes from it again is neither merged with
    what the forward computed, nor done before the backward has come to it.
    """

    x: Value
    after: Value
    kind = "other"
    view = True

    def infer(self) -> tuple[TensorType, ...]:
        return (self.x.type,)

    def ref(self, x: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, ...]:
        return (x,)

    def traffic(self) -> int:
        return 0

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        return cotangents[0], None

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        x = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
        return [
            Sample((x, np.array(2, np.float32))),
            Sample((x[:0], x)),
            Sample((np.arange(4, dtype=np.int32), x), differentiable=False),
        ]
