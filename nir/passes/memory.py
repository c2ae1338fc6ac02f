"""Memory planning: every result gets a place in one arena, in an output, or in another's storage.

Values whose lifetimes do not meet share bytes. Sizes may be symbolic: offsets are polynomials, and
one buffer lies below another only when that holds for every assignment of sizes (coefficient by
coefficient), so one plan serves every batch size and `peak` is an expression.

Regions are planned on their own; what their ops need while they run is one block of the arena
around them (see `nir.passes.blocks`).

requires: `fuse`; a fixed order of ops.  ensures: graph.plan covers every result, in regions too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from nir.ir.dim import Dim, Monomial, Poly, evaluate
from nir.ir.graph import Builder, Graph, MemoryPlan, Placement
from nir.ir.op import Op, Value
from nir.ir.program import Target
from nir.ops import Constant, Hold, Reshape, Transpose
from nir.passes.blocks import block_of, padded
from nir.passes.rewrite import everywhere

# Symbols take this value when buffers are compared for size; any choice is correct.
_TYPICAL = 64
# Buffers up to which the packing that compares each with all others is tried too.
_GREEDY_LIMIT = 1000


@dataclass(eq=False, slots=True)
class Storage:
    """Values that share one piece of memory."""

    values: list[Value]
    size: Dim
    start: int
    end: int
    home: tuple[str, int] | None = None  # ("output", k), ("input", i), ("const", number)
    offset: Dim = 0


def plan_memory(graph: Graph, target: Target) -> Graph:
    """``graph`` with a `MemoryPlan`; outputs that are inputs or repeat become stored copies."""
    return everywhere(graph, plan)


def plan(graph: Graph) -> Graph:
    """`plan_memory` of this graph alone; its regions have plans."""
    graph = _separate_outputs(graph)
    storages = storages_of(graph)
    share_in_place(graph, storages)
    blocks = {
        i: Storage([], block.size, i, i)
        for i, op in enumerate(graph.nodes)
        if (block := block_of(op)) is not None
    }
    arena = _pack([*(s for s in unique(storages) if s.home is None), *blocks.values()])
    placements: dict[int, Placement] = {}
    number = graph.number
    for op in graph.nodes:
        for v in op.results:
            s = storages[v]
            match s.home:
                case None:
                    placements[number[v]] = Placement("arena", s.offset)
                case ("output", k):
                    placements[number[v]] = Placement("output", 0, k)
                case _:
                    # A view of an input or a constant: named by the value whose storage it is.
                    base = s.values[0]
                    if base is not v:
                        placements[number[v]] = Placement("alias", 0, number[base])
    donations = donations_of(graph, storages)
    own = {i: (s.offset, s.size) for i, s in blocks.items()}
    return graph.with_(plan=MemoryPlan(arena, placements, donations, own))


def live_bytes(graph: Graph, outputs: bool = True) -> list[Dim]:
    """Bytes of results kept while each op of a planned graph runs; those of outputs on request."""
    storages = storages_of(graph)
    share_in_place(graph, storages)
    changes: list[Dim] = [0] * (len(graph.nodes) + 2)
    for s in unique(storages):
        if s.home is None or (outputs and s.home[0] == "output"):
            changes[s.start] = changes[s.start] + s.size
            changes[s.end + 1] = changes[s.end + 1] - s.size
    return list(accumulate(changes[: len(graph.nodes)]))


def _separate_outputs(graph: Graph) -> Graph:
    """Make each output a result of its own: a copy where it is an input, a constant or repeats."""
    b = Builder(graph.name)
    b.inputs, b.input_names = list(graph.inputs), list(graph.input_names)
    b.nodes = list(graph.nodes)
    b._next = 1 + max((v.id for v in graph.number), default=-1)
    outputs: list[Value] = []
    taken: set[Value] = set()
    for v in graph.outputs:
        base = _base(graph, v)
        op = graph.producer.get(base)
        if op is None or isinstance(op, Constant) or base in taken:
            locs = graph.producer[v].locs if v in graph.producer else _reader_locs(graph, v)
            (v,) = b.emit(Transpose(v, tuple(range(v.type.ndim))), locs)  # a copy
            base = v
        taken.add(base)
        outputs.append(v)
    return b.build(outputs, donate=graph.donate)


def _reader_locs(graph: Graph, v: Value) -> frozenset:  # type: ignore[type-arg]
    for op in graph.users[v]:
        return op.locs
    for op in graph.nodes:
        return op.locs
    return None  # type: ignore[return-value]


def is_alias(op: Op) -> bool:
    """Whether ``op`` only renames its first operand's storage: no kernel runs."""
    return isinstance(op, (Reshape, Hold))


