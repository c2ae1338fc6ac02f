"""A graph as a networkx graph, for its algorithms and for viewers that read GraphML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nir.ir.graph import Graph, location_text
from nir.ir.op import Value


def to_networkx(graph: Graph) -> Any:
    """The data flow of ``graph`` as a ``networkx.MultiDiGraph``.

    Nodes are called as in the printed text: inputs (``op`` "input"), ops by their first result, and
    "return". A node's attributes are ``op``, ``type`` (of its results) and ``lines``. There is an
    edge from producer to reader for each operand, with ``operand``, its position in the reader,
    ``result``, that in the producer, and ``type``. An op that holds regions is a single node.

    >>> flow = to_networkx(nir.trace(fn, "f32[B,4]"))
    >>> networkx.dag_longest_path_length(flow)
    """
    import networkx

    flow = networkx.MultiDiGraph(name=graph.name)
    source: dict[Value, tuple[str, int]] = {}

    def add(
        name: str, op: str, results: Sequence[Value], operands: Sequence[Value], lines: str
    ) -> None:
        flow.add_node(name, op=op, type=", ".join(str(v.type) for v in results), lines=lines)
        for k, v in enumerate(operands):
            producer, result = source[v]
            flow.add_edge(producer, name, operand=k, result=result, type=str(v.type))
        source.update((v, (name, k)) for k, v in enumerate(results))

    for v in graph.inputs:
        add(f"%{graph.names[v]}", "input", [v], (), "")
    for i, op in enumerate(graph.nodes):
        name = f"%{graph.names[op.results[0]]}" if op.results else f"{op.name} {i}"
        add(name, op.name, op.results, op.operands, location_text(op.locs))
    add("return", "return", (), graph.outputs, "")
    return flow
