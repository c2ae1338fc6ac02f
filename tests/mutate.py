"""Generated mutations of graphs: one op is changed, and the graph still type-checks.

They stand for bugs of passes. The tests insert them after a pass and expect that verification
names that pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from nir.errors import NirError
from nir.frozen import replace
from nir.ir.graph import Graph, MemoryPlan, Placement
from nir.ir.op import OPS, Op, Value
from nir.ops import Constant
from nir.ops.fused import Fused


def mutations(graph: Graph, only: set[Op] | None = None) -> Iterator[tuple[str, Graph]]:
    """Every (description, mutated graph); with ``only``, of those ops alone."""
    known: list[Value] = list(graph.inputs)
    for i, op in enumerate(graph.nodes):
        if only is None or op in only:
            for what, new in _of_op(op, known):
                nodes = (*graph.nodes[:i], new, *graph.nodes[i + 1 :])
                yield f"{op.name}: {what}", graph.with_(nodes=nodes)
        known.extend(op.results)


def _of_op(op: Op, known: list[Value]) -> Iterator[tuple[str, Op]]:
    for what, new in _candidates(op, known):
        try:
            types = new.infer()
        except (NirError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError):
            continue
        if types == tuple(v.type for v in op.results):
            yield what, new


def _candidates(op: Op, known: list[Value]) -> Iterator[tuple[str, Op]]:
    for i, v in enumerate(op.operands):
        others = [w for w in known if w.type == v.type and w is not v]
        for w in others[-2:]:
            yield f"operand {i} is another value", _with_operand(op, i, w)
    for name, value in op.attributes.items():
        for other in _changed(value):
            yield f"{name} is {other}", replace(op, **{name: other})
    for name in sorted(OPS):
        cls = OPS[name]
        same = cls.operand_fields == op.operand_fields
        if same and cls.attribute_fields == op.attribute_fields and cls.name != op.name:
            fields = {n: getattr(op, n) for n, _ in op.operand_fields} | op.attributes
            yield f"is {name}", cls(**fields, results=op.results, locs=op.locs)
    if isinstance(op, Fused):
        for what, body in mutations(op.body):
            yield f"in its body {what}", replace(op, body=body)


def _with_operand(op: Op, at: int, new: Value) -> Op:
    seen = -1

    def pick(v: Value) -> Value:
        nonlocal seen
        seen += 1
        return new if seen == at else v

    return op.map_operands(pick)


def _changed(value: Any) -> Iterator[Any]:
    match value:
        case bool():
            yield not value
        case int():
            yield value + 1
            yield value - 1
        case float():
            yield value + 1.0
            yield -value
        case str():
            yield from (w for w in ("sum", "max", "HWIO", "OIHW") if w != value)
        case tuple() if value:
            yield value[::-1]
            yield (*value[1:], value[0])
            for i, v in enumerate(value):
                for w in _changed(v):
                    yield (*value[:i], w, *value[i + 1 :])
        case np.ndarray() if value.size:
            for at in {0, value.size // 2, value.size - 1}:
                other = value.copy()
                other.flat[at] = 1 - other.flat[at] if value.dtype != bool else not other.flat[at]
                yield other


def overlaps(graph: Graph) -> Iterator[tuple[str, Graph]]:
    """Plans in which a value lies on another one that is still to be read."""
    assert graph.plan is not None
    placed = graph.plan.placements
    last = {v: i for i, op in enumerate(graph.nodes) for v in op.operands}
    made = {v: i for i, op in enumerate(graph.nodes) for v in op.results}
    arena = [
        v
        for v, n in graph.number.items()
        if n in placed and placed[n].kind == "arena" and v in made and v in last
    ]
    for a in arena:
        for b in arena:
            # b is written while a waits for its last reader.
            if made[a] < made[b] < last[a] and not isinstance(graph.producer[a], Constant):
                at = placed[graph.number[a]].offset
                moved = {**placed, graph.number[b]: Placement("arena", at)}
                plan = MemoryPlan(graph.plan.arena + b.type.nbytes, moved, graph.plan.donations)
                names = graph.names
                yield f"%{names[b]} lies on %{names[a]}", graph.with_(plan=plan)
