"""The reference interpreter: each op by its numpy reference. The oracle of everything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nir.ir.bind import bind_shapes
from nir.ir.graph import Graph
from nir.ir.op import Value


def evaluate_region(graph: Graph, operands: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The outputs of ``graph`` for ``operands``."""
    return run(graph, operands)


def run(
    graph: Graph, inputs: Sequence[np.ndarray], env: Mapping[str, int] | None = None
) -> list[np.ndarray]:
    """The outputs of ``graph``: symbols are solved from the inputs' shapes."""
    arrays = [np.asarray(a) for a in inputs]
    sizes = bind_shapes(graph.input_types, [a.shape for a in arrays], graph.input_names, env)
    values: dict[Value, np.ndarray] = dict(zip(graph.inputs, arrays, strict=True))
    for op in graph.nodes:
        out = op.bind(sizes).ref(*(values[v] for v in op.operands))
        values.update(zip(op.results, out, strict=True))
    return [values[v] for v in graph.outputs]
