"""Preparation: what depends on bound inputs alone is cut off, to run once and not at every call.

The weights of a compiled module do not change. Packing, transposes, casts and folded batch norms
are then a graph of their own, the preparation, which runs when weights are bound; the rest reads
its results as inputs. Nothing is prepared that is as cheap to read where it lies (views, values
spread over more axes) or that no bound input is part of.

requires: packing done; runs before loops are fused.
"""

from __future__ import annotations

from collections.abc import Sequence

from nir.frozen import Frozen
from nir.ir.graph import Graph
from nir.ir.op import Op, Value
from nir.ops import Broadcast, Pack, PackConv2d, Reshape, Slice

# They cannot fail. Other kinds hold gathers, and ops with regions.
_KINDS = frozenset({"elementwise", "reduction", "contraction", "movement", "source"})
_VIEWS = (Broadcast, Reshape, Slice)


class Prepared(Frozen):
    """A graph in two: ``rest`` reads the inputs ``kept`` and then the outputs of ``preparation``.

    ``needed`` are the inputs that the preparation reads; numbers are those of the whole graph.
    """

    preparation: Graph
    needed: tuple[int, ...]
    rest: Graph
    kept: tuple[int, ...]


def prepare(graph: Graph, first: int) -> Prepared:
    """``graph`` cut in two, its inputs from number ``first`` on being bound."""
    known, derived = _known(graph, first)
    border = _border(graph, known, derived)
    given = set(border)
    nodes = _needed(list(known.values()), border)
    read = {v for op in nodes for v in op.operands}
    needed = tuple(i for i, v in enumerate(graph.inputs) if v in read)
    preparation = Graph(
        f"{graph.name}_weights",
        [graph.inputs[i] for i in needed],
        nodes,
        border,
        [graph.input_names[i] for i in needed],
    )
    stays = [op for op in graph.nodes if not any(v in given for v in op.results)]
    rest = _needed(stays, graph.outputs)
    read = {v for op in rest for v in op.operands} | set(graph.outputs)
    kept = tuple(i for i, v in enumerate(graph.inputs) if i < first or v in read)
    names = [*(graph.input_names[i] for i in kept), *(f"weights{k}" for k in range(len(border)))]
    inputs = [*(graph.inputs[i] for i in kept), *border]
    donate = [d for d in graph.donate if d[0] < first]
    cut = graph.with_(inputs=inputs, nodes=rest, input_names=names, donate=donate)
    return Prepared(preparation, needed, cut, kept)


def _known(graph: Graph, first: int) -> tuple[dict[Value, Op], set[Value]]:
    """The ops that no argument reaches, by their results, and which of these a bound input does."""
    derived = set(graph.inputs[first:])
    known: dict[Value, Op] = {}
    for op in graph.nodes:
        movable = op.kind in _KINDS or isinstance(op, (Pack, PackConv2d))
        if not movable or not op.pure or len(op.results) != 1 or not op.result.type.is_static:
            continue
        if all(v in derived or v in known for v in op.operands):
            known[op.result] = op
            if any(v in derived for v in op.operands):
                derived.add(op.result)
    return known, derived


def _border(graph: Graph, known: dict[Value, Op], derived: set[Value]) -> list[Value]:
    """The derived results that the rest reads; where it reads a view, what the view is of."""
    outputs = set(graph.outputs)
    wanted = [
        v
        for v in known
        if v in outputs or any(not u.results or u.results[0] not in known for u in graph.users[v])
    ]
    border: set[Value] = set()
    seen: set[Value] = set()
    while wanted:
        v = wanted.pop()
        if v in seen or v not in known or v not in derived:
            continue
        seen.add(v)
        if isinstance(known[v], _VIEWS):
            wanted.extend(known[v].operands)
        else:
            border.add(v)
    return [v for v in known if v in border]


def _needed(nodes: Sequence[Op], outputs: Sequence[Value]) -> list[Op]:
    """Those of ``nodes`` that ``outputs`` depend on, and those with effects."""
    needed = set(outputs)
    kept = []
    for op in reversed(nodes):
        if not op.pure or any(v in needed for v in op.results):
            needed.update(op.operands)
            kept.append(op)
    return kept[::-1]
