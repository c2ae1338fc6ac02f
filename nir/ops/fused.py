"""Ops that only passes make: `Fused`, a region that becomes one kernel, and `ReducePartial`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from nir.errors import DTypeError, NotDifferentiable, ShapeError, VerifyError
from nir.ir.dim import Dim, ceildiv, prod
from nir.ir.graph import Graph
from nir.ir.interp import evaluate_region
from nir.ir.op import Op, Sample, Value
from nir.ir.types import TensorType

Form = Literal["map", "row", "column", "epilogue"]

_REDUCE = {"sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum}


class ReducePartial(Op):
    """Reduce the first ``leading`` axes, flattened to R rows, in chunks of ``chunk`` rows.

    x: [d0, .., dk-1, *rest] with k = leading -> [ceil(R / chunk), *rest]; row c of the result is
    the reduction of rows c*chunk .. min(R, (c+1)*chunk). The chunks depend on the shape alone, so
    threads that share them give the same bits as one. No chunk is empty; R == 0 gives no rows.
    """

    x: Value
    op: str
    chunk: int
    leading: int = 1
    kind = "reduction"

    def infer(self) -> tuple[TensorType, ...]:
        if self.op not in _REDUCE:
            raise DTypeError(f"reduce_partial: op is one of {', '.join(_REDUCE)}, not {self.op!r}")
        if not 1 <= self.leading <= self.x.type.ndim or self.chunk < 1:
            raise ShapeError(
                f"reduce_partial: expected 1 <= leading <= {self.x.type.ndim} and chunk >= 1, "
                f"got leading {self.leading}, chunk {self.chunk} (x: {self.x.type})"
            )
        shape = self.x.type.shape
        rows = ceildiv(prod(shape[: self.leading]), self.chunk)
        return (self.x.type.with_(shape=(rows, *shape[self.leading :])),)

    def ref(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        rows = int(np.prod(x.shape[: self.leading], dtype=np.int64))
        flat = x.reshape(rows, *x.shape[self.leading :])
        starts = np.arange(0, rows, self.chunk)
        if not len(starts):
            return (flat,)
        return (_REDUCE[self.op].reduceat(flat, starts, axis=0).astype(x.dtype),)

    def grad(
        self, operands: Sequence[Any], results: Sequence[Any], cotangents: Sequence[Any]
    ) -> Sequence[Any]:
        raise NotDifferentiable("reduce_partial is made by passes, after differentiation")

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        x = np.arange(42, dtype=np.float32).reshape(7, 3, 2) / 7
        return (
            Sample((x,), {"op": "sum", "chunk": 3, "leading": 1}, differentiable=False),
            Sample((x,), {"op": "max", "chunk": 4, "leading": 2}, differentiable=False),
            Sample((x[:0],), {"op": "min", "chunk": 4, "leading": 1}, differentiable=False),
        )


class Fused(Op):
    """A closed region that becomes one kernel call; its meaning is its body's.

    Bodies are read by pulling: a result's element at an index is an expression of elements of the
    inputs, through elementwise ops and affine movement (broadcast, transpose, slice, flip, and
    reshapes that only add or drop axes of size 1, or that merge or split leading axes while every
    innermost axis stays). ``form`` says what else there is:

    map       nothing; every result has the shape of the iteration space
    row       reductions over the trailing axes of the space, the same axes for all of them;
              results have the shape of the space or of its rows
    column    reductions over the leading axes of the space, the same for all: either each result
              is a `ReducePartial` of an elementwise expression over the space, all with one
              chunk; or they are full reductions (sum, prod, max, min), elementwise ops on the
              reduced shape may follow, and every result has the reduced shape
    epilogue  the first op is a heavy one with a kernel of its own; the rest is a map over the
              space of its result, and reads that result at the element's own index only
    """

    inputs: tuple[Value, ...]
    body: Graph
    form: str
    kind = "other"

    def infer(self) -> tuple[TensorType, ...]:
        given = tuple(v.type for v in self.inputs)
        if given != self.body.input_types:
            raise VerifyError(f"fused: body takes {self.body.input_types}, operands are {given}")
        return self.body.output_types

    def flops(self) -> Dim:
        return sum((op.flops() for op in self.body.nodes), 0)

    def ref(self, *operands: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(evaluate_region(self.body, operands))

    def grad(
        self, operands: Sequence[Any], results: Sequence[Any], cotangents: Sequence[Any]
    ) -> Sequence[Any]:
        raise NotDifferentiable("fused is made by passes, after differentiation")

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        return ()

    def regions(self) -> Iterator[tuple[str, Any]]:
        yield "body", self.body

    def early_results(self) -> tuple[Value, ...]:
        # The heavy op accumulates in one of the results; the loop after it reads the rest.
        return (self.results[accumulator_result(self)],) if self.form == "epilogue" else ()


def accumulator_result(fused: Fused) -> int:
    """The result of an epilogue region in whose storage the heavy op accumulates.

    The heavy result itself where it is stored, else the first result of its dtype.
    """
    heavy = fused.body.nodes[0].results[0]
    if heavy in fused.body.outputs:
        return fused.body.outputs.index(heavy)
    for i, v in enumerate(fused.body.outputs):
        if v.type.dtype == heavy.type.dtype:
            return i
    raise VerifyError(f"fused: no result of dtype {heavy.type.dtype} for the accumulator")
