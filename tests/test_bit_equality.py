"""The same bits on every ISA level and for any number of threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import fuzz
import fuzz_cpu
import numpy as np
import pytest
from backend_harness import ISAS, close, compiled, flushed, outputs, reference, same_bits
from pass_harness import graph_of, linear, random_inputs, resnet9_step

from nir.errors import NirError
from nir.ir.dim import symbol
from nir.ir.graph import Graph
from nir.ops.expr import Expr
from nir.ops.vjp import gradient
from nir.runtime import get_num_threads, set_num_threads

B = symbol("B")


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = get_num_threads()
    yield
    set_num_threads(before)


def mlp_step() -> Graph:
    """(x, labels, w1, b1, w2, b2) -> loss and the parameters after a step of SGD."""

    def loss(x: Expr, y: Expr, w1: Expr, b1: Expr, w2: Expr, b2: Expr) -> Expr:
        h = linear(x, w1, b1).relu()
        return linear(h, w2, b2).cross_entropy(y).mean((0,))

    specs = ("f32[B,100]", "i64[B]", "f32[130,100]", "f32[130]", "f32[10,130]", "f32[10]")
    with_grads = gradient(graph_of(loss, *specs), wrt=range(2, 6))

    def step(*given: Expr) -> list[Expr]:
        b = given[0].builder
        total, *grads = (Expr(b, v) for v in b.inline(with_grads, [e.value for e in given]))
        return [total, *(p - g * 0.1 for p, g in zip(given[2:], grads, strict=True))]

    return graph_of(step, *specs, name="mlp")


def transformer_block(x: Expr, wq: Expr, wk: Expr, wv: Expr, wo: Expr, up: Expr, down: Expr,
                      scale: Expr, shift: Expr) -> Expr:  # fmt: skip
    """f32[B,7,32], two heads of 16: pre-norm attention, then a gated layer, with residuals."""

    def heads(t: Expr) -> Expr:
        return t.reshape((*t.shape[:2], 2, 16)).transpose((0, 2, 1, 3))

    def project(t: Expr, w: Expr) -> Expr:
        flat = t.reshape((t.shape[0] * t.shape[1], t.shape[2])).matmul(w)
        return flat.reshape((*t.shape[:2], flat.shape[1]))

    n = x.layer_norm(scale, shift, eps=1e-5)
    q, k, v = (heads(project(n, w)) for w in (wq, wk, wv))
    weights = (q.matmul(k, transpose_rhs=True) * 0.25).softmax(3)
    y = weights.matmul(v).transpose((0, 2, 1, 3)).reshape(x.shape)
    x = x + project(y, wo)
    h = project(x.layer_norm(scale, shift, eps=1e-5), up)
    h = h * h.sigmoid() + (h * 0.7).erf()
    return x + project(h, down)


def transformer_step() -> Graph:
    def loss(*given: Expr) -> Expr:
        y = transformer_block(*given)
        return (y * y.tanh()).mean((0, 1, 2))

    square = ["f32[32,32]"] * 4
    specs = ["f32[B,7,32]", *square, "f32[32,80]", "f32[80,32]", "f32[32]", "f32[32]"]
    return gradient(graph_of(loss, *specs, name="transformer"))


MODELS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "mlp": (mlp_step, (1, 37, 256)),
    "resnet9": (resnet9_step, (3, 32)),
    "transformer": (transformer_step, (2, 33)),
}


def runs(
    graph: Graph, inputs: list[np.ndarray], isas: Sequence[str] = tuple(ISAS)
) -> dict[str, list[np.ndarray]]:
    out = {}
    for isa in isas:
        exe = compiled(graph, isa)
        for threads in (1, 2, 3):
            set_num_threads(threads)
            out[f"{isa}, {threads} threads"] = outputs(exe, inputs)
    return out


def assert_one_result(found: dict[str, list[np.ndarray]]) -> None:
    (first, expected), *rest = found.items()
    for name, got in rest:
        same_bits(expected, got, f"{first} and {name}")


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str) -> None:
    make, batches = MODELS[name]
    graph = make()
    for batch in batches:
        inputs = [
            x if x.dtype.kind == "i" else (x * np.float32(0.2)).astype(x.dtype)
            for x in random_inputs(graph, 1, {"B": batch})
        ]
        if name == "resnet9":  # Adam's second moments are not negative
            inputs[-(len(inputs) - 2) // 3 :] = [abs(x) for x in inputs[-(len(inputs) - 2) // 3 :]]
        found = runs(graph, inputs)
        assert_one_result(found)
        got = [flushed(z) for z in next(iter(found.values()))]
        assert all(np.isfinite(z).all() for z in got)
        problem = close(graph, inputs, reference(graph, inputs), got)
        assert problem is None, f"{name} at batch {batch}: {problem}"


@pytest.mark.parametrize("m", [100, 530])
def test_products_that_threads_cut_by_rows_and_by_columns(m: int) -> None:
    def fn(x: Expr, w: Expr, dy: Expr) -> list[Expr]:
        return [x.matmul(w, transpose_rhs=True).relu(), dy.matmul(w), dy.matmul(x, True)]

    graph = graph_of(fn, f"f32[{m},300]", "f32[600,300]", f"f32[{m},600]")
    inputs = random_inputs(graph, 2)
    found = runs(graph, inputs)
    assert_one_result(found)
    got = next(iter(found.values()))
    assert close(graph, inputs, reference(graph, inputs), got) is None


def test_random_graphs_of_large_batches() -> None:
    """Large enough for several threads, with every op that follows the batch size."""
    tried = 0
    for seed in range(0, 150, 2):
        case = fuzz.generate(seed)
        graph, inputs = fuzz_cpu.runnable(case.graph, case.inputs)
        rng = np.random.default_rng(seed)
        large = []
        for x, t in zip(inputs, graph.input_types, strict=True):
            if t.shape[:1] == (B,):
                x = np.resize(x, (3000, *x.shape[1:]))
                if x.dtype.kind == "f":  # equal rows would round alike, and errors add up
                    x = (x * rng.uniform(0.8, 1.2, x.shape)).astype(x.dtype)
            large.append(x)
        try:
            graph, large = fuzz_cpu.runnable(graph, large)  # products of so many may overflow
            expected = reference(graph, large)
        except (NirError, ValueError, IndexError):  # a size of the sample that is not the batch's
            continue
        if max((y.nbytes for y in expected), default=0) < 100_000:
            continue
        found = runs(graph, large, ISAS[1:] if tried % 8 else ISAS)
        assert_one_result(found)
        got = [flushed(z) for z in next(iter(found.values()))]
        problem = close(graph, large, expected, got)
        assert problem is None, f"seed {seed}: {problem}"
        tried += 1
    assert tried > 12
