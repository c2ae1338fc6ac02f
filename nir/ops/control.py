"""Control: ops that hold closed graphs, with captures as operands, and calls out of the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nir.errors import DTypeError, NotDifferentiable, ShapeError, TraceError
from nir.ir.bind import bind_shapes, concrete
from nir.ir.dim import Dim
from nir.ir.graph import Builder, Graph
from nir.ir.interp import evaluate_region
from nir.ir.op import Op, Sample, Value
from nir.ir.types import TensorType, bool_, f32
from nir.ops.elementwise import Add, Mul, Neg, Tanh
from nir.ops.expr import Expr
from nir.ops.vjp import vjp

Grad = Sequence[Any]


def _check_region(op: Op, name: str, region: Graph, given: Sequence[TensorType]) -> None:
    if region.input_types != tuple(given):
        raise ShapeError(
            f"{op.name}: {name} takes ({', '.join(map(str, region.input_types))}), "
            f"got ({', '.join(map(str, given))})"
        )


def _floats(types: Sequence[TensorType]) -> list[int]:
    return [i for i, t in enumerate(types) if t.dtype.is_float]


def _spread_grads(count: int, positions: Sequence[int], found: Sequence[Any]) -> list[Any]:
    out: list[Any] = [None] * count
    for i, ct in zip(positions, found, strict=True):
        out[i] = ct
    return out


@dataclass(frozen=True, eq=False, slots=True)
class CustomVjp(Op):
    """A region with a gradient of its own.

    fwd: operands -> results. bwd: operands, results, and a cotangent for each float result -> a
    cotangent for each float operand.
    """

    inputs: tuple[Value, ...]
    fwd: Graph
    bwd: Graph
    kind = "control"

    def infer(self) -> tuple[TensorType, ...]:
        given = tuple(v.type for v in self.inputs)
        _check_region(self, "fwd", self.fwd, given)
        results = self.fwd.output_types
        _check_region(
            self, "bwd", self.bwd, (*given, *results, *(results[i] for i in _floats(results)))
        )
        expected = tuple(given[i] for i in _floats(given))
        if self.bwd.output_types != expected:
            raise ShapeError(
                f"custom_vjp: bwd gives {self.bwd.output_types}, expected a cotangent for each "
                f"float operand: {expected}"
            )
        return results

    def ref(self, *operands: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(evaluate_region(self.fwd, operands))

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        seeds = [cotangents[i] if cotangents[i] is not None else r.zeros_like()
                 for i, r in enumerate(results) if r.dtype.is_float]  # fmt: skip
        b = results[0].builder
        found = b.inline(self.bwd, [e.value for e in (*operands, *results, *seeds)])
        where = _floats([e.type for e in operands])
        return _spread_grads(len(operands), where, [Expr(b, v) for v in found])

    def decompose(self, operands: Grad) -> Grad:
        b = operands[0].builder
        return [Expr(b, v) for v in b.inline(self.fwd, [e.value for e in operands])]

    def regions(self) -> Iterator[tuple[str, Any]]:
        yield "fwd", self.fwd
        yield "bwd", self.bwd

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        t = TensorType(f32, (3,))
        fwd, bwd = Builder("fwd"), Builder("bwd")
        (y,) = fwd.emit(Tanh(fwd.input(t, "x")))
        x, _, ct = (bwd.input(t, n) for n in ("x", "y", "ct"))
        (t2,) = bwd.emit(Tanh(x))
        (sq,) = bwd.emit(Mul(t2, t2))
        (part,) = bwd.emit(Mul(ct, sq))
        (minus,) = bwd.emit(Neg(part))
        (out,) = bwd.emit(Add(ct, minus))
        graphs = {"fwd": fwd.build([y]), "bwd": bwd.build([out])}
        return [Sample((np.array([0.1, -0.7, 1.4], np.float32),), graphs)]


@dataclass(frozen=True, eq=False, slots=True)
class HostCall(Op):
    """A Python callback: ``fn(*arrays)`` returns arrays of the stated ``types``.

    It is called once for each run, has no gradient and cannot be exported.
    """

    inputs: tuple[Value, ...]
    fn: Callable[..., Any]
    types: tuple[TensorType, ...]
    kind = "control"
    pure = False

    def infer(self) -> tuple[TensorType, ...]:
        return self.types

    def ref(self, *operands: np.ndarray) -> tuple[np.ndarray, ...]:
        given = self.fn(*operands)
        out = tuple(
            np.asarray(a) for a in (given if isinstance(given, (tuple, list)) else (given,))
        )
        if len(out) != len(self.types):
            raise TraceError(f"host_call: expected {len(self.types)} results, got {len(out)}")
        for a, t in zip(out, self.types, strict=True):
            if a.dtype != t.dtype.numpy or a.shape != t.shape:
                raise TraceError(f"host_call: expected a {t}, got {a.dtype}{list(a.shape)}")
        return out

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        raise NotDifferentiable("host_call has no gradient: give it one with custom_vjp")

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        attributes = {"fn": np.sort, "types": (TensorType(f32, (3,)),)}
        return [Sample((np.array([3, 1, 2], np.float32),), attributes, differentiable=False)]


@dataclass(frozen=True, eq=False, slots=True)
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
        _check_region(
            self, "body", self.body, [*carries, *slices, *(v.type for v in self.captures)]
        )
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
        carried = _floats(types[:n])
        sliced = _floats(types[n : n + m])
        captured = _floats(types[n + m :])
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
            *_spread_grads(n, carried, found[:k]),
            *_spread_grads(m, sliced, found[s:]),
            *_spread_grads(c, captured, found[k:s]),
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


@dataclass(frozen=True, eq=False, slots=True)
class Cond(Op):
    """The results of one of two regions of the captures, by a bool scalar."""

    predicate: Value
    captures: tuple[Value, ...]
    then_body: Graph
    else_body: Graph
    kind = "control"

    def infer(self) -> tuple[TensorType, ...]:
        p = self.predicate.type
        if p.dtype != bool_ or p.shape:
            raise DTypeError(f"cond: expected a predicate bool[], got {p}")
        given = [v.type for v in self.captures]
        _check_region(self, "then_body", self.then_body, given)
        _check_region(self, "else_body", self.else_body, given)
        if self.then_body.output_types != self.else_body.output_types:
            raise ShapeError(
                f"cond: the bodies return {self.then_body.output_types} and "
                f"{self.else_body.output_types}"
            )
        return self.then_body.output_types

    def ref(self, predicate: np.ndarray, *captures: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(evaluate_region(self.then_body if predicate else self.else_body, captures))

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        predicate, *captures = operands
        b = predicate.builder
        seeds = [cotangents[i] if cotangents[i] is not None else r.zeros_like()
                 for i, r in enumerate(results) if r.dtype.is_float]  # fmt: skip
        where = _floats([e.type for e in captures])
        out = b.emit(
            Cond(
                predicate.value,
                tuple(e.value for e in (*captures, *seeds)),
                vjp(self.then_body, where),
                vjp(self.else_body, where),
            )
        )
        return [None, *_spread_grads(len(captures), where, [Expr(b, v) for v in out])]

    def regions(self) -> Iterator[tuple[str, Any]]:
        yield "then_body", self.then_body
        yield "else_body", self.else_body

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        t = TensorType(f32, (3,))
        yes, no = Builder("then"), Builder("else")
        (a,) = yes.emit(Tanh(yes.input(t, "x")))
        x = no.input(t, "x")
        (m,) = no.emit(Mul(x, x))
        bodies = {"then_body": yes.build([a]), "else_body": no.build([m])}
        data = np.array([0.5, -1.0, 2.0], np.float32)
        return [Sample((np.array(p), data), bodies) for p in (True, False)]
