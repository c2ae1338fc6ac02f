"""The order of kernels: one that keeps fewer bytes at once than the order in which they came.

Every order that respects the data flow computes the same. Three cheap rules make others, and the
one with the lowest peak is taken, where it is lower by a hundredth at least:

- late: an op whose results take more than its operands leave waits until a reader comes;
- early: an op that leaves more than it takes (an update that uses up a gradient) runs as soon as
  it can;
- greedy: of all ops that could run, always the one that adds least.

The first two stay near the given order, in which a value's reader mostly finds it in a cache. Ops
that may have effects keep their order. Regions are ordered on their own.

requires: `fuse`.  ensures: nothing; the same ops in another order.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from nir.ir.graph import Graph
from nir.ir.op import Value
from nir.ir.program import Target
from nir.passes.blocks import CONTROL
from nir.passes.memory import (
    Pairs,
    donations_of,
    is_alias,
    share_in_place,
    storages_of,
    typical,
    unique,
)
from nir.passes.rewrite import everywhere

_WORTH = 0.99  # of the peak that there was


def schedule(graph: Graph, target: Target) -> Graph:
    """``graph`` with its ops in an order that needs less memory."""
    return everywhere(graph, order)


def order(graph: Graph) -> Graph:
    """`schedule` of this graph alone."""
    if len(graph.nodes) < 3:
        return graph
    pairs = Pairs()
    first = Shared(graph, pairs)
    flow = _Flow(first)
    given = list(range(len(graph.nodes)))
    late = flow.late(given)
    tried = [late, flow.early(given), flow.early(late), flow.greedy()]
    orders = dict.fromkeys(tuple(t) for t in tried if t != given)  # rules often agree
    found = [first, *(Shared(_ordered(graph, o), pairs) for o in orders)]
    peaks = [max(s.live(), default=0) for s in found]
    least = min(peaks)
    best = found[peaks.index(least)]
    # A donated input that an output can no longer take over costs more than an order saves.
    lost = len(best.donations) < len(first.donations)
    return graph if lost or least > _WORTH * peaks[0] else best.graph


def _ordered(graph: Graph, positions: Sequence[int]) -> Graph:
    return graph.with_(nodes=tuple(graph.nodes[i] for i in positions))


class Shared:
    """Which values of a graph share memory, in its order of ops.

    ``donations`` are the donated inputs whose storage outputs can take over. ``pairs`` may be those
    of a graph with the same ops in another order.
    """

    def __init__(self, graph: Graph, pairs: Pairs | None = None) -> None:
        self.graph = graph
        self.storages = storages_of(graph)
        share_in_place(graph, self.storages, pairs)
        self.donations = donations_of(graph, self.storages)

    def live(self, outputs: bool = True) -> list[int]:
        """Bytes of intermediate results, regions' ones included, at each op; at usual sizes.

        An output that a donated input becomes takes none.
        """
        given = {out for _, out in self.donations}
        changes = [0] * (len(self.graph.nodes) + 2)
        for s in unique(self.storages):
            if s.home is None or (outputs and s.home[0] == "output" and s.home[1] not in given):
                size = typical(s.size)
                changes[s.start] += size
                changes[s.end + 1] -= size
        kept = list(accumulate(changes[: len(self.graph.nodes)]))
        for i, op in enumerate(self.graph.nodes):
            if isinstance(op, CONTROL):
                inside = (peak(region, outputs=False) for _, region in op.regions())
                kept[i] += max(inside, default=0)
        return kept


def live(graph: Graph, outputs: bool = True) -> list[int]:
    """`Shared.live` of ``graph``."""
    return Shared(graph).live(outputs)


def peak(graph: Graph, outputs: bool = True) -> int:
    """The most of `live`."""
    return max(live(graph, outputs), default=0)


def reused(graph: Graph) -> tuple[tuple[int, int], ...]:
    """The donated inputs whose storage outputs can take over, in this order of ops."""
    return Shared(graph).donations


@dataclass
class _Flow:
    """Who waits for whom, and what results take; ops by their position in the given order."""

    shared: Shared
    behind: list[list[int]] = field(default_factory=list)  # ops that an op waits for
    ahead: list[list[int]] = field(default_factory=list)  # ops that wait for it
    takes: list[int] = field(default_factory=list)  # bytes of results that it allocates
    reads: list[tuple[int, ...]] = field(default_factory=list)  # storages that it reads
    size: list[int] = field(default_factory=list)  # of each storage that can be left
    readers: list[int] = field(default_factory=list)  # of each storage: how many ops
    users: list[list[int]] = field(default_factory=list)  # and which

    def __post_init__(self) -> None:
        graph = self.shared.graph
        storage: dict[Value, int] = {}
        made: dict[Value, int] = {}
        kept = set(graph.outputs)
        effect = -1
        for i, op in enumerate(graph.nodes):
            waits = {made[v] for v in op.operands if v in made}
            if not op.pure:
                waits |= {effect} - {-1}
                effect = i
            self.behind.append(sorted(waits))
            self.ahead.append([])
            for j in waits:
                self.ahead[j].append(i)
            own = {storage[v] for v in op.operands if v in storage}
            self.reads.append(tuple(own))
            for s in own:
                self.readers[s] += 1
                self.users[s].append(i)
            takes = 0
            for v in op.results:
                made[v] = i
                if is_alias(op):
                    if op.operands[0] in storage:
                        storage[v] = storage[op.operands[0]]
                    continue
                if v in kept or op.kind == "source":
                    continue
                storage[v] = len(self.size)
                self.size.append(typical(v.type.nbytes))
                self.readers.append(0)
                self.users.append([])
                takes += self.size[-1]
            self.takes.append(takes)
        self.keep_donations()

    def keep_donations(self) -> None:
        """Who writes over a donated input waits for all readers of it."""
        graph, storages = self.shared.graph, self.shared.storages
        given = {graph.inputs[source] for source, _ in self.shared.donations}
        readers: dict[Value, dict[int, None]] = {v: {} for v in given}
        for i, op in enumerate(graph.nodes):
            for v in op.operands:
                if v in given:
                    readers[v][i] = None
        for source, out in self.shared.donations:
            for v in storages[graph.outputs[out]].values:
                writer = graph.position[graph.producer[v]]
                for j in readers[graph.inputs[source]]:
                    if j != writer and j not in self.behind[writer]:
                        self.behind[writer].append(j)
                        self.ahead[j].append(writer)

    def leaves(self, i: int, left: Sequence[int]) -> int:
        """Bytes that nobody reads once op ``i`` has run; ``left`` counts the readers to come."""
        return sum(self.size[s] for s in self.reads[i] if left[s] == 1)

    def early(self, given: Sequence[int]) -> list[int]:
        """``given``, but what leaves more than it takes runs as soon as it can."""
        left = list(self.readers)
        waits = [len(b) for b in self.behind]
        done = [False] * len(given)
        out: list[int] = []
        for first in given:
            stack = [first]
            while stack:
                i = stack.pop()
                if done[i] or waits[i] or (i != first and self.takes[i] >= self.leaves(i, left)):
                    continue
                done[i] = True
                out.append(i)
                stack += sorted(self.run(i, left, waits), reverse=True)
        return out

    def run(self, i: int, left: list[int], waits: list[int]) -> set[int]:
        """Count that op ``i`` has run; the ops for which that changes something."""
        changed = set(self.ahead[i])
        for j in self.ahead[i]:
            waits[j] -= 1
        for s in self.reads[i]:
            left[s] -= 1
            if left[s] == 1:  # its last reader leaves it now
                changed.update(self.users[s])
        return changed

    def late(self, given: Sequence[int]) -> list[int]:
        """``given``, but what takes more than it leaves waits for its first reader."""
        left = list(self.readers)
        waiting: dict[int, None] = {}
        done = [False] * len(given)
        out: list[int] = []

        def run(i: int) -> None:
            stack = [(i, False)]
            while stack:
                i, ready = stack.pop()
                if done[i]:
                    continue
                if ready:
                    done[i] = True
                    out.append(i)
                    for s in self.reads[i]:
                        left[s] -= 1
                    continue
                stack.append((i, True))
                stack += [(j, False) for j in reversed(self.behind[i]) if not done[j]]

        for i in given:
            op = self.shared.graph.nodes[i]
            keeps = not op.pure or not self.ahead[i]
            if keeps or self.takes[i] <= self.leaves(i, left):
                run(i)
            else:
                waiting[i] = None
        for i in waiting:
            run(i)
        return out

    def greedy(self) -> list[int]:
        """Always the op that adds least; of equals, the one that came first."""
        left = list(self.readers)
        waits = [len(b) for b in self.behind]
        heap = [(self.takes[i] - self.leaves(i, left), i) for i, n in enumerate(waits) if not n]
        heapq.heapify(heap)
        done = [False] * len(waits)
        out: list[int] = []
        while heap:
            _, i = heapq.heappop(heap)
            if done[i]:
                continue
            done[i] = True
            out.append(i)
            for j in self.run(i, left, waits):
                if not waits[j] and not done[j]:
                    heapq.heappush(heap, (self.takes[j] - self.leaves(j, left), j))
        return out
