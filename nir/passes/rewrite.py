"""The one rewrite driver: local rules, applied to a fixpoint in near-linear time.

A rule is a plain function ``(ctx, op) -> replacement``: it looks at an op (and through
``ctx.producer`` at the ops that feed it) with ``match``, and returns what stands for the op's
results: values, or Exprs that emit new ops; or None where it does not apply.

    def double_neg(ctx, op):
        match ctx.producer(op.x):
            case Neg(x=x):
                return [x]
        return None

    graph = rewrite(graph, {Neg: (double_neg,)})

The driver keeps a worklist. A replaced op wakes the readers of its results, and an op that lost a
reader wakes the reader that is left, so a rule is tried again only where something it can see has
changed. Ops that nothing reads any more are dropped on the way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from nir.errors import VerifyError
from nir.frozen import replace
from nir.ir.graph import Builder, Graph, location_text
from nir.ir.location import Locations
from nir.ir.op import Op, Value
from nir.ir.types import TensorType
from nir.ops import Banded, Full
from nir.ops.expr import Expr
from nir.ops.fused import Fused

Rule = Callable[["Context", Any], Sequence["Expr | Value"] | None]
Rules = Mapping[type[Op], Sequence[Rule]]

# Rewrites for each op of the graph after which the rules are taken to chase each other.
_REWRITES_PER_OP = 200


class Context:
    """What a rule may ask and do. ``changes`` made by a rule that returns None are forgotten."""

    def __init__(self, driver: _Driver) -> None:
        self._driver = driver
        self._builder = driver.builder

    def producer(self, v: Value) -> Op | None:
        """The op that makes ``v``; None for an input of the graph."""
        node = self._driver.producer.get(v)
        if node is None:
            return None
        self._driver.consulted.append(node)
        return node.op

    def uses(self, v: Value) -> int:
        """How many operands and outputs of the graph read ``v``; from 2 on at least that many."""
        return self._driver.count(v)

    def readers(self, v: Value) -> list[Op]:
        """The ops that read ``v``, each once."""
        return [node.op for node in self._driver.readers[v]]

    def is_output(self, v: Value) -> bool:
        return v in self._driver.output_uses

    def scalar(self, v: Value) -> Any:
        """The number that every element of ``v`` is (a Dim where it is a size), or None."""
        op = self.producer(v)
        return op.value if isinstance(op, Full) else None

    def expr(self, v: Value) -> Expr:
        return Expr(self._builder, v)

    def exprs(self, values: Iterable[Value]) -> list[Expr]:
        return [Expr(self._builder, v) for v in values]

    def emit(self, op: Op) -> Value:
        """Add an op with one result and return that."""
        (v,) = self._builder.emit(op)
        return v

    def emit_all(self, op: Op) -> tuple[Value, ...]:
        return self._builder.emit(op)

    def full(self, value: Any, type_: TensorType) -> Value:
        return self.emit(Full(value=value, shape=type_.shape, dtype=type_.dtype))


class _Node:
    """An op's place in the order. ``before`` holds the nodes that its replacement put there."""

    __slots__ = ("alive", "before", "op", "queued")

    def __init__(self, op: Op) -> None:
        self.op = op
        self.alive = True
        self.queued = False
        self.before: list[_Node] = []


