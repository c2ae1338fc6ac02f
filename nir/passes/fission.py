"""Fission: products that a scan does not carry leave the loop, as one product over all its steps.

    before the loop   x_t @ w for every t: one product of (steps * rows) rows; a step reads its part
    after the loop    y_t = h_t @ w: the loop stacks h_t, one product follows
    sums over steps   acc + a_t^T @ b_t, as in the gradient of a weight: the loop stacks what varies
                      of a_t and b_t, and one product sums over steps and rows

What lies between such a product and the loop (a bias, a view) goes with it. This trades memory,
one stack for each product, for products of many rows, and for steps that do less one after the
other. So it is done where steps depend on each other and a step's product has few rows; a scan
whose steps do not depend on each other is there to save memory, and stays as it is.

requires: nothing.  ensures: nothing new; sums over steps have another order than the loop's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nir.frozen import replace
from nir.ir.dim import Dim, prod
from nir.ir.graph import Builder, Graph, rebuild
from nir.ir.op import Op, Value
from nir.ir.program import Target
from nir.ops import Add, Broadcast, Concat, Matmul, Neg, Pad, Reshape, Scan, Slice, Sum, Transpose
from nir.ops.expr import Expr
from nir.passes.dce import sweep
from nir.passes.kept import keep_products
from nir.passes.rewrite import in_regions

# Rows of a step's product from which it is as fast by itself as with those of other steps.
_MANY_ROWS = 256


def fission(graph: Graph, target: Target) -> Graph:
    """``graph`` with the products of its scans outside of them, in its regions too."""
    return _split(in_regions(graph, _split))


def _split(graph: Graph) -> Graph:
    if not any(isinstance(op, Scan) for op in graph.nodes):
        return graph

    def visit(b: Builder, op: Op) -> Sequence[Value] | None:
        return _Fission(b, op).run() if isinstance(op, Scan) else None

    out = rebuild(graph, visit)
    return graph if len(out.nodes) == len(graph.nodes) else keep_products(out)


# ---- ops over all steps ------------------------------------------------------------------------

# How an op reads with a leading axis of steps: (op, its operands as Exprs, steps) -> Expr. Operands
# are stacked, all of them.
Stack = Callable[[Any, Sequence[Expr], Dim], Expr]

_VIEWS: Mapping[type[Op], Stack] = {
    Transpose: lambda op, x, n: x[0].transpose((0, *(p + 1 for p in op.perm))),
    Broadcast: lambda op, x, n: x[0].broadcast((n, *op.shape), (0, *(a + 1 for a in op.axes))),
    Reshape: lambda op, x, n: x[0].reshape((n, *op.shape)),
    Slice: lambda op, x, n: x[0].slice((0, *op.starts), (n, *op.sizes), (1, *op.steps)),
    Pad: lambda op, x, n: x[0].pad((0, *op.low), (0, *op.high), op.value),
    Concat: lambda op, x, n: x[0].concat(tuple(x[1:]), axis=op.axis + 1),
    Sum: lambda op, x, n: x[0].sum(tuple(a + 1 for a in op.axes)),
}


def _rows(op: Matmul) -> Dim:
    return prod(op.result.type.shape[:-1])


def _result(op: Op) -> Value | None:
    """The result of an op that has one."""
    return op.results[0] if len(op.results) == 1 else None


def _few(rows: Dim) -> bool:
    return not isinstance(rows, int) or rows < _MANY_ROWS


@dataclass
class _Fission:
    """One scan, in the builder of the graph that it stands in."""

    b: Builder
    op: Scan
    carried: set[Value] = field(default_factory=set)  # values that depend on a carry
    varying: set[Value] = field(default_factory=set)  # values that differ from step to step
    stacks: dict[Value, Expr] = field(default_factory=dict)
    fixed: dict[Value, Value] = field(default_factory=dict)
    new_ys: list[Value] = field(default_factory=list)

    def run(self) -> Sequence[Value] | None:
        op, body = self.op, self.op.body
        n, m = len(op.init), len(op.xs)
        self.xs = dict(zip(body.inputs[n : n + m], op.xs, strict=True))
        self.fixed = dict(zip(body.inputs[n + m :], op.captures, strict=True))
        self.sums = self.find_sums()
        real = [i for i in range(n) if i not in self.sums]
        if not real:
            return None
        self.mark(real)
        self.early = self.find_early()
        self.late = self.find_late(real)
        self.sums = {i: d for i, d in self.sums.items() if self.summable(d)}
        if not (self.early or self.late or self.sums):
            return None
        return self.rewrite()

    # ---- what depends on what ------------------------------------------------------------------

    def find_sums(self) -> dict[int, Value]:
        """Carries that only add something up: their number, and what each step adds."""
        body, found = self.op.body, {}
        outputs = list(body.outputs)
        for i in range(len(self.op.init)):
            carry, out = body.inputs[i], body.outputs[i]
            add = body.producer.get(out)
            if not isinstance(add, Add) or carry not in (add.lhs, add.rhs) or add.lhs is add.rhs:
                continue
            alone = body.users[carry] == [add] and carry not in outputs
            if alone and not body.users[out] and outputs.count(out) == 1:
                found[i] = add.rhs if add.lhs is carry else add.lhs
        return found

    def mark(self, real: Sequence[int]) -> None:
        body = self.op.body
        sums = {body.inputs[i] for i in self.sums}
        self.carried = {body.inputs[i] for i in real} | sums
        self.varying = self.carried | set(self.xs)
        for op in body.nodes:
            if not op.pure or any(v in self.carried for v in op.operands):
                self.carried.update(op.results)
            if not op.pure or any(v in self.varying for v in op.operands):
                self.varying.update(op.results)

    def stackable(self, op: Op) -> bool:
        """Whether ``op`` can be one op over all steps."""
        if len(op.results) != 1 or not op.pure:
            return False
        if isinstance(op, Matmul):
            one = (op.lhs in self.varying) != (op.rhs in self.varying)
            return one and op.result.type.ndim == 2 and not op.rhs.type.layout
        return op.kind == "elementwise" or type(op) in _VIEWS

    def find_early(self) -> set[Value]:
        """Results of products that need no carry, and of what follows such a product alone."""
        body = self.op.body
        ready = set(self.xs)
        found: set[Value] = set()
        for op in body.nodes:
            if any(v not in ready and v in self.varying for v in op.operands):
                continue
            if _result(op) not in self.varying or not self.stackable(op):
                continue
            ready.update(op.results)
            if isinstance(op, Matmul):
                if _few(_rows(op)):
                    found.add(op.result)
            elif op.kind == "elementwise" and all(
                v not in self.varying or (v in found and len(body.users[v]) == 1)
                for v in op.operands
            ):
                found.add(op.result)
        return found

    def find_late(self, real: Sequence[int]) -> set[Value]:
        """Results of products that no carry needs, and of all that is computed from them."""
        body = self.op.body
        live = {body.outputs[i] for i in real}
        tail: set[Op] = set()
        free: set[Value] = set()
        added = set(self.sums.values())
        for op in reversed(body.nodes):
            if any(v in live for v in op.results) or not op.pure:
                live.update(op.operands)
                continue
            tail.add(op)
            users = [u for v in op.results for u in body.users[v]]
            goes = all(_result(u) in free or self.adds(u) for u in users)
            varies = _result(op) in self.varying and _result(op) not in self.early
            if goes and varies and self.stackable(op) and not self.adds(op):
                free.add(op.result)
        found: set[Value] = set()
        for op in body.nodes:
            if op in tail and _result(op) in free:
                heavy = isinstance(op, Matmul) and _few(_rows(op)) and op.result not in added
                if heavy or any(v in found for v in op.operands):
                    found.add(op.result)
        return found

    def adds(self, op: Op) -> bool:
        """Whether ``op`` is the addition of a sum over steps."""
        outputs = self.op.body.outputs
        return any(_result(op) is outputs[i] for i in self.sums)

    def summable(self, v: Value) -> bool:
        """Whether the sum of ``v`` over the steps is worth taking outside."""
        op, body = self.op.body.producer.get(v), self.op.body
        if v in self.late:
            return True
        if op is None or v not in self.varying or v in body.outputs or len(body.users[v]) > 1:
            return False
        match op:
            case Matmul():
                inner = op.lhs.type.shape[-2 if op.transpose_lhs else -1]
                both = op.lhs in self.varying and op.rhs in self.varying
                return op.result.type.ndim == 2 and both and _few(inner)
            case Transpose() | Neg() | Reshape():
                return self.summable(op.x)
            case Add():
                return self.summable(op.lhs) and self.summable(op.rhs)
            case Sum():
                # It costs no stack of its own where a product needs the same one.
                return any(isinstance(u, Matmul) for u in body.users[op.x])
        return False

    # ---- the scan that is left -----------------------------------------------------------------

    def rewrite(self) -> Sequence[Value]:
        op, body, b = self.op, self.op.body, self.b
        n, m = len(op.init), len(op.xs)
        outside = self.early | self.late
        keep = [i for i in range(n) if i not in self.sums]
        ys = [k for k in range(n, len(body.outputs)) if body.outputs[k] not in outside]
        self.new_ys = self.read_outside(ys)
        nodes = [o for o in body.nodes if _result(o) not in outside]
        outputs = [*(body.outputs[k] for k in (*keep, *ys)), *self.new_ys]
        left = sweep(Graph(body.name, body.inputs, nodes, outputs, body.input_names))
        # Early products that the loop still reads come in step by step.
        read = {v for o in left.nodes for v in o.operands} | set(outputs)
        entering = [v for o in body.nodes for v in o.results if v in self.early and v in read]
        stacks = [self.stack(v).value for v in entering]
        inputs = [body.inputs[i] for i in keep]
        inputs += [*body.inputs[n : n + m], *entering, *body.inputs[n + m :]]
        names = dict(zip(body.inputs, body.input_names, strict=True))
        left = left.with_(inputs=inputs, input_names=[names.get(v, f"early{v.id}") for v in inputs])
        results = b.emit(
            replace(
                op,
                init=tuple(op.init[i] for i in keep),
                xs=(*op.xs, *stacks),
                body=left,
                results=(),
            ),
            op.locs,
        )
        known = dict(zip((*keep, *ys), results, strict=False))
        for v, stack in zip(self.new_ys, results[len(keep) + len(ys) :], strict=True):
            self.stacks[v] = Expr(b, stack)
        out = []
        for k, v in enumerate(body.outputs):
            if k in known:
                out.append(known[k])
            elif k in self.sums:
                b.locs = body.producer[v].locs
                out.append((Expr(b, op.init[k]) + self.total(self.sums[k])).value)
            else:
                out.append(self.stack(v).value)
        b.locs = op.locs
        return out

    def read_outside(self, ys: Sequence[int]) -> list[Value]:
        """Values of the steps that what follows the loop reads, stacked."""
        found: dict[Value, None] = {}

        def need(v: Value) -> None:
            if v not in self.varying or v in self.xs or v in self.early:
                return
            op = self.op.body.producer.get(v)
            if op is not None and (v in self.late or self.cheap(op)):
                for x in op.operands:
                    need(x)
            else:
                found[v] = None

        def need_sum(v: Value) -> None:
            op = self.op.body.producer[v]
            if v in self.late:
                need(v)
                return
            linear = isinstance(op, (Transpose, Neg, Reshape, Add))
            for x in op.operands:
                (need_sum if linear else need)(x)

        for k, v in enumerate(self.op.body.outputs):
            if k in self.sums:
                need_sum(self.sums[k])
            elif k >= len(self.op.init) and k not in ys:
                need(v)
        return list(found)

    def cheap(self, op: Op) -> bool:
        """Whether ``op`` is a view of what is stacked already, so that it is no stack itself."""
        return isinstance(op, (Transpose, Reshape)) and (op.x in self.xs or op.x in self.early)

    # ---- values over all steps -----------------------------------------------------------------

    def invariant(self, v: Value) -> Value:
        """A value that no step changes, outside."""
        if v not in self.fixed:
            op = self.op.body.producer[v]
            for x in op.operands:
                self.invariant(x)
            new = op.map_operands(self.fixed.__getitem__)
            self.fixed.update(zip(op.results, self.b.emit(new, op.locs), strict=True))
        return self.fixed[v]

    def stack(self, v: Value) -> Expr:
        """``v`` of every step, (length, ...)."""
        n = self.op.length
        if v in self.xs:
            return Expr(self.b, self.xs[v])
        if v not in self.stacks:
            if v not in self.varying:
                axes = tuple(range(1, v.type.ndim + 1))
                x = Expr(self.b, self.invariant(v))
                self.stacks[v] = x.broadcast((n, *v.type.shape), axes)
            else:
                op = self.op.body.producer[v]
                if isinstance(op, Matmul):
                    self.stacks[v] = self.stack_product(op)
                else:
                    operands = [self.stack(x) for x in op.operands]
                    self.b.locs = op.locs
                    self.stacks[v] = self.stack_op(op, operands)
        return self.stacks[v]

    def stack_op(self, op: Op, operands: Sequence[Expr]) -> Expr:
        rule = _VIEWS.get(type(op))
        if rule is not None:
            return rule(op, operands, self.op.length)
        table = dict(zip(op.operands, (e.value for e in operands), strict=True))
        (out,) = self.b.emit(op.map_operands(table.__getitem__), op.locs)
        return Expr(self.b, out)

    def stack_product(self, op: Matmul) -> Expr:
        steps, (rows, cols) = self.op.length, op.result.type.shape
        ta, tb = op.transpose_lhs, op.transpose_rhs
        if op.lhs in self.varying:  # (steps * rows, k) @ (k, cols)
            a, w = self.stack(op.lhs), Expr(self.b, self.invariant(op.rhs))
            self.b.locs = op.locs
            a = a.transpose((0, 2, 1)) if ta else a
            a = a.reshape((steps * rows, a.shape[2])).matmul(w, transpose_rhs=tb)
            out: Expr = a.reshape((steps, rows, cols))
            return out
        # w @ b_t is (b_t^T @ w^T)^T
        w, c = Expr(self.b, self.invariant(op.lhs)), self.stack(op.rhs)
        self.b.locs = op.locs
        c = c if tb else c.transpose((0, 2, 1))
        c = c.reshape((steps * cols, c.shape[2])).matmul(w, transpose_rhs=not ta)
        out = c.reshape((steps, cols, rows)).transpose((0, 2, 1))
        return out

    def total(self, v: Value) -> Expr:
        """The sum of ``v`` over all steps."""
        op = self.op.body.producer[v]
        out: Expr
        if v in self.late:
            out = self.stack(v).sum((0,))
            return out
        match op:
            case Matmul():
                return self.total_product(op)
            case Sum():
                x = self.stack(op.x)
                self.b.locs = op.locs
                out = x.sum((0, *(a + 1 for a in op.axes)))
                return out
            case Add():
                x, y = self.total(op.lhs), self.total(op.rhs)
                self.b.locs = op.locs
                return x + y
        x = self.total(op.operands[0])
        (total,) = self.b.emit(op.map_operands(lambda _: x.value), op.locs)
        return Expr(self.b, total)

    def total_product(self, op: Matmul) -> Expr:
        """Sum over t of a_t @ b_t: one product over steps and inner axis."""
        a, c = self.stack(op.lhs), self.stack(op.rhs)
        self.b.locs = op.locs
        a = a if op.transpose_lhs else a.transpose((0, 2, 1))
        c = c.transpose((0, 2, 1)) if op.transpose_rhs else c
        inner = a.shape[0] * a.shape[1]
        right = c.reshape((inner, c.shape[2]))
        out: Expr = a.reshape((inner, a.shape[2])).matmul(right, transpose_lhs=True)
        return out
