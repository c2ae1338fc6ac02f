"""Ops that only passes make: `Fused`, a region that becomes one kernel, and `ReducePartial`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import inf
from typing import Any, Literal

import numpy as np

from nir.errors import DTypeError, NotDifferentiable, ShapeError, VerifyError
from nir.frozen import kept
from nir.ir.dim import Dim, Shape, ceildiv, prod
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

    def takes_over(self) -> tuple[tuple[Value, Value], ...]:
        """See `Op.takes_over`."""
        return self.overwritten

    @kept
    def overwritten(self) -> tuple[tuple[Value, Value], ...]:
        """(operand, result) pairs where the result may lie over the operand.

        So it is in maps, in what follows the reductions of a column region, in epilogues but for
        the result that the heavy op has written already, and in row regions for results that no
        pass before the last one over the operand writes.
        """
        body, results = self.body, dict(zip(self.body.outputs, self.results, strict=True))
        if not results or any(isinstance(op, ReducePartial) for op in body.nodes):
            return ()
        space, ready = body.outputs[0].type.shape, dict.fromkeys(results, 0)
        last: Mapping[Value, float] = dict.fromkeys(body.moved, inf)
        match self.form:
            case "row":
                space, ready = _reduced(body), _ready(body)
                last = _last_reads(body, ready)
            case "epilogue":
                del results[body.outputs[accumulator_result(self)]]
        return tuple(
            (outer, r)
            for outer, x in zip(self.inputs, body.inputs, strict=True)
            if x.type.shape == space and self.inputs.count(outer) == 1
            for v, r in results.items()
            if last.get(x, 0) <= ready[v]
            and (v.type.shape, v.type.nbytes) == (space, x.type.nbytes)
        )

    def row_axes(self) -> int | None:
        if self.form != "row":
            return None
        return min(v.type.ndim for op in self.body.nodes for v in op.results if _is_reduction(op))

    def passes(self) -> tuple[int, ...]:
        ready = _ready(self.body) if self.form == "row" else {}
        return tuple(ready.get(v, 0) for v in self.body.outputs)

    def ref_torn(
        self, operands: Sequence[np.ndarray], torn: Sequence[np.ndarray], start: int
    ) -> tuple[np.ndarray, ...]:
        body, ready = self.body, _ready(self.body)
        if self.form != "row" or not start:
            return self.ref(*torn)
        # What passes before this one have reduced is known; all else is computed again.
        known = [op.result for op in body.nodes if _is_reduction(op) and ready[op.result] <= start]
        numbers = evaluate_region(body.with_(outputs=known), operands)
        nodes = [op for op in body.nodes if not set(op.results) & set(known)]
        rest = Graph(body.name, (*body.inputs, *known), nodes, body.outputs)
        return tuple(evaluate_region(rest, (*torn, *numbers)))

    def early_results(self) -> tuple[Value, ...]:
        # The heavy op accumulates in one of the results; the loop after it reads the rest.
        return (self.results[accumulator_result(self)],) if self.form == "epilogue" else ()


def _is_reduction(op: Op) -> bool:
    return op.kind == "reduction"


def _reduced(body: Graph) -> Shape:
    """The shape that the reductions of a row region reduce: its iteration space."""
    return next(op.operands[0].type.shape for op in body.nodes if _is_reduction(op))


def _ready(body: Graph) -> dict[Value, int]:
    """The first pass over a row in which a value is known: one later than what it reduces."""
    ready = dict.fromkeys(body.inputs, 0)
    for op in body.nodes:
        when = max((ready[v] for v in op.operands), default=0) + _is_reduction(op)
        ready |= dict.fromkeys(op.results, when)
    return ready


def _last_reads(body: Graph, ready: Mapping[Value, int]) -> dict[Value, float]:
    """The last pass over a row that needs each value; none is known where a point of the space
    reads other elements than its own.

    Whatever a pass needs is taken to be computed again in it, from the operands.
    """
    last: dict[Value, float] = {v: ready[v] for v in body.outputs}
    for op in reversed(body.nodes):
        when: float = inf
        if _is_reduction(op):
            when = max(ready[v] for v in op.operands)
        elif op.kind == "elementwise":
            when = max(last.get(v, 0) for v in op.results)
        for v in op.operands:
            last[v] = max(last.get(v, 0), when)
    return last


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
