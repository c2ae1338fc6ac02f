"""The verifier: is a graph well formed, and is its memory plan sound?

`verify` checks definition before use, unique values, types against each op's rule, locations,
regions, and, for a planned graph, that no two values that live at once share bytes, but for views
and for results over operands that die there and that the op says it takes over (`Op.takes_over`).
Whether what it says is true, `interp.run(arena=True)` finds out by running the graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NoReturn

import numpy as np

from nir.errors import NirError, VerifyError
from nir.frozen import Frozen
from nir.ir.arena import align
from nir.ir.dim import value
from nir.ir.graph import Graph, MemoryPlan, Placement, location_text
from nir.ir.op import OPS, Op, Value
from nir.ir.printer import print_op

# Plans are checked with all symbols at one of these, and with all of them different.
SAMPLE_SIZES = (0, 1, 2, 7, 64, 1000)


def verify(graph: Graph, sizes: Iterable[Mapping[str, int]] | None = None) -> Graph:
    """``graph`` itself, if it is sound; VerifyError names the op, its line and its text.

    ``sizes`` are the values of symbols at which a memory plan is checked; without, a few samples.
    """
    _verify_form(graph, "")
    if graph.plan is not None:
        bindings = list(sizes) if sizes is not None else sample_sizes(graph)
        for env in bindings:
            _verify_plan(graph, graph.plan, env)
            for op in graph.nodes:
                _verify_region_plans(op, env)
    return graph


def _verify_region_plans(op: Op, env: Mapping[str, int]) -> None:
    for _, region in op.regions():
        if region.plan is not None:
            _verify_plan(region, region.plan, env)
            for inner in region.nodes:
                _verify_region_plans(inner, env)


def sample_sizes(graph: Graph) -> list[dict[str, int]]:
    """Values of the graph's symbols to try a plan with."""
    names = graph.symbols
    if not names:
        return [{}]
    mixed = {name: (3, 17, 5, 33)[i % 4] + 4 * i for i, name in enumerate(names)}
    return [*(dict.fromkeys(names, n) for n in SAMPLE_SIZES), mixed]


def _verify_form(graph: Graph, where: str) -> None:
    where = f"{where}@{graph.name}"
    if len(graph.input_names) != len(graph.inputs):
        raise VerifyError(
            f"{where}: expected {len(graph.inputs)} input names, got {len(graph.input_names)}"
        )
    defined: set[Value] = set()
    ids: set[int] = set()
    for v in graph.inputs:
        if v in defined or v.id in ids:
            raise VerifyError(f"{where}: input {v} occurs twice")
        defined.add(v)
        ids.add(v.id)
    for op in graph.nodes:
        _verify_op(graph, op, where, defined, ids)
    for k, v in enumerate(graph.outputs):
        if v not in defined:
            raise VerifyError(f"{where}: output {k} ({v}) is not defined")
    for source, out in graph.donate:
        if not (0 <= source < len(graph.inputs) and 0 <= out < len(graph.outputs)):
            raise VerifyError(
                f"{where}: donate[{source}->{out}] of {len(graph.inputs)} inputs and "
                f"{len(graph.outputs)} outputs"
            )


def _verify_op(graph: Graph, op: Op, where: str, defined: set[Value], ids: set[int]) -> None:
    def fail(what: str) -> NoReturn:
        _fail(graph, op, where, what)

    if OPS.get(op.name) is not type(op):
        fail(f"{type(op).__name__} is not the registered op of this name")
    if not op.locs:
        fail("it has no location")
    for v in op.operands:
        if v not in defined:
            fail(f"operand {v} is not defined before it is used")
    try:
        types = op.infer()
    except NirError as error:
        fail(error.message.removeprefix(f"{op.name}: "))
    got = tuple(v.type for v in op.results)
    if types != got:
        shown = ", ".join(map(str, types))
        fail(f"the results are ({', '.join(map(str, got))}), the type rule gives ({shown})")
    for v in op.results:
        if v in defined or v.id in ids:
            fail(f"result {v} is defined before")
        defined.add(v)
        ids.add(v.id)
    for name, region in op.regions():
        _verify_form(region, f"{where} {op.name}.{name} ")


def _fail(graph: Graph, op: Op, where: str, what: str) -> NoReturn:
    raise VerifyError(
        f"{where}: {op.name}: {what}\n  {print_op(graph, op)}", location_text(op.locs) or None
    )


# ---- memory plans ------------------------------------------------------------------------------


class _Range(Frozen):
    """Bytes low..high of a storage: ``value`` lives there from node ``start`` to node ``end``."""

    value: Value
    storage: tuple[str, int]
    low: int
    high: int
    start: int
    end: int


def _verify_plan(graph: Graph, plan: MemoryPlan, env: Mapping[str, int]) -> None:
    at = f" at {', '.join(f'{k}={n}' for k, n in sorted(env.items()))}" if env else ""
    where = f"@{graph.name}: memory plan{at}"
    views = _views(graph)
    ranges = _ranges(graph, plan, env, where, views)
    _check_outputs(graph, ranges, where)
    by_storage: dict[tuple[str, int], list[_Range]] = {}
    for r in ranges.values():
        by_storage.setdefault(r.storage, []).append(r)
    for found in by_storage.values():
        _check_overlaps(graph, found, where, views)
    _check_blocks(graph, plan, by_storage.get(("arena", 0), []), env, where)


