"""Fusion: groups of elementwise ops, broadcasts and reductions become `Fused` ops.

The graph is walked from the outputs backwards. An op joins the cluster of its consumers when the
iteration spaces agree (see `nir.ops.fused` for the forms) and the clusters stay free of cycles.
Ops that cost nothing to repeat (constants, broadcasts, affine views, and cheap arithmetic on one
stored tensor) are copied into every consumer instead of being stored.

requires: no op left that the target must decompose.  ensures: every elementwise op and every
reduction lies in a `Fused` region.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from nir.errors import VerifyError
from nir.frozen import Frozen, replace
from nir.ir.dim import Dim, Shape
from nir.ir.graph import Builder, Graph, location_text
from nir.ir.op import Op, Value
from nir.ir.program import Target
from nir.ops import (
    Broadcast,
    Flip,
    Full,
    Iota,
    Max,
    Min,
    Prod,
    ReducePartial,
    Reshape,
    Slice,
    Sum,
    Transpose,
)
from nir.ops.fused import Fused
from nir.passes.rewrite import everywhere

_REDUCTIONS = (Sum, Prod, Max, Min, ReducePartial)
# Arithmetic that is cheaper to repeat than to store and load again.
_CHEAP = frozenset(
    {
        "neg", "abs", "relu", "add", "sub", "mul", "maximum", "minimum", "where", "cast", "sign",
        "eq", "ne", "lt", "le", "gt", "ge", "is_nan",
        "logical_and", "logical_or", "logical_xor", "logical_not",
    }
)  # fmt: skip
_CHEAP_DEPTH = 8
# A loop is one basic block, which LLVM compiles in more than linear time: 32 sines take 0.2 s, 256
# take 4 s. Beyond this weight, a load and a store cost less than what they join.
_WEIGHT_LIMIT = 512
_WEIGHT = 16  # of an op that is not cheap
# How far a search for a cycle goes before it gives the fusion up.
_SEARCH_LIMIT = 2000


@dataclass(eq=False)
class _Cluster:
    """Ops that become one kernel. ``level`` counts the row axes (row) or leading axes (column)."""

    form: str
    space: Shape
    level: int = 0
    chunk: int | None = None
    members: list[int] = field(default_factory=list)  # positions in graph.nodes
    weight: int = 0
    heavy: int | None = None
    first: int = 1 << 62
    last: int = 0

    @property
    def rows(self) -> Shape:
        return self.space[: self.level]

    @property
    def reduced(self) -> Shape:
        return self.space[self.level :]


class _Edge(Frozen):
    """A use of a stored value by a non-inlined op: the op's position and the views on the way."""

    user: int
    path: tuple[Op, ...]


def fuse(graph: Graph, target: Target) -> Graph:
    """Put every elementwise op and reduction of ``graph`` into a `Fused` region."""
    return everywhere(graph, lambda g: _Fusion(g, target).run())


def _is_elementwise(op: Op) -> bool:
    return op.kind == "elementwise"


def _weight(op: Op) -> int:
    return 1 if op.name in _CHEAP else _WEIGHT


def _is_unit_reshape(op: Op) -> bool:
    """A reshape that only adds or drops axes of size 1."""
    return isinstance(op, Reshape) and _squeezed(op.x.type.shape) == _squeezed(op.shape)


def _squeezed(shape: Iterable[Dim]) -> list[Dim]:
    return [d for d in shape if d != 1]


def _is_view(op: Op) -> bool:
    """Affine movement that a loop follows by strides at little cost."""
    match op:
        case Broadcast() | Slice() | Flip():
            return True
        case Transpose(perm=perm):
            return not perm or perm[-1] == len(perm) - 1
        case _:
            return _is_unit_reshape(op)


def _reduction_axes(op: Op) -> tuple[str, int] | None:
    """("row", row axes) or ("column", leading axes) of a reduction; None if it is neither."""
    if isinstance(op, ReducePartial):
        return "column", op.leading
    axes, ndim = op.axes, op.x.type.ndim  # type: ignore[attr-defined]
    if axes == tuple(range(ndim - len(axes), ndim)):
        return "row", ndim - len(axes)
    if axes == tuple(range(len(axes))):
        return "column", len(axes)
    return None


