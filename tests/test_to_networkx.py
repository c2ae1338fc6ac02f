"""The data flow as networkx sees it, and what its algorithms say of our own tables and passes."""

from __future__ import annotations

import fuzz
import networkx
import pytest

from nir.ir.program import Target
from nir.ir.to_networkx import to_networkx
from nir.passes.dce import dce


@pytest.mark.parametrize("seed", range(60))
def test_flow_of_random_graphs(seed: int) -> None:
    graph = fuzz.generate(seed).graph
    flow = to_networkx(graph)
    assert networkx.is_directed_acyclic_graph(flow)
    assert flow.number_of_nodes() == len(graph.inputs) + len(graph.nodes) + 1
    operands = sum(len(op.operands) for op in graph.nodes) + len(graph.outputs)
    assert flow.number_of_edges() == operands
    # The printed order is one of the flow's topological orders.
    place = {name: k for k, name in enumerate(flow)}
    assert all(place[a] < place[b] for a, b in flow.edges())


@pytest.mark.parametrize("seed", range(60))
def test_dce_keeps_what_the_outputs_descend_from(seed: int) -> None:
    graph = fuzz.generate(seed).graph
    flow = to_networkx(graph)
    alive = networkx.ancestors(flow, "return")
    kept = [
        op.name for op in graph.nodes if not op.pure or f"%{graph.names[op.results[0]]}" in alive
    ]
    assert [op.name for op in dce(graph, Target("cpu")).nodes] == kept
