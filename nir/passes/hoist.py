"""Loop-invariant code motion: what a body computes from captures alone moves in front of its loop.

The packing of a recurrent net's weights is the case that matters: it then happens once in a run.
Views and uniform values cost nothing inside a loop, and move only where something that moves reads
them. Ops that may fail (an index out of range) or have effects stay: a loop may have no steps. Out
of a branch in a loop only packing moves, since it serves every step of that loop.

requires: nothing.  ensures: no loop packs what it does not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nir.frozen import replace
from nir.ir.graph import Builder, Graph, rebuild
from nir.ir.op import Op, Value
from nir.ir.program import Target
from nir.ops import Broadcast, Cond, Pack, PackConv2d, Reshape, Scan, Slice, WhileLoop
from nir.passes.dce import sweep

_PACKS = (Pack, PackConv2d)
# They cannot fail, and are worth doing once. Other kinds hold gathers, and ops with regions.
_MOVES = frozenset({"elementwise", "reduction", "contraction", "movement"})
_FREE = (Broadcast, Reshape, Slice)


def hoist(graph: Graph, target: Target) -> Graph:
    """``graph`` with what its loops need not repeat in front of them, in its regions too."""
    return _hoisted(graph, in_loop=False)


def _hoisted(graph: Graph, in_loop: bool) -> Graph:
    if all(type(op).regions is Op.regions for op in graph.nodes):
        return graph

    def visit(b: Builder, op: Op) -> Sequence[Value] | None:
        loop = isinstance(op, (Scan, WhileLoop))
        if not loop and not (isinstance(op, Cond) and in_loop):
            return None
        return _moved(b, op)

    out = rebuild(_inner(graph, in_loop), visit)
    return graph if out == graph else out


def _inner(graph: Graph, in_loop: bool) -> Graph:
    """``graph`` with its regions done: what leaves them may leave the op's own loop too."""
    nodes = []
    for op in graph.nodes:
        if isinstance(op, (Scan, WhileLoop, Cond)):
            inside = in_loop or not isinstance(op, Cond)
            new: dict[str, Any] = {name: _hoisted(g, inside) for name, g in op.regions()}
            if any(new[name] is not g for name, g in op.regions()):
                op = replace(op, **new)
        nodes.append(op)
    return graph.with_(nodes=nodes)


def _moved(b: Builder, op: Any) -> Sequence[Value] | None:
    """The op without what its regions need not do, if there is anything; emits that into ``b``."""
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
    derived = set(known)  # constants are not: they are the business of other passes
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
        if not any(v in derived for v in o.operands):
            continue
        derived.update(o.results)
        worth = isinstance(o, _PACKS) or (not isinstance(op, Cond) and kind)
        if worth and not isinstance(o, _FREE):
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


def _last(region: Graph, wanted: Sequence[Op]) -> list[Op]:
    """Those of ``wanted`` that something else reads: the others go with their readers."""
    moving = set(wanted)
    outputs = set(region.outputs)
    return [
        o
        for o in wanted
        if o.result in outputs or any(u not in moving for u in region.users[o.result])
    ]
