"""Values computed again where keeping them would cost too much memory: time for space.

The graph is in its final form: each op is a kernel call, in the order of the run. At the op where
most is kept, a value that is kept across it, neither read nor written there, is given up: right
before its next reader its op runs again, and so do those ops before it whose results are gone by
then. Of all such values the one that gives the most bytes for the least work goes first; a step
that does not lower what is above the goal is not taken. What runs again is the same op on the same
values, so results are equal to the bit. Ops that may have effects never run twice.

With a limit (`Target.memory`) that goes on until the plan keeps to it. Without one it is done where
it is nearly free: in programs that keep much, for a hundredth of their work at most, and if it
saves five times as large a part of the memory. (A normalised activation is an example: it is one
loop over what the convolution gave, and that is kept for the gradient of the statistics anyway.)

requires: `fuse`, an order of ops.  ensures: nothing; the same values, some of them twice.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

from nir.frozen import replace
from nir.ir.graph import Graph
from nir.ir.location import derived
from nir.ir.op import Op, Value
from nir.ir.program import Target
from nir.ops.banded import Banded, chain, heavy, layout
from nir.passes.blocks import CONTROL
from nir.passes.memory import Pairs, is_alias, plan, typical
from nir.passes.rewrite import in_regions
from nir.passes.schedule import Shared, order, peak

_ROUNDS = 8
_LARGE = 16 << 20  # bytes that a program keeps, for it to be worth while without a limit
_SPENT = 0.01  # of the work, without a limit
_GAIN = 5  # how much larger a part of the memory that must save
_LEAST = 0.05
_GOAL = 0.8  # of the peak
_PATIENCE = 24  # graphs are looked at; each takes time linear in its size
_NOTABLE = 1 / 128  # a value's least share of the peak
_TRIED = 12  # values at each step
_CONE = 24  # ops that run again for one value, at most


def rematerialise(graph: Graph, target: Target) -> Graph:
    """``graph`` within ``target.memory`` bytes, or as near to it as recomputing brings it."""
    if target.memory is None:
        return _cheaper(graph, target)
    best, least = _with_own_views(graph), needed(graph, target)
    goal = target.memory - scratch(graph, target)
    for _ in range(_ROUNDS):
        if least <= target.memory:
            break
        smaller = _with_own_views(order(_reduced(best, goal)[0]))
        now = needed(smaller, target)
        if now < least:
            best, least = smaller, now
        # A plan takes more than the live bytes: the next round aims lower.
        goal = min(goal - max(now - target.memory, 0), goal * 31 // 32)
    return best


def _cheaper(graph: Graph, target: Target) -> Graph:
    """``graph`` with what costs next to nothing to compute again not kept."""
    kept = max(_Lives(graph, Pairs()).bytes, default=0)
    if kept < _LARGE:
        return graph
    work = sum(map(_work, graph.nodes))
    whole = _with_own_views(graph)
    reduced, added = _reduced(whole, int(_GOAL * kept), _SPENT * work, _PATIENCE)
    if reduced is whole:  # nothing is that cheap
        return graph
    smaller = order(reduced)
    # The peaks stand for the plans, which keep near to them and take longer to make.
    before = peak(graph)
    least = (before + scratch(graph, target)) * max(_GAIN * added / work, _LEAST)
    return smaller if before - peak(smaller) >= least else graph


def needed(graph: Graph, target: Target) -> int:
    """Bytes of arena, outputs that no donated input becomes, and scratch, at usual sizes."""
    planned = plan(in_regions(graph, plan))
    assert planned.plan is not None
    donated = {out for _, out in planned.plan.donations}
    outputs = sum(typical(v.type.nbytes) for k, v in enumerate(planned.outputs) if k not in donated)
    return typical(planned.plan.arena) + outputs + scratch(graph, target)


def scratch(graph: Graph, target: Target) -> int:
    """Bytes of scratch of all threads, for hand-written kernels."""
    most = 0
    for op in graph.nodes:
        lines, ops = 0, [op]
        if isinstance(op, Banded):
            lines, ops = layout(op.body, op.lines).memory, chain(op.body)
        for one in ops:
            entry = target.kernels.get(heavy(one).name)
            call = entry(heavy(one)) if callable(entry) else None
            if call is not None:
                most = max(most, lines + typical(call.scratch))
    return most * target.threads


def _reduced(
    graph: Graph, goal: int, spend: float = math.inf, patience: float = math.inf
) -> tuple[Graph, int]:
    """``graph`` with values computed again until ``goal`` bytes are live, or no step helps.

    What runs again may be ``spend`` work in all, and the second result is how much it is;
    ``patience`` is how many steps are tried.
    """
    added = 0
    pairs = Pairs()
    lives = _Lives(graph, pairs)
    above = _above(lives, goal)
    while above[0] > 0 and patience > 0:
        for candidate in _candidates(graph, lives):
            work = sum(_work(graph.nodes[k]) for k in candidate[2])
            if added + work > spend:
                continue
            patience -= 1
            smaller = _repeated(graph, *candidate)
            lives_then = _Lives(smaller, pairs)
            now = _above(lives_then, goal)
            if now < above:
                graph, lives, above, added = smaller, lives_then, now, added + work
                break
        else:
            break
    return graph, added


def _above(lives: _Lives, goal: int) -> tuple[int, int]:
    """How far the peak lies above ``goal``, and by how much all ops do: less is better."""
    over = [b - goal for b in lives.bytes if b > goal]
    return max(over, default=0), sum(over)


class _Lives:
    """When values live, and how many bytes do at each op; views count as what they are views of."""

    def __init__(self, graph: Graph, pairs: Pairs) -> None:
        self.pairs = pairs
        self.base: dict[Value, Value] = {}
        self.start: dict[Value, int] = {}
        self.reads: dict[Value, list[int]] = {}
        self.maker: dict[Value, int] = {}
        self.size: dict[Value, int] = {}
        for i, op in enumerate(graph.nodes):
            for v in op.operands:
                self.reads.setdefault(self.of(v), []).append(i)
            for v in op.results:
                self.maker[v] = i
                if is_alias(op):
                    self.base[v] = self.of(op.operands[0])
                elif op.name != "constant":
                    self.start[v], self.size[v] = i, typical(v.type.nbytes)
        count = len(graph.nodes)
        self.end = {v: self.reads[v][-1] if v in self.reads else i for v, i in self.start.items()}
        # Where a donated input is written over by the output that takes its place.
        donations = Shared(graph, pairs).donations if graph.donate else ()
        self.overwritten = {graph.inputs[i]: self.maker[graph.outputs[out]] for i, out in donations}
        donated = {graph.outputs[out] for _, out in donations}
        for v in graph.outputs:
            if self.of(v) in self.end:
                self.end[self.of(v)] = count
        changes = [0] * (count + 2)
        for v, i in self.start.items():
            if v not in donated:  # it lies where the input was
                changes[i + self._takes_over(graph.nodes[i], v, i)] += self.size[v]
                changes[self.end[v] + 1] -= self.size[v]
        self.bytes: list[int] = []
        total = 0
        for i, op in enumerate(graph.nodes):
            total += changes[i]
            inside = 0
            if isinstance(op, CONTROL):
                inside = max(peak(region, outputs=False) for _, region in op.regions())
            self.bytes.append(total + inside)

    def of(self, v: Value) -> Value:
        """What ``v`` is a view of."""
        return self.base.get(v, v)

    def _takes_over(self, op: Op, result: Value, i: int) -> bool:
        """Whether the result may lie where an operand did that nobody else reads."""
        return any(
            r is result and self.end.get(x) == i and self.size.get(x) == self.size[result]
            for x, r in self.pairs[op]
        )


def _candidates(graph: Graph, lives: _Lives) -> Iterable[tuple[Value, int, tuple[int, ...]]]:
    """(value, its next reader, the ops to run again), the best of them first."""
    at = max(range(len(lives.bytes)), key=lives.bytes.__getitem__)
    outputs = {lives.of(v) for v in graph.outputs}
    found = []
    for v, i in lives.start.items():
        if not (i < at < lives.end[v]) or v in outputs or at in lives.reads[v]:
            continue
        if lives.size[v] < lives.bytes[at] * _NOTABLE:
            continue
        reader = min(r for r in lives.reads[v] if r > at)
        cone = _cone(graph, lives, v, reader)
        if cone is not None:
            work = sum(_work(graph.nodes[k]) for k in cone)
            found.append((lives.size[v] / (work + 1), v, reader, cone))
    found.sort(key=lambda f: -f[0])
    return [f[1:] for f in found[:_TRIED]]


def _work(op: Op) -> int:
    return typical(op.traffic()) + typical(op.flops()) // 8


def _cone(graph: Graph, lives: _Lives, v: Value, reader: int) -> tuple[int, ...] | None:
    """The ops that compute ``v`` from what is there when ``reader`` runs; None if they may not."""
    cone: set[int] = set()
    stack = [v]
    while stack:
        k = lives.maker[stack.pop()]
        if k in cone:
            continue
        op = graph.nodes[k]
        if not op.pure or isinstance(op, CONTROL) or len(cone) == _CONE:
            return None
        cone.add(k)
        for x in op.operands:
            base = lives.of(x)
            if lives.overwritten.get(base, reader) < reader:
                return None
            if x is not base or lives.end.get(base, reader) < reader:  # a view, or gone by then
                stack.append(x)
    return tuple(sorted(cone))


def _repeated(graph: Graph, v: Value, reader: int, cone: Sequence[int]) -> Graph:
    """``graph`` with the ops in ``cone`` once more, before ``reader``, which reads their ``v``."""
    fresh = itertools.count(1 + max(u.id for u in graph.number))
    again: dict[Value, Value] = {}
    new: list[Op] = []
    for k in cone:
        op = graph.nodes[k]
        results = tuple(Value(next(fresh), r.type) for r in op.results)
        new.append(replace(_renamed(op, again), results=results, locs=derived(op.locs)))
        again.update(zip(op.results, results, strict=True))
    tail = [_renamed(op, {v: again[v]}) for op in graph.nodes[reader:]]
    return graph.with_(nodes=(*graph.nodes[:reader], *new, *tail))


def _with_own_views(graph: Graph) -> Graph:
    """``graph`` with a view of its own, right before it, for each op that reads one.

    A view costs nothing, and one that is made early would hold what it is a view of.
    """
    kept = set(graph.outputs)
    fresh = itertools.count(1 + max((u.id for u in graph.number), default=-1))
    nodes: list[Op] = []
    for op in graph.nodes:
        if is_alias(op) and op.results[0] not in kept:
            continue
        own: dict[Value, Value] = {}
        for view in [view for v in op.operands for view in _views(graph, v, kept)]:
            result = view.results[0]
            if result not in own:
                new = Value(next(fresh), result.type)
                nodes.append(replace(_renamed(view, own), results=(new,)))
                own[result] = new
        nodes.append(_renamed(op, own))
    return graph.with_(nodes=tuple(nodes))


def _renamed(op: Op, names: Mapping[Value, Value]) -> Op:
    return op.map_operands(lambda v: names.get(v, v))


def _views(graph: Graph, v: Value, kept: set[Value]) -> list[Op]:
    """The ops that make the view ``v``, in order; those of outputs stay where they are."""
    op = graph.producer.get(v)
    if op is None or not is_alias(op) or op.results[0] in kept:
        return []
    return [*(view for x in op.operands for view in _views(graph, x, kept)), op]