def _base(graph: Graph, v: Value) -> Value:
    op = graph.producer.get(v)
    while op is not None and is_alias(op):
        v = op.operands[0]
        op = graph.producer.get(v)
    return v


def storages_of(graph: Graph) -> dict[Value, Storage]:
    """One storage for each value and its aliases, with lifetimes in node positions."""
    end = len(graph.nodes)
    table: dict[Value, Storage] = {}
    for k, v in enumerate(graph.inputs):
        table[v] = Storage([v], v.type.nbytes, -1, end, ("input", k))
    for i, op in enumerate(graph.nodes):
        for v in op.operands:
            s = table[v]
            if s.end < i:
                s.end = i
        if is_alias(op):
            s = table[op.operands[0]]
            s.values.append(op.results[0])
            table[op.results[0]] = s
            continue
        for v in op.results:
            home = ("const", graph.number[v]) if isinstance(op, Constant) else None
            table[v] = Storage([v], v.type.nbytes, i, i, home)
    for k, v in enumerate(graph.outputs):
        table[v].end = end
        table[v].home = ("output", k)
    return table


def unique(storages: dict[Value, Storage]) -> list[Storage]:
    return list({id(s): s for s in storages.values()}.values())


class Pairs(dict[Op, tuple[tuple[Value, Value], ...]]):
    """`Op.takes_over` of each op, once."""

    def __missing__(self, op: Op) -> tuple[tuple[Value, Value], ...]:
        self[op] = found = op.takes_over()
        return found


def share_in_place(
    graph: Graph, storages: dict[Value, Storage], pairs: Pairs | None = None
) -> None:
    """Let a result take over the storage of an operand that dies at its op."""
    pairs = Pairs() if pairs is None else pairs
    for i, op in enumerate(graph.nodes):
        used: set[int] = set()
        for x, r in pairs[op]:
            a, b = storages[x], storages[r]
            if a is b or id(a) in used or id(b) in used:
                continue
            if any(storages[v] is a for v in op.operands if v is not x):
                continue  # a view of x is read too, perhaps at other elements
            free = a.home is None and a.end == i and b.start == i and a.size == b.size
            if not free:
                continue
            used |= {id(a), id(b)}
            a.values.extend(b.values)
            a.end, a.home = b.end, b.home
            for v in b.values:
                storages[v] = a
            used.add(id(a))


def donations_of(graph: Graph, storages: dict[Value, Storage]) -> tuple[tuple[int, int], ...]:
    """The donated inputs whose last reader may write the output in place."""
    given = {graph.inputs[source] for source, _ in graph.donate}
    last: dict[Value, int] = {}
    for i, op in enumerate(graph.nodes):
        for v in op.operands:
            if v in given:
                last[v] = i
    kept = []
    for source, out in graph.donate:
        x, y = graph.inputs[source], graph.outputs[out]
        s = storages[y]
        if x.type.nbytes != y.type.nbytes or storages[x].values != [x]:
            continue
        # Everything that shares the output's storage writes to it: the earliest write counts.
        first, last_read = s.start, last.get(x, -1)
        if last_read < first or (last_read == first and (x, y) in graph.nodes[first].takes_over()):
            kept.append((source, out))
    return tuple(kept)


# ---- packing -----------------------------------------------------------------------------------


def _coefficients(d: Dim, basis: dict[Monomial, int]) -> np.ndarray:
    row = np.zeros(len(basis), np.int64)
    for monomial, c in d.terms if isinstance(d, Poly) else (((), d),):
        row[basis[monomial]] = c
    return row


def typical(d: Dim) -> int:
    """``d`` where every symbol has a usual size."""
    if isinstance(d, int):
        return d
    names = {s: _TYPICAL for m, _ in d.terms for s in _names(m)}
    out = evaluate(d, names)
    assert isinstance(out, int)
    return out


def _names(monomial: Monomial) -> list[str]:
    out: list[str] = []
    for atom, _ in monomial:
        if isinstance(atom, str):
            out.append(atom)
        else:
            for part in (atom.num, atom.den):
                if isinstance(part, Poly):
                    out.extend(s for m, _ in part.terms for s in _names(m))
    return out