class _Fusion:
    def __init__(self, graph: Graph, target: Target) -> None:
        self.graph, self.target = graph, target
        self.nodes = graph.nodes
        self.position = {op: i for i, op in enumerate(self.nodes)}
        self.outputs = set(graph.outputs)
        self.overwriting = {graph.outputs[out] for _, out in graph.donate}
        self.cluster: dict[int, _Cluster] = {}  # by position
        self.inline: set[int] = set()
        self.real_users: dict[Value, list[_Edge]] = {}
        # Stretches (first, last) of the graph that clusters cover, in order; overlapping ones are
        # one stretch. A path never leads back from behind a stretch into it.
        self.stretches: list[tuple[int, int]] = []

    # ---- which ops are what --------------------------------------------------------------------

    def fusable(self, op: Op) -> bool:
        if _is_elementwise(op):
            return True
        return isinstance(op, _REDUCTIONS) and _reduction_axes(op) is not None

    def find_inline(self) -> None:
        """Mark the ops that are copied into their consumers."""
        users = self.graph.users
        roots: dict[Value, frozenset[Value]] = {}
        depth: dict[Value, int] = {}
        for i, op in enumerate(self.nodes):
            if len(op.results) != 1:
                continue
            v = op.result
            if isinstance(op, (Full, Iota)):
                roots[v], depth[v] = frozenset(), 0
                self.inline.add(i)
            elif _is_view(op):
                roots[v], depth[v] = self._root(op.operands[0], v, roots), 0
                self.inline.add(i)
            elif op.name in _CHEAP and len(users[v]) > 1 and v not in self.outputs:
                found = frozenset().union(*(self._root(x, v, roots) for x in op.operands))
                deep = 1 + max(depth.get(x, 0) for x in op.operands)
                whole = all(self.fusable(u) for u in users[v])
                if len(found) <= 1 and deep <= _CHEAP_DEPTH and whole:
                    roots[v], depth[v] = found, deep
                    self.inline.add(i)
        # A view or constant that a kernel, an output or nothing fusable reads must exist in memory.
        for i in sorted(self.inline, reverse=True):
            op = self.nodes[i]
            read_in_loops = [
                self.fusable(u) or self.position[u] in self.inline for u in users[op.result]
            ]
            if op.result in self.outputs or not read_in_loops or not any(read_in_loops):
                self.inline.discard(i)

    def _root(self, x: Value, by: Value, roots: dict[Value, frozenset[Value]]) -> frozenset[Value]:
        if x in roots:
            return roots[x]
        # Vectors beside a tensor (a bias, a mean) are read from cache: they do not count.
        return frozenset() if x.type.ndim < by.type.ndim else frozenset((x,))

    def find_users(self) -> None:
        """For each value the non-inlined ops that read it, through inlined ones."""
        for v in self.graph.number:
            self.real_users[v] = []
        for i in reversed(range(len(self.nodes))):
            op = self.nodes[i]
            if i in self.inline:
                edges = [_Edge(e.user, (op, *e.path)) for e in self.real_users[op.result]]
                # A stored copy may be needed too, by ops that cannot follow views.
                for x in op.operands:
                    self.real_users[x].extend(edges)
            else:
                for x in op.operands:
                    self.real_users[x].append(_Edge(i, ()))
        # The ops that read what each op makes, through inlined ones.
        self.users = [[e.user for v in op.results for e in self.real_users[v]] for op in self.nodes]

    # ---- clustering ----------------------------------------------------------------------------

    def run(self) -> Graph:
        self.find_inline()
        self.find_users()
        for i in reversed(range(len(self.nodes))):
            op = self.nodes[i]
            if i in self.inline:
                continue
            if self.fusable(op):
                self.place(i, op)
            elif op.name in self.target.epilogues:
                self.place_heavy(i, op)
        self.split_rows()
        self.merge_columns()
        return self.emit()

    def place(self, i: int, op: Op) -> None:
        edges = self.real_users[op.result]
        for c in self.candidates(edges):
            inside = [e for e in edges if self.cluster.get(e.user) is c]
            outside = [e for e in edges if self.cluster.get(e.user) is not c]
            joined = self.fit(op, c, inside)
            if joined is None or c.weight + _weight(op) > _WEIGHT_LIMIT:
                continue
            stored = bool(outside) or op.result in self.outputs
            if stored and not self.can_export(op, joined):
                continue
            if outside and self.reaches((e.user for e in outside), c):
                continue
            c.form, c.space, c.level, c.chunk = (
                joined.form,
                joined.space,
                joined.level,
                joined.chunk,
            )
            self.add(i, c)
            return
        self.add(i, self.alone(op))

    def candidates(self, edges: Sequence[_Edge]) -> list[_Cluster]:
        """Clusters that read the value, the one with most uses first."""
        counts: dict[int, tuple[int, _Cluster]] = {}
        for e in edges:
            c = self.cluster.get(e.user)
            if c is not None:
                counts[id(c)] = (counts.get(id(c), (0, c))[0] + 1, c)
        return [c for _, c in sorted(counts.values(), key=lambda n: (-n[0], n[1].last))]

    def add(self, i: int, c: _Cluster) -> None:
        c.members.append(i)
        c.weight += _weight(self.nodes[i])
        c.first, c.last = min(c.first, i), max(c.last, i)
        self.cluster[i] = c
        self.cover(c.first, c.last)

    def cover(self, first: int, last: int) -> None:
        """Make ``first`` to ``last`` part of one stretch."""
        low = bisect_left(self.stretches, first, key=lambda s: s[1])
        high = bisect_right(self.stretches, last, key=lambda s: s[0])
        met = [(first, last), *self.stretches[low:high]]
        self.stretches[low:high] = [(min(s[0] for s in met), max(s[1] for s in met))]

    def alone(self, op: Op) -> _Cluster:
        if _is_elementwise(op):
            return _Cluster("map", op.result.type.shape)
        form, level = _reduction_axes(op)  # type: ignore[misc]
        chunk = op.chunk if isinstance(op, ReducePartial) else None
        return _Cluster(form, op.x.type.shape, level, chunk)  # type: ignore[attr-defined]

    def fit(self, op: Op, c: _Cluster, inside: Sequence[_Edge]) -> _Cluster | None:
        """The cluster's shape after ``op`` joins it, or None where the spaces do not agree."""
        if c.heavy is not None:
            return None
        shape = op.result.type.shape
        direct = all(self._identity(e.path) for e in inside)
        if _is_elementwise(op):
            if shape == c.space and direct:
                # In a column region that finishes its reductions, this op comes before them.
                return c
            level = len(shape)
            if c.form == "row" and shape == c.rows and self._row_level(inside, level):
                return c
            # The statistics of rows, as a layer norm has them between its sum and its map.
            vector = c.form == "map" and shape == c.space[:level] and level < len(c.space)
            if vector and self._row_level(inside, level) and self._follows_rows(op, c.space):
                return _Cluster("row", c.space, level)
            return None
        own = self.alone(op)
        if own.form == "column":
            if own.chunk is not None or not direct:
                return None
            # A full reduction over leading axes takes the vector arithmetic after it along.
            if c.form == "map" and c.space == own.reduced:
                return own
            same = c.form == "column" and c.chunk is None
            return c if same and c.space == own.space and c.level == own.level else None
        if c.form == "row":
            same = c.space == own.space and c.level == own.level
            return c if same and self._row_level(inside, c.level) else None
        if c.form == "map" and own.level < len(own.space):
            if c.space == own.space and self._row_level(inside, own.level):
                return own
            if c.space == own.rows and direct:
                return own
        return None

    def _follows_rows(self, op: Op, space: Shape) -> bool:
        """Whether ``op``, on rows, is computed from a reduction of ``space`` to those rows."""
        level, stack = op.result.type.ndim, list(op.operands)
        for _ in range(_CHEAP_DEPTH):
            if not stack:
                return False
            p = self.graph.producer.get(stack.pop())
            if isinstance(p, _REDUCTIONS):
                if _reduction_axes(p) == ("row", level) and p.operands[0].type.shape == space:
                    return True
            elif p is not None and _is_elementwise(p):
                stack.extend(p.operands)
        return False

    def _identity(self, path: Sequence[Op]) -> bool:
        return all(_is_elementwise(op) for op in path)

    def _row_level(self, edges: Sequence[_Edge], level: int) -> bool:
        """Each use is by an op on rows, or broadcasts rows over the trailing axes."""
        for e in edges:
            moves = [op for op in e.path if not _is_elementwise(op)]
            if len(moves) > 1:
                return False
            for op in moves:
                if not (isinstance(op, Broadcast) and op.axes == tuple(range(level))):
                    return False
        return True

    def can_export(self, op: Op, c: _Cluster) -> bool:
        """Whether a member's result may be stored as well as used."""
        if c.form == "column":
            return not (_is_elementwise(op) and op.result.type.shape == c.space)
        return True

    def place_heavy(self, i: int, op: Op) -> None:
        """Give a heavy op the map that consumes it as its epilogue."""
        edges = self.real_users[op.results[0]]
        for c in self.candidates(edges):
            if c.form != "map" or c.heavy is not None or c.space != op.results[0].type.shape:
                continue
            inside = [e for e in edges if self.cluster.get(e.user) is c]
            outside = [e for e in edges if self.cluster.get(e.user) is not c]
            if not all(self._identity(e.path) for e in inside):
                continue
            if outside and self.reaches((e.user for e in outside), c):
                continue
            if not (outside or op.results[0] in self.outputs or self._has_room(c, op)):
                continue
            c.heavy, c.form = i, "epilogue"
            self.add(i, c)
            return

    def _has_room(self, c: _Cluster, op: Op) -> bool:
        """A stored result of the cluster has the heavy op's dtype: it accumulates there."""
        dtype = op.results[0].type.dtype
        results = [self.nodes[m].result for m in c.members]
        return any(v.type.dtype == dtype and self._is_stored(v, c) for v in results)

    def _is_stored(self, v: Value, c: _Cluster) -> bool:
        return v in self.outputs or any(
            self.cluster.get(e.user) is not c for e in self.real_users[v]
        )

    def split_rows(self) -> None:
        """Row regions that the reductions they waited for could not join become maps."""
        for c in {id(c): c for c in self.cluster.values() if c.form == "row"}.values():
            if any(isinstance(self.nodes[m], _REDUCTIONS) for m in c.members):
                continue
            members, c.members, c.weight, c.form = c.members, [], 0, "map"
            on_rows = _Cluster("map", c.rows)
            for m in members:
                whole = self.nodes[m].result.type.shape == c.space
                self.add(m, c if whole else on_rows)

    def merge_columns(self) -> None:
        """Chunked reductions over one space that share an input become one kernel."""
        by_space: dict[object, list[_Cluster]] = {}
        seen: set[int] = set()
        for c in self.cluster.values():
            if c.form == "column" and c.chunk is not None and id(c) not in seen:
                seen.add(id(c))
                by_space.setdefault((c.space, c.level, c.chunk), []).append(c)
        for group in by_space.values():
            readers: dict[Value, list[_Cluster]] = {}
            for c in sorted(group, key=lambda c: c.last):
                reads = self._reads(c)
                sharing = dict.fromkeys(into for v in reads for into in readers.get(v, ()))
                into = next((into for into in sharing if not self._depend(into, c)), c)
                if into is not c:
                    for m in c.members:
                        self.add(m, into)
                for v in reads:
                    readers.setdefault(v, []).append(into)

    def _depend(self, a: _Cluster, b: _Cluster) -> bool:
        return self.reaches(a.members, b, skip=a) or self.reaches(b.members, a, skip=b)

    def _reads(self, c: _Cluster) -> set[Value]:
        """The stored tensors of full rank that a cluster reads."""
        found = {v for m in c.members for v in self._inputs_of(m, c)}
        return {v for v in found if v.type.ndim == len(c.space)}

    def _inputs_of(self, i: int, c: _Cluster) -> set[Value]:
        found: set[Value] = set()
        stack = list(self.nodes[i].operands)
        while stack:
            v = stack.pop()
            p = self.graph.producer.get(v)
            at = self.position[p] if p is not None else -1
            if at in self.inline:
                stack.extend(self.nodes[at].operands)
            elif self.cluster.get(at) is not c:
                found.add(v)
        return found

    def reaches(self, starts: Iterable[int], goal: _Cluster, skip: _Cluster | None = None) -> bool:
        """Whether a path leads from ``starts`` into ``goal``; True also when unsure."""
        if skip is not None:
            starts = [u for m in starts for u in self.users[m] if self.cluster.get(u) is not skip]
        # The latest op first: a path to the goal, where there is one, is found in a few steps.
        heap = [-i for i in starts]
        heapq.heapify(heap)
        seen: set[int] = set()
        expanded = {id(skip)}
        at = bisect_left(self.stretches, goal.last, key=lambda s: s[1])
        end = self.stretches[at][1]
        while heap:
            i = -heapq.heappop(heap)
            c = self.cluster.get(i)
            if c is goal:
                return True
            if i in seen or i > end:
                continue
            seen.add(i)
            if len(seen) > _SEARCH_LIMIT:
                return True
            if c is None:
                members: Sequence[int] = (i,)
            elif id(c) in expanded:
                continue
            else:
                expanded.add(id(c))
                members = c.members
            for m in members:
                for u in self.users[m]:
                    if u not in seen:
                        heapq.heappush(heap, -u)
        return False

    # ---- emission ------------------------------------------------------------------------------

    def emit(self) -> Graph:
        """The graph with each cluster as one `Fused` op, in an order that respects all reads."""
        b = Builder(self.graph.name)
        b.inputs, b.input_names = list(self.graph.inputs), list(self.graph.input_names)
        b._next = 1 + max((v.id for v in self.graph.number), default=-1)
        done: set[int] = set()
        begun: set[int] = set()  # the first member of each group that waits for its operands
        # Depth first from the outputs, with an explicit stack: graphs may be deep.
        for root in range(len(self.nodes)):
            stack = [(root, False)]
            while stack:
                i, ready = stack.pop()
                if i in done:
                    continue
                group = self._group(i)
                if ready:
                    done.update(group)
                    self._emit_group(b, i, group)
                    continue
                if root in self.inline and i == root and not self._stored_inline(i):
                    break
                if group[0] in begun:
                    op = self.nodes[i]
                    raise VerifyError(
                        f"the region of {op.name} reads its own result", location_text(op.locs)
                    )
                begun.add(group[0])
                stack.append((i, True))
                for m in group:
                    for v in sorted(self._needs(m, i), key=lambda v: self.graph.number[v]):
                        p = self.graph.producer.get(v)
                        if p is not None and self.position[p] not in done:
                            stack.append((self.position[p], False))
        return b.build(self.graph.outputs, donate=self.graph.donate)

    def _group(self, i: int) -> list[int]:
        c = self.cluster.get(i)
        return sorted(c.members) if c is not None else [i]

    def _stored_inline(self, i: int) -> bool:
        """An inlined op that something outside loops reads is also stored."""
        return any(
            (self.position[u] not in self.cluster and self.position[u] not in self.inline)
            or (
                self.position[u] in self.cluster
                and self.cluster[self.position[u]].heavy == self.position[u]
            )
            for u in self.graph.users[self.nodes[i].result]
        )

    def _needs(self, m: int, leader: int) -> set[Value]:
        c = self.cluster.get(m)
        if c is None or c.heavy == m:
            # A kernel reads memory: inlined producers are stored for it.
            own = set(self.nodes[m].operands)
            return own if c is None else {v for v in own if self._owner(v) is not c}
        return self._inputs_of(m, c)

    def _owner(self, v: Value) -> _Cluster | None:
        p = self.graph.producer.get(v)
        return self.cluster.get(self.position[p]) if p is not None else None

    def _emit_group(self, b: Builder, i: int, group: list[int]) -> None:
        c = self.cluster.get(i)
        op = self.nodes[i]
        if c is None:
            if isinstance(op, (Full, Iota)) or (
                _is_view(op) and not isinstance(op, (Reshape, Transpose))
            ):
                c = _Cluster("map", op.result.type.shape, members=[i])
            else:
                b.append(op)
                return
        self._emit_cluster(b, c, group)

    def _emit_cluster(self, b: Builder, c: _Cluster, group: list[int]) -> None:
        members = set(group)
        body = Builder(c.form)
        env: dict[Value, Value] = {}
        outer: list[Value] = []
        locs = frozenset().union(*(self.nodes[m].locs for m in group))

        def read_stored(v: Value) -> Value:
            if v not in env:
                env[v] = body.input(v.type, f"a{len(outer)}")
                outer.append(v)
            return env[v]

        def read(v: Value) -> Value:
            if v in env:
                return env[v]
            p = self.graph.producer.get(v)
            at = self.position[p] if p is not None else -1
            if p is not None and at in self.inline and at not in members:
                copied = p.map_operands(read)
                new = body.value(v.type)
                # Equal constants have been merged, and carry the lines of every user: a region
                # keeps those that are its own.
                own = p.locs & locs if p.kind in ("source", "movement") else p.locs
                body.append(replace(copied, results=(new,), locs=own or p.locs))
                env[v] = new
                return new
            return read_stored(v)

        order = sorted(group, key=lambda m: (m != c.heavy, m))
        for m in order:
            op = self.nodes[m]
            # A heavy op reads memory: what feeds it is not copied in.
            mapped = op.map_operands(read_stored if m == c.heavy else read)
            results = tuple(body.value(v.type) for v in op.results)
            body.append(replace(mapped, results=results))
            env.update(zip(op.results, results, strict=True))
        stored = [
            v
            for m in group
            for v in self.nodes[m].results
            if v in self.outputs or any(self._read_outside(e, members) for e in self.real_users[v])
        ]
        if not stored:  # dead code
            return
        if c.heavy is not None and all(v in self.overwriting for v in stored):
            # It would accumulate in the storage of one of them, which could then not take the
            # place of what the loop reads: the raw product gets memory for as long as it lasts.
            stored.insert(0, self.nodes[c.heavy].results[0])
        region = body.build([env[v] for v in stored])
        b.append(Fused(tuple(outer), region, c.form, results=tuple(stored), locs=locs))

    def _read_outside(self, e: _Edge, members: set[int]) -> bool:
        return e.user not in members
