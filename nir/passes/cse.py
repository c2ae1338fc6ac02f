"""Common subexpressions: of equal pure ops on equal operands only the first stays.

Equal means class, operands, attributes and result types; the first op takes over the locations of
the ones it stands for. Operands of commutative ops are compared in either order.

requires: nothing.  ensures: no two equal pure ops.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from nir.frozen import replace
from nir.ir.graph import Graph, attribute_key
from nir.ir.op import Op, Value
from nir.ir.program import Target
from nir.ops import (
    Add,
    BitAnd,
    BitOr,
    BitXor,
    Eq,
    LogicalAnd,
    LogicalOr,
    LogicalXor,
    Maximum,
    Minimum,
    Mul,
    Ne,
)
from nir.passes.rewrite import everywhere

# a ? b and b ? a have the same bits (nan payloads aside).
COMMUTATIVE = frozenset(
    cls.name
    for cls in (
        *(Add, Mul, Maximum, Minimum, Eq, Ne),
        *(LogicalAnd, LogicalOr, LogicalXor, BitAnd, BitOr, BitXor),
    )
)


def cse(graph: Graph, target: Target) -> Graph:
    """``graph`` with equal ops merged, in its regions too."""
    return everywhere(graph, merge)


def merge(graph: Graph) -> Graph:
    """`cse` of this graph alone."""
    first: dict[Hashable, int] = {}
    env: dict[Value, Value] = {}
    nodes: list[Op] = []
    for op in graph.nodes:
        op = op.map_operands(lambda v: env.get(v, v))
        if not op.pure:
            nodes.append(op)
            continue
        at = first.setdefault(_key(op), len(nodes))
        if at == len(nodes):
            nodes.append(op)
            continue
        kept = nodes[at]
        env.update(zip(op.results, kept.results, strict=True))
        if not op.locs <= kept.locs:
            nodes[at] = replace(kept, locs=kept.locs | op.locs)
    if not env:
        return graph
    outputs = tuple(env.get(v, v) for v in graph.outputs)
    return graph.with_(nodes=nodes, outputs=outputs, plan=None)


def _key(op: Op) -> Hashable:
    attributes = tuple(attribute_key(getattr(op, name)) for name in op.attribute_fields)
    operands: list[Any] = []
    for name, arity in op.operand_fields:
        value = getattr(op, name)
        if arity == "many":
            operands.extend((len(value), *(v.id for v in value)))
        else:
            operands.append(None if value is None else value.id)
    if op.name in COMMUTATIVE:
        operands.sort()
    return op.name, tuple(operands), attributes, tuple(v.type for v in op.results)