def _check_blocks(
    graph: Graph, plan: MemoryPlan, ranges: Sequence[_Range], env: Mapping[str, int], where: str
) -> None:
    """Nothing that lives while an op with regions runs lies in its block."""
    for i, (offset, size) in plan.blocks.items():
        op, low = graph.nodes[i], align(value(offset, env))
        high = low + value(size, env)
        if high > align(value(plan.arena, env)):
            _fail(graph, op, where, f"its block ends at byte {high} of the arena")
        for r in ranges:
            inside = max(r.low, low) < min(r.high, high)  # nothing of an empty value is
            if r.start <= i <= r.end and inside:
                _fail(
                    graph,
                    op,
                    where,
                    f"its block takes bytes {low} to {high} of arena, in which "
                    f"%{graph.names[r.value]} ({r.low} to {r.high}) lives",
                )


def _views(graph: Graph) -> dict[Value, Value]:
    """Each value that is a view, with the value whose bytes it shows."""
    base: dict[Value, Value] = {}
    for op in graph.nodes:
        if op.view:
            x = op.operands[0]
            base[op.result] = base.get(x, x)
    return base


def _ranges(
    graph: Graph,
    plan: MemoryPlan,
    env: Mapping[str, int],
    where: str,
    views: Mapping[Value, Value],
) -> dict[Value, _Range]:
    """Where each value lies, and from when to when; checks that each place exists and is held."""
    end = len(graph.nodes)
    last = {v: i for i, op in enumerate(graph.nodes) for v in op.operands}
    last |= dict.fromkeys(graph.outputs, end)
    donated = {source: ("output", k) for source, k in plan.donations}
    room = {("arena", 0): align(value(plan.arena, env))}
    room |= {("output", k): value(v.type.nbytes, env) for k, v in enumerate(graph.outputs)}
    ranges: dict[Value, _Range] = {}
    for k, v in enumerate(graph.inputs):
        # An input that is not donated belongs to the caller: it lives to the end.
        nbytes = value(v.type.nbytes, env)
        stop = last.get(v, -1) if k in donated else end
        ranges[v] = _Range(v, donated.get(k, ("input", k)), 0, nbytes, -1, stop)
    for i, op in enumerate(graph.nodes):
        for v in op.results:
            number = graph.number[v]
            place = plan.placements.get(number)
            if place is None and op.kind != "source":
                _fail(graph, op, where, "its result has no place")
            storage, low = _locate(graph, op, place, number, ranges, env, where)
            high = low + value(v.type.nbytes, env)
            if high > room.get(storage, high):
                _fail(graph, op, where, f"{place} ends at byte {high} of {room[storage]}")
            ranges[v] = _Range(v, storage, low, high, i, max(last.get(v, i), i))
    return ranges


def _locate(
    graph: Graph,
    op: Op,
    place: Placement | None,
    number: int,
    ranges: Mapping[Value, _Range],
    env: Mapping[str, int],
    where: str,
) -> tuple[tuple[str, int], int]:
    match place:
        case None:
            return ("const", number), 0
        case Placement("arena", offset):
            return ("arena", 0), align(value(offset, env))
        case Placement("output", offset, of) if 0 <= of < len(graph.outputs):
            return ("output", of), value(offset, env)
        case Placement("alias", offset, of) if 0 <= of < number:
            base = ranges[graph.values[of]]
            return base.storage, base.low + value(offset, env)
    _fail(graph, op, where, f"there is no place {place}")


def _check_outputs(graph: Graph, ranges: Mapping[Value, _Range], where: str) -> None:
    for k, v in enumerate(graph.outputs):
        r = ranges[v]
        if (r.storage, r.low) != (("output", k), 0):
            raise VerifyError(f"{where}: output {k} (%{graph.names[v]}) is not in output[{k}]")


def _check_overlaps(
    graph: Graph, ranges: Sequence[_Range], where: str, views: Mapping[Value, Value]
) -> None:
    """No two ranges of one storage meet in time and bytes, but for views and in-place results."""
    order = sorted((r for r in ranges if r.low < r.high), key=lambda r: r.start)
    low, high, end = (np.array([getattr(r, f) for r in order]) for f in ("low", "high", "end"))
    live = np.zeros(0, np.int64)
    for i, r in enumerate(order):
        live = live[end[live] >= r.start]
        for j in live[(low[live] < r.high) & (high[live] > r.low)]:
            _check_pair(graph, order[int(j)], r, where, views)
        live = np.append(live, i)


def _check_pair(
    graph: Graph, old: _Range, new: _Range, where: str, views: Mapping[Value, Value]
) -> None:
    """``old`` and ``new`` share bytes while ``old`` lives: only these reasons are good."""
    op = graph.producer[new.value]
    same = (old.low, old.high) == (new.low, new.high)
    if same and views.get(new.value, new.value) is views.get(old.value, old.value):
        return
    # The operand dies here and its place is taken over (or a view of it is what dies).
    if same and old.end == new.start and _takes_over(op, old.value, new.value, views):
        return
    until = "the end" if old.end == len(graph.nodes) else f"node {old.end}"
    _fail(
        graph,
        op,
        where,
        f"its result takes bytes {new.low} to {new.high} of {new.storage[0]}, in which "
        f"%{graph.names[old.value]} ({old.low} to {old.high}) lives until {until}",
    )


def _takes_over(op: Op, old: Value, new: Value, views: Mapping[Value, Value]) -> bool:
    """Whether ``op`` writes its result ``new`` over ``old``, which only one operand is or shows."""
    base = views.get(old, old)
    readers = [x for x in dict.fromkeys(op.operands) if views.get(x, x) is base]
    return len(readers) == 1 and (readers[0], new) in op.takes_over()
