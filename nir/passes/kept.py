"""Products that a scan has taken already, step by step, are kept and not taken again.

The gradient of a recurrent net needs h_t @ w for every t: one product of the stacked h, where
fission has put it. The scan that made the stack has multiplied each h_t by w on its way, so that it
can stack these products too.
"""

from __future__ import annotations

from collections.abc import Mapping

from nir.frozen import replace
from nir.ir.graph import Graph, attribute_key
from nir.ir.op import Op, Value
from nir.ops import Matmul, Reshape, Scan


def keep_products(graph: Graph) -> Graph:
    """``graph`` with products of stacks read from the scans that made the stacks."""
    scans = {v: op for op in graph.nodes if isinstance(op, Scan) for v in op.results}
    if not scans:
        return graph
    current: dict[Scan, Scan] = {}
    swapped: dict[Op, Op] = {}
    fresh = 1 + max(v.id for v in graph.number)
    for op in graph.nodes:
        match op:
            case Matmul(lhs=lhs, transpose_lhs=False):
                source = graph.producer.get(lhs)
            case _:
                continue
        if not isinstance(source, Reshape) or source.x not in scans:
            continue
        old = scans[source.x]
        scan = current.get(old, old)
        step = _same_product(graph, old, source, op)
        if step is None:
            continue
        if step in scan.body.outputs[len(scan.init) :]:
            stack = scan.results[scan.body.outputs.index(step, len(scan.init))]
        else:
            shape = (scan.length, *step.type.shape)
            stack = Value(fresh, step.type.with_(shape=shape))
            fresh += 1
            body = scan.body.with_(outputs=(*scan.body.outputs, step), plan=None)
            current[old] = replace(scan, body=body, results=(*scan.results, stack))
        swapped[op] = Reshape(stack, op.result.type.shape, results=op.results, locs=op.locs)
    if not swapped:
        return graph
    nodes = [current.get(op, swapped.get(op, op)) for op in graph.nodes]  # type: ignore[call-overload]
    return graph.with_(nodes=nodes, plan=None)


def _same_product(graph: Graph, scan: Scan, rows: Reshape, product: Matmul) -> Value | None:
    """What a step of ``scan`` computes that ``product`` computes for all steps, if it does."""
    body, k = scan.body, scan.results.index(rows.x)
    element = body.outputs[k]
    if k < len(scan.init) or element.type.ndim != 2 or rows.shape[1:] != element.type.shape[1:]:
        return None
    captures = body.inputs[len(scan.init) + len(scan.xs) :]
    outer = dict(zip(captures, scan.captures, strict=True))
    for op in body.users[element]:
        if (
            isinstance(op, Matmul)
            and op.lhs is element
            and not op.transpose_lhs
            and op.transpose_rhs == product.transpose_rhs
            and _same(graph, product.rhs, body, op.rhs, outer)
        ):
            return op.result
    return None


def _same(
    graph: Graph, value: Value, body: Graph, inner: Value, outer: Mapping[Value, Value]
) -> bool:
    """Whether ``inner`` in a body is what ``value`` is around it."""
    if inner in outer:
        return outer[inner] is value
    a, b = graph.producer.get(value), body.producer.get(inner)
    if a is None or b is None or type(a) is not type(b) or not a.pure or len(a.results) != 1:
        return False
    left, right = (list(map(attribute_key, op.attributes.values())) for op in (a, b))
    same = left == right and len(a.operands) == len(b.operands)
    return same and all(
        _same(graph, x, body, y, outer) for x, y in zip(a.operands, b.operands, strict=True)
    )