class _Driver:
    def __init__(self, graph: Graph, rules: Rules) -> None:
        self.graph, self.rules = graph, rules
        self.builder = Builder(graph.name)
        self.builder._next = 1 + max((v.id for v in graph.number), default=-1)
        self.nodes = [_Node(op) for op in graph.nodes]
        self.producer: dict[Value, _Node] = {}
        self.readers: dict[Value, dict[_Node, int]] = {v: {} for v in graph.inputs}
        self.outputs = list(graph.outputs)
        self.output_uses: dict[Value, int] = {}
        for v in self.outputs:
            self.output_uses[v] = self.output_uses.get(v, 0) + 1
        for node in self.nodes:
            self._link(node)
        self.queue: deque[_Node] = deque()
        self._wake(self.nodes)
        self.consulted: list[_Node] = []
        self.context = Context(self)
        self.rewrites = 0

    # ---- the use table -------------------------------------------------------------------------

    def count(self, v: Value) -> int:
        # Exact up to 1; scanning a long table of readers would cost quadratic time.
        readers = self.readers[v]
        times = len(readers) if len(readers) > 1 else sum(readers.values())
        return times + self.output_uses.get(v, 0)

    def _link(self, node: _Node) -> None:
        table = self.readers
        for v in node.op.results:
            self.producer[v] = node
            if v not in table:
                table[v] = {}
        for v in node.op.operands:
            readers = table[v]
            readers[node] = readers.get(node, 0) + 1

    def _drop(self, node: _Node) -> list[_Node]:
        """Remove a node and every pure op that fed it alone; returns all that went."""
        gone, stack = [], [node]
        while stack:
            n = stack.pop()
            if not n.alive:
                continue
            n.alive = False
            gone.append(n)
            for v in dict.fromkeys(n.op.operands):
                self.readers[v].pop(n, None)
                feeder = self.producer.get(v)
                if (
                    feeder is not None
                    and feeder.op.pure
                    and not any(self.readers[r] or r in self.output_uses for r in feeder.op.results)
                ):
                    stack.append(feeder)
                elif self.count(v) <= 1:
                    # A rule that wants a sole reader may apply now.
                    self._wake([*self.readers[v], *([feeder] if feeder else [])])
        return gone

    def _wake(self, nodes: Iterable[_Node]) -> None:
        for n in nodes:
            if n.alive and not n.queued and type(n.op) in self.rules:
                n.queued = True
                self.queue.append(n)

    # ---- rewriting -----------------------------------------------------------------------------

    def run(self) -> Graph:
        limit = _REWRITES_PER_OP * (len(self.nodes) + 10)
        while self.queue:
            node = self.queue.popleft()
            node.queued = False
            if not node.alive:
                continue
            for rule in self.rules[type(node.op)]:
                if self._apply(rule, node):
                    break
            if self.rewrites > limit:
                raise VerifyError(
                    f"rewrite: rules do not settle after {self.rewrites} rewrites; the last was at "
                    f"{node.op.name}",
                    location_text(node.op.locs),
                )
        if not self.rewrites:
            return self.graph
        return self.graph.with_(nodes=self._flatten(), outputs=tuple(self.outputs), plan=None)

    def _apply(self, rule: Rule, node: _Node) -> bool:
        self.consulted.clear()
        self.builder.nodes = []
        self.builder.locs = node.op.locs
        out = rule(self.context, node.op)
        if out is None:
            return False
        values = [e.value if isinstance(e, Expr) else e for e in out]
        self._check(rule, node.op, values)
        self.rewrites += 1
        self._replace(node, values)
        return True

    def _check(self, rule: Rule, op: Op, values: Sequence[Value]) -> None:
        old, new = [v.type for v in op.results], [v.type for v in values]
        if old != new:
            raise VerifyError(
                f"rewrite: {rule.__name__} changed the type of {op.name} from {old} to {new}",
                location_text(op.locs),
            )
        if set(op.results) & set(values):
            raise VerifyError(f"rewrite: {rule.__name__} replaced {op.name} by itself")

    def _replace(self, node: _Node, values: Sequence[Value]) -> None:
        fresh, heirs = self._take_over(node.op.results, values)
        consulted = set(self.consulted)
        for n in fresh:
            self._link(n)
        node.before.extend(fresh)
        for old, new in zip(node.op.results, values, strict=True):
            if heirs.get(new) is old:
                self._wake(self.readers[old])
            else:
                self._forward(old, heirs.get(new, new))
        gone = self._drop(node)
        for n in fresh:
            if n.alive and not any(self.readers[r] or r in self.output_uses for r in n.op.results):
                self._drop(n)
        _inherit([n for n in fresh if n.alive], [n for n in gone if n is node or n in consulted])
        ready = [n for n in fresh if n.alive and type(n.op) in self.rules]
        self.queue.extendleft(reversed(ready))

    def _take_over(
        self, old: Sequence[Value], new: Sequence[Value]
    ) -> tuple[list[_Node], dict[Value, Value]]:
        """Nodes of the emitted ops; those that make the new results make the old values instead.

        So readers need no change, and a result keeps its identity from pass to pass: a comparison
        of the graphs before and after can say which value went wrong.
        """
        made = {v for op in self.builder.nodes for v in op.results}
        heirs: dict[Value, Value] = {}
        for a, b in zip(old, new, strict=True):
            if b in made:
                heirs.setdefault(b, a)
        fresh = []
        for op in self.builder.nodes:
            op = op.map_operands(lambda v: heirs.get(v, v))
            if any(v in heirs for v in op.results):
                op = replace(op, results=tuple(heirs.get(v, v) for v in op.results))
            fresh.append(_Node(op))
            fresh[-1].queued = True  # new ops go to the head of the queue, all together
        return fresh, heirs

    def _forward(self, old: Value, new: Value) -> None:
        """Let everything that reads ``old`` read ``new``."""
        readers, self.readers[old] = self.readers[old], {}
        target = self.readers[new]
        for n, times in readers.items():
            n.op = n.op.map_operands(lambda v: new if v is old else v)
            target[n] = target.get(n, 0) + times
        if old in self.output_uses:
            self.output_uses[new] = self.output_uses.get(new, 0) + self.output_uses.pop(old)
            self.outputs = [new if v is old else v for v in self.outputs]
        self._wake(readers)

    def _flatten(self) -> list[Op]:
        order: list[Op] = []
        stack = [(n, False) for n in reversed(self.nodes)]
        while stack:
            n, expanded = stack.pop()
            if n.before and not expanded:
                stack.append((n, True))
                stack.extend((m, False) for m in reversed(n.before))
            elif n.alive:
                order.append(n.op)
        return order


