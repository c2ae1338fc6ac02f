"""Loops: ops that run a region again and again, with captures as operands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from nir.errors import DTypeError, NotDifferentiable, ShapeError
from nir.frozen import replace
from nir.ir.bind import bind_shapes, concrete
from nir.ir.dim import Dim
from nir.ir.graph import Builder, Graph
from nir.ir.interp import evaluate_region
from nir.ir.op import Op, Sample, Value
from nir.ir.types import TensorType, bool_, f32
from nir.ops.control import Cond
from nir.ops.elementwise import Add, Lt, Mul, Tanh
from nir.ops.expr import Expr
from nir.ops.reduce import Sum
from nir.ops.regions import check_region, floats, pure, spread_grads
from nir.ops.source import Full
from nir.ops.vjp import vjp

Grad = Sequence[Any]


class Scan(Op):
    """A loop over the leading axis of ``xs``.

    body: carries, one slice of each x, captures -> carries, slices of the ys. Results: the last
    carries, then the ys stacked, (length, ...). ``reverse`` runs from the last slice to the first.
    """

    init: tuple[Value, ...]
    xs: tuple[Value, ...]
    captures: tuple[Value, ...]
    body: Graph
    length: Dim
    reverse: bool
    kind = "control"

    def infer(self) -> tuple[TensorType, ...]:
        carries = [v.type for v in self.init]
        for v in self.xs:
            if not v.type.shape or v.type.shape[0] != self.length:
                raise ShapeError(f"scan: expected xs of length {self.length}, got {v.type}")
        slices = [v.type.with_(shape=v.type.shape[1:]) for v in self.xs]
        check_region(self, "body", self.body, [*carries, *slices, *(v.type for v in self.captures)])
        out = self.body.output_types
        if list(out[: len(carries)]) != carries:
            raise ShapeError(
                f"scan: body returns carries {out[: len(carries)]}, expected {carries}"
            )
        return (*carries, *(t.with_(shape=(self.length, *t.shape)) for t in out[len(carries) :]))

    def ref(self, *operands: np.ndarray) -> tuple[np.ndarray, ...]:
        n, m = len(self.init), len(self.xs)
        carries, xs, captures = list(operands[:n]), operands[n : n + m], operands[n + m :]
        length: Any = self.length
        ys: list[list[np.ndarray]] = [[] for _ in self.body.outputs[n:]]
        for i in reversed(range(length)) if self.reverse else range(length):
            out = evaluate_region(self.body, [*carries, *(np.asarray(x[i]) for x in xs), *captures])
            carries = list(out[:n])
            for column, y in zip(ys, out[n:], strict=True):
                column.append(y)
        if not ys or length:
            return (*carries, *(np.stack(c[::-1] if self.reverse else c) for c in ys))
        # No step has shown what a slice of ys looks like: its type tells.
        shapes = (
            [c.shape for c in carries] + [x.shape[1:] for x in xs] + [c.shape for c in captures]
        )
        sizes = bind_shapes(self.body.input_types, shapes)
        types = [v.type for v in self.body.outputs[n:]]
        return (*carries, *(np.zeros((0, *concrete(t, sizes)), t.dtype.numpy) for t in types))

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        """A second scan forward that keeps its carries, then one in the other direction.

        The backward body is the vjp of the body: its carries are the cotangents of the carries and
        the sums for the captures, its ys the cotangents of the slices of xs.
        """
        b = results[0].builder
        n, m, c = len(self.init), len(self.xs), len(self.captures)
        xs, captures = operands[n : n + m], operands[n + m :]
        types = self.body.input_types
        carried = floats(types[:n])
        sliced = floats(types[n : n + m])
        captured = floats(types[n + m :])
        saved = self._with_saved(b)
        backward = self._backward_body(carried, sliced, captured)

        def seed(i: int) -> Any:
            return cotangents[i] if cotangents[i] is not None else results[i].zeros_like()

        ys = [i for i in range(n, len(results)) if results[i].dtype.is_float]
        starts = [seed(i) for i in carried] + [captures[i].zeros_like() for i in captured]
        out = b.emit(
            Scan(
                tuple(e.value for e in starts),
                (*saved, *(e.value for e in xs), *(seed(i).value for i in ys)),
                tuple(e.value for e in captures),
                backward,
                self.length,
                not self.reverse,
            )
        )
        found = [Expr(b, v) for v in out]
        k, s = len(carried), len(carried) + len(captured)
        return [
            *spread_grads(n, carried, found[:k]),
            *spread_grads(m, sliced, found[s:]),
            *spread_grads(c, captured, found[k:s]),
        ]

    def _with_saved(self, b: Builder) -> tuple[Value, ...]:
        """The carries that each step starts from, stacked."""
        n = len(self.init)
        body = self.body.with_(outputs=(*self.body.outputs[:n], *self.body.inputs[:n]))
        again = replace(self, body=body, results=(), locs=frozenset())
        return b.emit(again)[n:]

    def _backward_body(self, carried: list[int], sliced: list[int], captured: list[int]) -> Graph:
        n, m = len(self.init), len(self.xs)
        wrt = [*carried, *(n + i for i in sliced), *(n + m + i for i in captured)]
        slope = vjp(self.body, wrt)
        types = self.body.input_types
        outs = self.body.output_types
        b = Builder("backward")
        b.locs = next((op.locs for op in self.body.nodes), self.locs)
        ct_carry = {i: b.input(types[i], f"ct{i}") for i in carried}
        sums = [b.input(types[n + m + i], f"sum{i}") for i in captured]
        carries = [b.input(t, f"carry{i}") for i, t in enumerate(types[:n])]
        slices = [b.input(t, f"x{i}") for i, t in enumerate(types[n : n + m])]
        ct_ys = [b.input(t, f"dy{i}") for i, t in enumerate(outs[n:]) if t.dtype.is_float]
        kept = [b.input(t, f"capture{i}") for i, t in enumerate(types[n + m :])]
        found = b.inline(slope, [*carries, *slices, *kept, *ct_carry.values(), *ct_ys])
        k, s = len(carried), len(sliced)
        added = [b.emit(Add(a, d))[0] for a, d in zip(sums, found[k + s :], strict=True)]
        return b.build([*found[:k], *added, *found[k : k + s]])

    @property
    def pure(self) -> bool:  # type: ignore[override]
        return pure(self)

    def regions(self) -> Iterator[tuple[str, Any]]:
        yield "body", self.body

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        t = TensorType(f32, (2,))
        b = Builder("body")
        h, x, w = (b.input(t, n) for n in ("h", "x", "w"))
        (wh,) = b.emit(Mul(w, h))
        (total,) = b.emit(Add(wh, x))
        (new,) = b.emit(Tanh(total))
        (y,) = b.emit(Mul(new, x))
        body = b.build([new, y])
        rng = np.random.default_rng(8)
        init, w_ = rng.standard_normal((2, 2)).astype(np.float32)
        xs = rng.standard_normal((4, 2)).astype(np.float32)
        return [
            Sample((init, xs, w_), {"body": body, "length": 4, "reverse": r}, arity=(1, 1, 1))
            for r in (False, True)
        ]


class WhileLoop(Op):
    """The body, again and again, as long as the condition holds.

    condition: carries, captures -> bool[]. body: carries, captures -> carries. Results: the
    carries for which the condition was false first; with ``max_trips`` the loop stops after so many
    steps, whatever the condition says then. Its gradient takes time and memory for ``max_trips``
    steps, and there is none without.
    """

    init: tuple[Value, ...]
    captures: tuple[Value, ...]
    condition: Graph
    body: Graph
    max_trips: int | None = None
    kind = "control"

    def infer(self) -> tuple[TensorType, ...]:
        carries = tuple(v.type for v in self.init)
        given = (*carries, *(v.type for v in self.captures))
        check_region(self, "condition", self.condition, given)
        check_region(self, "body", self.body, given)
        predicate = self.condition.output_types
        if predicate != (TensorType(bool_),):
            raise DTypeError(
                f"while_loop: expected a condition that returns bool[], got "
                f"({', '.join(map(str, predicate))})"
            )
        if self.body.output_types != carries:
            raise ShapeError(
                f"while_loop: body returns carries {self.body.output_types}, expected {carries}"
            )
        if self.max_trips is not None and self.max_trips < 0:
            raise ShapeError(f"while_loop: expected max_trips >= 0, got {self.max_trips}")
        return carries

    def ref(self, *operands: np.ndarray) -> tuple[np.ndarray, ...]:
        n = len(self.init)
        carries, captures = list(operands[:n]), operands[n:]
        trips = 0
        while self.max_trips is None or trips < self.max_trips:
            (more,) = evaluate_region(self.condition, [*carries, *captures])
            if not more:
                break
            carries = evaluate_region(self.body, [*carries, *captures])
            trips += 1
        return tuple(carries)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        """Of a scan of ``max_trips`` steps that keep the carries once the condition is false."""
        if self.max_trips is None:
            raise NotDifferentiable(
                "while_loop: a loop without a bound has no gradient: give max_trips, the most "
                "steps that it may take"
            )
        b = results[0].builder
        n = len(self.init)
        again = Scan(
            tuple(e.value for e in operands[:n]),
            (),
            tuple(e.value for e in operands[n:]),
            self._bounded_body(),
            self.max_trips,
            False,
        )
        found = [Expr(b, v) for v in b.emit(again)]
        return replace(again, locs=self.locs).grad(operands, found, cotangents)

    def _bounded_body(self) -> Graph:
        """A step of the scan: a cond of the body and of nothing."""
        n = len(self.init)
        b = Builder("bounded")
        b.locs = self.locs
        inputs = [b.input(t, name) for t, name in
                  zip(self.body.input_types, self.body.input_names, strict=True)]  # fmt: skip
        (more,) = b.inline(self.condition, inputs)
        stop = Builder("stop")
        same = [stop.input(v.type, name) for v, name in
                zip(inputs, self.body.input_names, strict=True)]  # fmt: skip
        step = Cond(more, tuple(inputs), self.body, stop.build(same[:n]))
        return b.build(b.emit(step))

    @property
    def pure(self) -> bool:  # type: ignore[override]
        return pure(self)

    def regions(self) -> Iterator[tuple[str, Any]]:
        yield "condition", self.condition
        yield "body", self.body

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        t = TensorType(f32, (2,))
        cond, body = Builder("condition"), Builder("body")
        h, _ = cond.input(t, "h"), cond.input(t, "w")
        (size,) = cond.emit(Sum(h, (0,)))
        (limit,) = cond.emit(Full(4.0, (), f32))
        (more,) = cond.emit(Lt(size, limit))
        h, w = body.input(t, "h"), body.input(t, "w")
        (new,) = body.emit(Mul(h, w))
        regions = {"condition": cond.build([more]), "body": body.build([new])}
        h_, w_ = np.array([0.5, 0.25], np.float32), np.array([1.5, 1.75], np.float32)
        # All have a bound: tests give these regions other operands, which may never end.
        return [
            Sample((h_, w_), {**regions, "max_trips": 8}, arity=(1, 1)),
            Sample((h_, w_), {**regions, "max_trips": 2}, arity=(1, 1)),  # it is reached
            Sample((h_ + 4, w_), {**regions, "max_trips": 3}, arity=(1, 1)),  # no step
        ]
