"""Structural differences between two graphs, whatever their values are called.

Ops that compute the same from the same are paired first, by a hash over everything they depend on.
The others are paired in order with ops of equal name, attributes and types. What then has no
partner, or reads something else than its partner, is a difference: an op far downstream of a
change is not reported for that change.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping

from nir.ir.graph import Graph, attribute_key
from nir.ir.op import Op, Value
from nir.ir.printer import dim_text, print_op

Pairs = dict[Value, Value]


def diff(a: Graph, b: Graph, limit: int | None = None) -> list[str]:
    """Lines that tell how ``b`` differs from ``a``; none if they are equal (as `==` says).

    "-" an op (or input) of ``a`` alone, "+" of ``b`` alone, "~" an op with other operands.
    Names and locations do not count. ``limit`` stops after so many lines.
    """
    if a == b:
        return []
    lines: list[str] = []
    for line in _differences(a, b):
        if limit is not None and len(lines) == limit:
            lines.append("...")
            break
        lines.append(line)
    return lines


def _differences(a: Graph, b: Graph) -> Iterator[str]:
    values: Pairs = {}
    yield from _input_differences(a, b, values)
    partners = _pair_ops(a, b, values)
    partnered = set(partners.values())
    found = False
    for op in a.nodes:
        if op not in partners:
            found = True
            yield f"- {print_op(a, op)}"
        elif [values.get(v) for v in op.operands] != list(partners[op].operands):
            # An operand without a partner is reported where it is made, if it has an equal type.
            found = True
            yield f"~ {print_op(a, op)}"
            yield f"  {print_op(b, partners[op])}"
    for op in b.nodes:
        if op not in partnered:
            found = True
            yield f"+ {print_op(b, op)}"
    if [values.get(v) for v in a.outputs] != list(b.outputs):
        found = True
        yield f"- return {_values(a, a.outputs)}"
        yield f"+ return {_values(b, b.outputs)}"
    if a.donate != b.donate:
        found = True
        yield f"~ donate {list(a.donate)} and {list(b.donate)}"
    for line in _plan_differences(a, b, values):
        found = True
        yield line
    if not found:
        yield from _order_difference(a, b, partners)


def _input_differences(a: Graph, b: Graph, values: Pairs) -> Iterator[str]:
    for i in range(max(len(a.inputs), len(b.inputs))):
        left, right = a.inputs[i : i + 1], b.inputs[i : i + 1]
        if left and right:
            values[left[0]] = right[0]
        if [v.type for v in left] != [v.type for v in right]:
            yield from (f"- input %{a.names[v]}: {v.type}" for v in left)
            yield from (f"+ input %{b.names[v]}: {v.type}" for v in right)


def _pair_ops(a: Graph, b: Graph, values: Pairs) -> dict[Op, Op]:
    """Partners in ``b`` of the ops of ``a``; ``values`` gets the partners of their results."""
    deep_a, deep_b = _deep_hashes(a), _deep_hashes(b)
    partners: dict[Op, Op] = {}
    taken: set[Op] = set()
    for key in (lambda op, deep: deep[op], lambda op, deep: _signature(op)):
        waiting: dict[str, deque[Op]] = defaultdict(deque)
        for op in b.nodes:
            if op not in taken:
                waiting[key(op, deep_b)].append(op)
        for op in a.nodes:
            candidates = waiting.get(key(op, deep_a)) if op not in partners else None
            if candidates:
                partners[op] = candidates.popleft()
                taken.add(partners[op])
                values.update(zip(op.results, partners[op].results, strict=True))
    return partners


def _signature(op: Op) -> str:
    """What an op is, but for which values it reads."""
    attributes = ";".join(attribute_key(x) for x in op.attributes.values())
    types = ",".join(str(v.type) for v in op.results)
    return f"{op.name}/{len(op.operands)}{{{attributes}}}{types}"


def _deep_hashes(graph: Graph) -> Mapping[Op, str]:
    """A hash of each op and of all that it depends on."""
    of_value = {v: f"input {i} {v.type}" for i, v in enumerate(graph.inputs)}
    table: dict[Op, str] = {}
    for op in graph.nodes:
        parts = [_signature(op), *(of_value[v] for v in op.operands)]
        table[op] = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        of_value.update((v, f"{table[op]}.{i}") for i, v in enumerate(op.results))
    return table


def _plan_differences(a: Graph, b: Graph, values: Pairs) -> Iterator[str]:
    if (a.plan is None) != (b.plan is None):
        yield f"~ {'no memory plan' if a.plan is None else 'a memory plan'} in the first graph"
    if a.plan is None or b.plan is None:
        return
    if a.plan.arena != b.plan.arena:
        yield f"~ arena[{dim_text(a.plan.arena)}] and arena[{dim_text(b.plan.arena)}]"
    if a.plan.donations != b.plan.donations:
        yield f"~ reuse {list(a.plan.donations)} and {list(b.plan.donations)}"
    for v in a.values:
        if v not in values:
            continue
        left = a.plan.placements.get(a.number[v])
        right = b.plan.placements.get(b.number[values[v]])
        if left is None or right is None or left.kind != "alias" or right.kind != "alias":
            same = left == right
        else:
            same = (left.offset, values.get(a.values[left.of])) == (
                right.offset,
                b.values[right.of],
            )
        if not same:
            yield f"~ %{a.names[v]} in {left} and %{b.names[values[v]]} in {right}"


def _order_difference(a: Graph, b: Graph, partners: Mapping[Op, Op]) -> Iterator[str]:
    for op, other in zip(a.nodes, b.nodes, strict=True):
        if partners[op] is not other:
            yield "~ the same ops in another order, first:"
            yield f"  {print_op(a, op)}"
            yield f"  {print_op(b, other)}"
            return


def _values(graph: Graph, values: tuple[Value, ...]) -> str:
    return ", ".join(f"%{graph.names[v]}" for v in values)
