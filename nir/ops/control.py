"""Control: branches, functions with gradients of their own, and calls out of the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from nir.errors import DTypeError, NotDifferentiable, ShapeError, TraceError
from nir.ir.graph import Builder, Graph
from nir.ir.interp import evaluate_region
from nir.ir.op import Op, Sample, Value
from nir.ir.types import TensorType, bool_, f32
from nir.ops.elementwise import Add, Mul, Neg, Tanh
from nir.ops.expr import Expr
from nir.ops.regions import check_region, floats, pure, spread_grads
from nir.ops.vjp import vjp

Grad = Sequence[Any]


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
        check_region(self, "fwd", self.fwd, given)
        results = self.fwd.output_types
        check_region(
            self, "bwd", self.bwd, (*given, *results, *(results[i] for i in floats(results)))
        )
        expected = tuple(given[i] for i in floats(given))
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
        where = floats([e.type for e in operands])
        return spread_grads(len(operands), where, [Expr(b, v) for v in found])

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
        check_region(self, "then_body", self.then_body, given)
        check_region(self, "else_body", self.else_body, given)
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
        where = floats([e.type for e in captures])
        out = b.emit(
            Cond(
                predicate.value,
                tuple(e.value for e in (*captures, *seeds)),
                vjp(self.then_body, where),
                vjp(self.else_body, where),
            )
        )
        return [None, *spread_grads(len(captures), where, [Expr(b, v) for v in out])]

    @property
    def pure(self) -> bool:  # type: ignore[override]
        return pure(self)

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
