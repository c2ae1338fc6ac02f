"""Every sample of every op, and its gradient, through every pass, checked by the interpreter."""

from __future__ import annotations

import numpy as np
import pytest
from op_cases import CASES, Case, make_graph
from pass_harness import CPU

from nir.errors import NotDifferentiable, UnsupportedError
from nir.ir.graph import Graph
from nir.ops.vjp import vjp
from nir.passes.pipeline import run_pipeline

# The interpreter runs these; the executor does not yet.
_UNSUPPORTED = {"scan", "cond", "host_call"}


def check(graph: Graph, inputs: list[np.ndarray], name: str) -> None:
    try:
        after = run_pipeline(graph, CPU, verify=inputs)
    except UnsupportedError:
        assert name in _UNSUPPORTED
        return
    assert after.plan is not None


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_forward(case: Case) -> None:
    check(make_graph(case), list(case.arrays), case.op.name)


@pytest.mark.parametrize(
    "case",
    [c for c in CASES if c.sample.differentiable and c.op.name != "fused"],
    ids=lambda c: c.id,
)
def test_gradient(case: Case) -> None:
    graph = make_graph(case)
    try:
        backward = vjp(graph)
    except NotDifferentiable:
        pytest.skip("no gradient")
    if not backward.outputs:
        pytest.skip("no float operand")
    rng = np.random.default_rng(0)
    count = len(graph.inputs)
    cotangents = [
        rng.standard_normal(v.type.shape).astype(v.type.dtype.numpy)
        for v in backward.inputs[count:]
    ]
    check(backward, [*case.arrays, *cotangents], case.op.name)