def _pack(buffers: Sequence[Storage]) -> Dim:
    """Give each buffer an offset, so that no two that live at once meet; returns the total."""
    if not buffers:
        return 0
    sizes = [padded(s.size) for s in buffers]
    basis: dict[Monomial, int] = {(): 0}
    for d in sizes:
        for monomial, _ in d.terms if isinstance(d, Poly) else ():
            basis.setdefault(monomial, len(basis))
    vectors = np.array([_coefficients(d, basis) for d in sizes])
    weight = np.array([typical(_to_dim(row, basis)) for row in np.eye(len(basis), dtype=np.int64)])
    usual = vectors @ weight
    span = np.array([s.end - s.start + 1 for s in buffers])
    start = np.array([s.start for s in buffers])
    end = np.array([s.end for s in buffers])
    plans = [_sweep(vectors, weight, start, end)]
    if len(buffers) <= _GREEDY_LIMIT:
        # Large first keeps big blocks together; large and long-lived first keeps the bottom dense.
        for order in (np.lexsort((-span, -usual)), np.lexsort((start, -usual * span))):
            plans.append(_first_fit(order, vectors, weight, start, end))
    offsets = min(plans, key=lambda o: int((o + vectors).max(axis=0) @ weight))
    for s, row in zip(buffers, offsets, strict=True):
        s.offset = _to_dim(row, basis)
    return _to_dim((offsets + vectors).max(axis=0), basis)


def _sweep(sizes: np.ndarray, weight: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Offsets in the order of time: each buffer takes the tightest gap that surely holds it.

    Gaps are what dead buffers left; neighbours join. Linear in the number of buffers, as long as
    there are few gaps.
    """
    offsets = np.zeros_like(sizes)
    gaps: list[tuple[np.ndarray, np.ndarray]] = []  # (low, high), in no order
    top = np.zeros(sizes.shape[1], np.int64)
    dying = iter(sorted(range(len(sizes)), key=lambda i: (end[i], i)))
    next_death = next(dying, None)
    for i in np.argsort(start, kind="stable"):
        while next_death is not None and end[next_death] < start[i]:
            low = offsets[next_death]
            _free(gaps, low, low + sizes[next_death])
            next_death = next(dying, None)
        fitting = [
            (int((high - low) @ weight), k)
            for k, (low, high) in enumerate(gaps)
            if (low + sizes[i] <= high).all()
        ]
        if fitting:
            low, high = gaps.pop(min(fitting)[1])
            offsets[i] = low
            if (low + sizes[i] != high).any():
                gaps.append((low + sizes[i], high))
        else:
            offsets[i] = top
            top = top + sizes[i]
    return offsets


def _free(gaps: list[tuple[np.ndarray, np.ndarray]], low: np.ndarray, high: np.ndarray) -> None:
    """Add the gap from ``low`` to ``high``, joined with those that touch it."""
    kept = []
    for a, b in gaps:
        if (b == low).all():
            low = a
        elif (a == high).all():
            high = b
        else:
            kept.append((a, b))
    gaps[:] = [*kept, (low, high)]


def _first_fit(
    order: np.ndarray, sizes: np.ndarray, weight: np.ndarray, start: np.ndarray, end: np.ndarray
) -> np.ndarray:
    """Offsets, one coefficient row each: every buffer takes the lowest gap that surely holds it."""
    offsets = np.zeros_like(sizes)
    placed = np.zeros(0, np.int64)  # in ascending order of offsets
    for i in order:
        others = placed[(start[placed] <= end[i]) & (end[placed] >= start[i])]
        low = offsets[others]
        high = low + sizes[others]
        # Above the first k of them lies their coefficient-wise maximum, whatever the sizes are.
        zero = np.zeros((1, sizes.shape[1]), np.int64)
        above = np.maximum.accumulate(np.concatenate([zero, high]), axis=0)
        below = np.minimum.accumulate(low[::-1], axis=0)[::-1]
        fits = (above[:-1] + sizes[i] <= below).all(axis=1)
        offsets[i] = above[int(fits.argmax()) if fits.any() else -1]
        at = np.searchsorted(offsets[placed] @ weight, offsets[i] @ weight)
        placed = np.insert(placed, at, i)
    return offsets


def _to_dim(row: np.ndarray, basis: dict[Monomial, int]) -> Dim:
    total: Dim = 0
    for monomial, at in basis.items():
        c = int(row[at])
        if c:
            total = total + (c if not monomial else Poly(((monomial, c),)))
    return total
