"""Logarithms of sums of exponentials."""

from __future__ import annotations

from typing import Any

import nir
from nir.needle.lowering import NirOp
from nir.needle.ops.ops_mathematic import floating, over_axes


class LogSoftmax(NirOp):
    """log(softmax(a)) along axis 1 of a matrix."""

    def lower(self, *xs: nir.Tensor) -> nir.Tensor:
        return floating(xs[0]).log_softmax(1)


class LogSumExp(NirOp):
    """log(sum(exp(a))) over ``axes``, all if None; it does not overflow."""

    def __init__(self, axes: Any = None) -> None:
        self.axes = axes

    def lower(self, *xs: nir.Tensor) -> nir.Tensor:
        x = floating(xs[0])
        return over_axes(x.logsumexp, self.axes, x)


def logsoftmax(a: Any) -> Any:
    return LogSoftmax()(a)


def logsumexp(a: Any, axes: Any = None) -> Any:
    return LogSumExp(axes=axes)(a)
