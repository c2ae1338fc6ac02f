"""Every op through passes, code generation and kernels: each ISA level against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from backend_harness import check, close, compiled, flushed, outputs, reference
from op_cases import CASES, Case, batched, in_f64, make_graph, types_of

from nir.errors import NirError, UnsupportedError
from nir.ir.dim import evaluate, symbol
from nir.ir.graph import Graph
from nir.ir.interp import run
from nir.ir.op import OPS
from nir.ir.types import DTYPES
from nir.ops.vjp import vjp
from nir.runtime import Executable

B = symbol("B")
# Their results have a packed layout, which only a kernel can read: `pack` makes and tests them.
PACKED = {"pack", "pack_conv2d"}

RUN = [c for c in CASES if c.op.name not in PACKED]


def by_id(case: Case) -> str:
    return case.id


def differentiable(case: Case) -> bool:
    return case.sample.differentiable and any(x.dtype.kind == "f" for x in case.arrays)


def slopes(graph: Graph, arrays: Any) -> tuple[Graph, list[np.ndarray]]:
    """The vjp of a graph, and its inputs: cotangents that are neither equal nor round."""
    rng = np.random.default_rng(0)
    cts = [
        np.asarray(rng.standard_normal(y.shape)).astype(y.dtype)
        for y in run(graph, arrays)
        if y.dtype.kind == "f"
    ]
    return vjp(graph), [*arrays, *cts]


def test_every_op_has_a_case_that_runs() -> None:
    assert set(OPS) - {c.op.name for c in RUN} == PACKED | {"fused"}


@pytest.mark.parametrize("case", RUN, ids=by_id)
def test_samples(case: Case) -> None:
    check(make_graph(case), case.arrays)


WIDENED = [
    c
    for c in RUN
    if any(x.dtype == np.float32 for x in c.arrays) and not c.op.name.startswith("random_")
]


@pytest.mark.parametrize("case", WIDENED, ids=by_id)
def test_samples_in_f64(case: Case) -> None:
    wide = in_f64(case)
    check(make_graph(wide), wide.arrays)


@pytest.mark.parametrize("case", [c for c in RUN if differentiable(c)], ids=by_id)
def test_gradients(case: Case) -> None:
    check(*slopes(make_graph(case), case.arrays))


def test_a_symbolic_leading_size() -> None:
    """One compile of each op and of its gradient serves several batch sizes, 0 and 1 among them."""
    seen = set()
    for case in RUN:
        graph = batched(case)
        if graph is None:
            continue
        seen.add(case.op.name)
        check_sizes(graph, case, compiled(graph))
        if differentiable(case):
            graph, _ = slopes(graph, case.arrays)
            check_sizes(graph, case, compiled(graph))
    assert len(seen) > 70


def check_sizes(graph: Graph, case: Case, exe: Executable) -> None:
    """``exe`` agrees with ``graph`` at the sample's size, and at 0, 1 and more where those fit."""
    n = case.arrays[0].shape[0]
    rng = np.random.default_rng(0)
    for size in (n, 0, 1, 2 * n + 1):
        inputs = [
            np.resize(x, (size, *x.shape[1:])) if t.shape[:1] == (B,) else x
            for x, t in zip(case.arrays, graph.input_types, strict=False)
        ]
        try:
            for t in graph.input_types[len(inputs) :]:  # cotangents
                shape = [evaluate(d, {"B": size}) for d in t.shape]
                inputs.append(np.asarray(rng.standard_normal(shape)).astype(t.dtype.numpy))
            expected = reference(graph, inputs)
        except (NirError, ValueError, IndexError):  # this size does not fit this sample
            assert size != n, case.id
            continue
        got = [flushed(z) for z in outputs(exe, inputs)]
        problem = close(graph, inputs, expected, got)
        assert problem is None, f"{case.id} of {graph.name} at {size}: {problem}"


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("name", ["add", "sum", "matmul", "exp", "conv2d", "softmax"])
def test_half_types_are_refused_by_name(name: str, kind: str) -> None:
    case = next(c for c in CASES if c.op.name == name)
    types = [t.with_(dtype=DTYPES[kind]) for t in types_of(case.arrays)]
    with pytest.raises(UnsupportedError, match=kind):
        compiled(make_graph(case, types))