def _inherit(fresh: Sequence[_Node], gone: Sequence[_Node]) -> None:
    """Give new ops the lines of the matched ops that are gone.

    An op stands for those of its own class: where a transpose and an addition change places, each
    keeps its line. Lines that nothing of their class takes go to the last op, the result; and an op
    of a class that was not there before stands for all.
    """
    by_class: dict[type[Op], Locations] = {}
    for n in gone:
        by_class[type(n.op)] = by_class.get(type(n.op), frozenset()) | n.op.locs
    left = by_class.keys() - {type(n.op) for n in fresh}
    for n in fresh:
        locs = by_class.get(type(n.op))
        if locs is None:
            locs = frozenset().union(*by_class.values())
        elif n is fresh[-1]:
            locs = locs.union(*(by_class[cls] for cls in left))
        if locs != n.op.locs:
            n.op = replace(n.op, locs=locs)


def rewrite(graph: Graph, rules: Rules) -> Graph:
    """``graph`` with ``rules`` applied until none applies; ``graph`` itself if none ever did.

    Results keep their types, and new ops carry the locations of the ops they replace: both are
    checked here. Raises VerifyError when a rule breaks that, or when rules undo each other.
    """
    if not any(type(op) in rules for op in graph.nodes):
        return graph
    return _Driver(graph, rules).run()


def merge_rules(*tables: Rules) -> Rules:
    """One table of several: an op's rules are tried in the order of the tables."""
    merged: dict[type[Op], tuple[Rule, ...]] = {}
    for table in tables:
        for cls, rules in table.items():
            merged[cls] = (*merged.get(cls, ()), *rules)
    return merged


def in_regions(graph: Graph, fn: Callable[[Graph], Graph]) -> Graph:
    """``fn`` applied to the closed graphs that ops of ``graph`` hold, innermost first."""
    return map_regions(graph, lambda region: fn(in_regions(region, fn)))


# Ops whose regions are kernels, not graphs.
KERNELS = (Fused, Banded)


def map_regions(graph: Graph, fn: Callable[[Graph], Graph]) -> Graph:
    """``fn`` applied to the regions of the ops of ``graph``, but not to regions in those.

    Fused and banded regions are left alone: their form is a promise to what lowers them.
    """
    # Most ops have no regions, and their class says so.
    if all(type(op).regions is Op.regions for op in graph.nodes):
        return graph
    changed = False
    nodes: list[Op] = []
    for op in graph.nodes:
        if not isinstance(op, KERNELS):
            new: dict[str, Any] = {name: fn(region) for name, region in op.regions()}
            if any(new[name] is not region for name, region in op.regions()):
                op, changed = replace(op, **new), True
        nodes.append(op)
    return graph.with_(nodes=nodes) if changed else graph


def everywhere(graph: Graph, fn: Callable[[Graph], Graph]) -> Graph:
    """``fn`` applied to ``graph`` and to every region in it."""
    return fn(in_regions(graph, fn))
