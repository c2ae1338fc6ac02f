"""Loop-invariant code motion: what a body computes from captures alone moves in front of its loop.

The packing of a recurrent net's weights is the case that matters: it then happens once in a run.
Views and uniform values cost nothing inside a loop, and move only where something that moves reads
them. Ops that may fail (an index out of range) or have effects stay: a loop may have no steps. Out
of a branch only packing moves, since it serves every step of the loop around it.

requires: nothing.  ensures: no loop packs what it does not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from nir.ir.graph import Builder, Graph, rebuild
from nir.ir.op import Op, Value
from nir.ir.program import Target
from nir.ops import Broadcast, Cond, Pack, PackConv2d, Reshape, Scan, Slice, WhileLoop
from nir.passes.dce import sweep
from nir.passes.rewrite import in_regions

_PACKS = (Pack, PackConv2d)
# They cannot fail, and are worth doing once. Other kinds hold gathers, and ops with regions.
_MOVES = frozenset({"elementwise", "reduction", "contraction", "movement"})
_FREE = (Broadcast, Reshape, Slice)


def hoist(graph: Graph, target: Target) -> Graph:
    """``graph`` with what its loops need not repeat in front of them, in its regions too."""
    return _hoisted(in_regions(graph, _hoisted))


def _hoisted(graph: Graph) -> Graph:
    if all(type(op).regions is Op.regions for op in graph.nodes):
        return graph
    out = rebuild(graph, _visit)
    return graph if len(out.nodes) == len(graph.nodes) else out


def _visit(b: Builder, op: Op) -> Sequence[Value] | None:
    if not isinstance(op, (Scan, WhileLoop, Cond)):
        return None
    changes: dict[str, Any] = {}
    captures = op.captures
    for name, region in op.regions():
        region, captures = _move(b, op, changes.get(name, region), captures)
        changes[name] = region
        if len(captures) > len(op.captures):
            added = captures[len(op.captures) :]
            # All regions of an op have the same captures.
            for other, g in op.regions():
                if other != name:
                    changes[other] = _with_inputs(changes.get(other, g), added)
            op = replace(op, captures=captures)
    if not changes or all(changes[name] is region for name, region in op.regions()):
        return None
    return b.emit(replace(op, **changes, results=()), op.locs)


def _with_inputs(region: Graph, values: Sequence[Value]) -> Graph:
    own = [Value(_fresh(region) + k, v.type) for k, v in enumerate(values)]
    names = [f"invariant{v.id}" for v in own]
    return region.with_(
        inputs=[*region.inputs, *own], input_names=[*region.input_names, *names], plan=None
    )


def _fresh(region: Graph) -> int:
    return 1 + max((v.id for v in region.number), default=-1)


def _move(
    b: Builder, op: Any, region: Graph, captures: tuple[Value, ...]
) -> tuple[Graph, tuple[Value, ...]]:
    """``region`` without what can be computed in ``b``, and its captures with the results."""
    first = len(region.inputs) - len(captures)
    known = set(region.inputs[first:])
    movable: dict[Value, Op] = {}
    wanted: list[Op] = []
    for o in region.nodes:
        if not o.pure or any(v not in known for v in o.operands):
            continue
        kind = o.kind in _MOVES or isinstance(o, _PACKS)
        if not (kind or o.kind == "source") or len(o.results) != 1:
            continue
        known.update(o.results)
        movable[o.result] = o
        worth = isinstance(o, _PACKS) or (not isinstance(op, Cond) and kind)
        if worth and o.operands and not isinstance(o, _FREE) and _reads_capture(o, movable):
            wanted.append(o)
    wanted = _last(region, wanted)
    if not wanted:
        return region, captures
    outer = dict(zip(region.inputs[first:], captures, strict=True))

    def outside(v: Value) -> Value:
        if v not in outer:
            source = movable[v]
            for x in source.operands:
                outside(x)
            (outer[v],) = b.emit(source.map_operands(outer.__getitem__), source.locs)
        return outer[v]

    moved = [o.result for o in wanted]
    gone = set(moved)
    names = [*region.input_names, *(f"invariant{v.id}" for v in moved)]
    left = region.with_(
        inputs=[*region.inputs, *moved],
        input_names=names,
        nodes=[o for o in region.nodes if not (len(o.results) == 1 and o.results[0] in gone)],
        plan=None,
    )
    return sweep(left), (*captures, *map(outside, moved))


def _reads_capture(op: Op, movable: dict[Value, Op]) -> bool:
    """Whether ``op`` depends on anything at all: constants are the business of other passes."""
    return any(v not in movable or _reads_capture(movable[v], movable) for v in op.operands)


def _last(region: Graph, wanted: Sequence[Op]) -> list[Op]:
    """Those of ``wanted`` that something else reads: the others go with their readers."""
    moving = set(wanted)
    outputs = set(region.outputs)
    return [
        o
        for o in wanted
        if o.result in outputs or any(u not in moving for u in region.users[o.result])
    ]
