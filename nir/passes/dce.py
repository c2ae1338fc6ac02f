"""Dead code elimination: ops go whose results nothing reads.

Ops that are not `pure` (a host call, say) stay. Inputs stay too: they are the graph's signature.

requires: nothing.  ensures: every pure op feeds an output or an op that is not pure.
"""

from __future__ import annotations

from nir.ir.graph import Graph
from nir.ir.op import Op, Value
from nir.ir.program import Target
from nir.passes.rewrite import everywhere


def dce(graph: Graph, target: Target) -> Graph:
    """``graph`` without the ops that no output needs, in its regions too."""
    return everywhere(graph, sweep)


def sweep(graph: Graph) -> Graph:
    """`dce` of this graph alone."""
    live: set[Value] = set(graph.outputs)
    kept: list[Op] = []
    for op in reversed(graph.nodes):
        if not op.pure or any(v in live for v in op.results):
            kept.append(op)
            live.update(op.operands)
    return graph if len(kept) == len(graph.nodes) else graph.with_(nodes=kept[::-1], plan=None)
