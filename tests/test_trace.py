"""Tracing: what the Graph is, what names and types it has, what it refuses."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import nir
from nir import nn
from nir.errors import ParseError, ShapeError, TraceError
from nir.frontend import pytree
from nir.frontend.state import snapshot
from nir.ir.dim import symbol
from nir.ir.graph import Graph
from nir.ir.interp import run


def test_graph_of_a_function() -> None:
    def mlp(x: nir.Tensor, w: nir.Tensor, b: nir.Tensor) -> nir.Tensor:
        return (x @ w + b).relu()

    graph = nir.trace(mlp, "f32[B,784]", "f32[784,100]", nir.spec("f32[100]"))
    assert graph.name == "mlp" and graph.input_names == ("x", "w", "b")
    assert [str(t) for t in graph.output_types] == ["f32[B,100]"]
    assert graph.count() == {"add": 1, "broadcast": 1, "matmul": 1, "relu": 1}
    lines = {str(loc) for op in graph.nodes for loc in op.locs}
    assert lines == {f"tests/test_trace.py:{mlp.__code__.co_firstlineno + 1}"}


def test_the_graph_computes_what_the_function_does() -> None:
    def fn(x: nir.Tensor, y: nir.Tensor) -> tuple[nir.Tensor, nir.Tensor]:
        return x.softmax(1) * 3, (x - y).sum(0)

    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal(s).astype(np.float32) for s in ((5, 3), (3,)))
    found = run(nir.trace(fn, "f32[B,3]", "f32[3]"), [x, y])
    for a, b in zip(found, fn(nir.tensor(x), nir.tensor(y)), strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-6)


def test_equal_functions_have_equal_graphs() -> None:
    first = nir.trace(lambda x: x.exp() + 1, "f32[B]")
    second = nir.trace(lambda y: y.exp() + 1, "f32[B]")
    assert first == second and first.key == second.key
    assert first != nir.trace(lambda x: x.exp() + 2, "f32[B]")


def test_symbolic_sizes() -> None:
    seen: list[Any] = []

    def fn(x: nir.Tensor) -> nir.Tensor:
        seen.append(x.shape)
        y = x.reshape(-1, 2, 3).flatten(1)
        return nir.cat([y, y], 0)[:, None].mean(0) * x.shape[0]

    graph = nir.trace(fn, "f32[B,6]")
    assert seen == [(symbol("B"), 6)]
    assert [str(t) for t in graph.output_types] == ["f32[1,6]"]
    (out,) = run(graph, [np.ones((3, 6), np.float32)])
    assert (out == 3).all()


def test_slices_of_a_symbolic_axis() -> None:
    def fn(x: nir.Tensor) -> Any:
        return x[1:], x[:-1], x[::-1], x[1:-1] + x[2:]

    types = nir.trace(fn, "f32[S]").output_types
    assert [str(t) for t in types] == ["f32[S-1]", "f32[S-1]", "f32[S]", "f32[S-2]"]
    with pytest.raises(ShapeError, match="may leave the symbolic axis 0 of size S"):
        nir.trace(lambda x: x[:5], "f32[S]")
    with pytest.raises(ShapeError, match="expected a positive step"):
        nir.trace(lambda x: x[4:0:-1], "f32[S]")


def test_a_size_as_a_number() -> None:
    (out,) = run(nir.trace(lambda x: x.sum() / x.shape[0], "f32[B]"), [np.ones(4, np.float32)])
    assert out == 1


def test_constants_made_inside() -> None:
    def fn(x: nir.Tensor) -> nir.Tensor:
        table = nir.tensor([1.0, 2.0, 4.0])
        scale = 2 if table[1] > 1 else 3  # known while tracing
        return x * table * scale

    graph = nir.trace(fn, "f32[3]")
    assert graph.count()["constant"] == 1
    (out,) = run(graph, [np.ones(3, np.float32)])
    assert out.tolist() == [2, 4, 8]


def test_declared_constants() -> None:
    outside = nir.tensor([1.0, 2.0])
    graph = nir.trace(lambda x: x + nir.constant(outside), "f32[2]")
    assert graph.count() == {"add": 1, "constant": 1}


def test_trees_and_static_arguments() -> None:
    Pair = namedtuple("Pair", "a b")

    def fn(tree: dict[str, Any], pair: Any, power: int, *, flip: bool = False) -> Any:
        y = tree["x"] * pair.a + pair.b[0]
        return {"y": y**power, "power": power, "z": [y.flip(0)] if flip else []}

    args = {"x": nir.spec("f32[4]")}, Pair("f32[4]", ["f32[]"]), 3
    graph = nir.trace(fn, *args, flip=True)
    assert graph.input_names == ("tree.x", "pair.0", "pair.1.0")
    assert len(graph.outputs) == 2
    assert len(nir.trace(fn, *args).outputs) == 1


@dataclass
class Box:
    inner: Any
    label: str


def test_registered_trees() -> None:
    nir.register_pytree(Box, lambda b: ([b.inner], b.label), lambda label, c: Box(*c, label))
    out = nir.jit(lambda box: Box(box.inner * 2, box.label + "!"))(Box(nir.ones(2), "a"))
    assert out.label == "a!" and out.inner.tolist() == [2, 2]


def test_trees_keep_their_structure() -> None:
    tree = {"a": [1.0, np.ones(2)], "b": (nir.ones(1), None, "text")}
    leaves, structure = pytree.flatten(tree)
    assert len(leaves) == 2
    assert pytree.unflatten(structure, leaves) == tree
    # Numbers that are equal and trace differently make different structures.
    assert pytree.flatten((1,))[1] != pytree.flatten((True,))[1] != pytree.flatten((1.0,))[1]


def test_state_becomes_named_inputs_and_outputs() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    before = [p.numpy().copy() for p in model.parameters()]
    graph = nir.trace(model, "f32[B,3]")
    assert graph.input_names == (
        "x", "_0.weight", "_0.bias", "_1.weight", "_1.bias", "_1.running_mean", "_1.running_var",
        "_1.num_batches_tracked",
    )  # fmt: skip
    assert [str(t) for t in graph.output_types] == ["f32[B,4]", "f32[4]", "f32[4]", "i64[]"]
    evaluation = nir.trace(model.eval(), "f32[B,3]")
    assert len(evaluation.inputs) == 7 and len(evaluation.outputs) == 1
    # Tracing has left the model alone.
    for p, old in zip(model.parameters(), before, strict=True):
        np.testing.assert_array_equal(p.numpy(), old)


def test_a_failed_trace_leaves_the_state_alone() -> None:
    model = nn.Linear(3, 2)
    weight = model.weight

    def fn(x: nir.Tensor) -> nir.Tensor:
        model.weight.copy_(nir.zeros(2, 3))
        model.weight = nn.Parameter(nir.ones(2, 3))
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        nir.trace(fn, "f32[3]", state=[model])
    assert model.weight is weight and weight.numpy().any() and not weight._cell.symbolic


def test_random_state_is_an_input() -> None:
    graph = nir.trace(lambda x: x * nir.rand(*x.shape), "f32[B]")
    assert graph.input_names[1:] == ("default_generator.key", "default_generator.counter")
    assert [str(t) for t in graph.output_types] == ["f32[B]", "i64[]"]


def test_gradients_carry_the_forward_lines() -> None:
    def loss(w: nir.Tensor, x: nir.Tensor) -> nir.Tensor:
        h = x @ w
        return h.exp().sum()

    graph = nir.trace(nir.grad(loss), "f32[3]", "f32[B,3]")
    first = loss.__code__.co_firstlineno
    lines = {loc.line for op in graph.nodes for loc in op.locs if op.name == "matmul"}
    assert lines == {first + 1}
    assert all(op.locs for op in graph.nodes)


def test_unused_effects_stay() -> None:
    seen = []

    def fn(x: nir.Tensor) -> nir.Tensor:
        nir.host_call(lambda a: seen.append(a.sum()) or a, "f32[2]", x)
        return x * 2

    graph = nir.trace(fn, "f32[2]")
    assert graph.count()["host_call"] == 1
    nir.jit(fn)(nir.ones(2))
    assert seen == [2.0]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("f32[B,3,32,32]", "f32[B,3,32,32]"),
        (" i64 [ ] ", "i64[]"),
        ("f32[2*B+1]", "f32[2*B+1]"),
        ("bool[S - 1]", "bool[S-1]"),
        ("f32[4]@cuda", "f32[4]@cuda"),
    ],
)
def test_spec(text: str, shown: str) -> None:
    assert str(nir.spec(text)) == shown


@pytest.mark.parametrize("text", ["f32", "f33[2]", "f32[-1]", "f32[B*C]", "f32[2", "f32[2][3]"])
def test_spec_refuses(text: str) -> None:
    with pytest.raises(ParseError, match="spec: expected") as caught:
        nir.spec(text)
    assert "test_trace.py" in str(caught.value.location)


def test_state_walk() -> None:
    model = nn.Linear(2, 2)
    shared = {"model": model, "again": [model.weight], "n": 3}
    found = snapshot([shared])
    assert [s.path for s in found.slots] == ["model.weight", "model.bias"]
    assert found.facts["again.0"][1] == "the same as model.weight"
    assert found.facts["n"] == (int, 3)
    assert found.holds()
    shared["n"] = 4
    assert not found.holds()
    assert found.differences(snapshot([shared])) == ["n: 3 -> 4"]


class Stated:
    def __init__(self) -> None:
        self.hidden, self.value, self.rate = object(), nir.ones(2), 0.5

    def __nir_state__(self) -> list[tuple[str, Any]]:
        return [("value", self.value), ("rate", self.rate)]


def test_state_protocol() -> None:
    thing = Stated()
    found = snapshot([thing])
    assert [s.path for s in found.slots] == ["value"] and found.facts["rate"] == (float, 0.5)

    def double() -> None:
        thing.value.mul_(2)

    fn = nir.jit(double, state=[thing])
    fn()
    fn()
    assert thing.value.tolist() == [4, 4] and fn.compiles == 1


def test_graphs_are_refused_as_what_they_are_not() -> None:
    with pytest.raises(TraceError, match=r"a tensor \(%x: f32\[3\]\) of another trace is read"):
        kept: list[nir.Tensor] = []
        nir.trace(lambda x: kept.append(x) or x, "f32[3]")
        nir.trace(lambda y: y + kept[0], "f32[3]")
    assert isinstance(nir.trace(lambda x: x, "f32[3]"), Graph)


def test_a_symbolic_size_is_a_number_for_tensors_alone() -> None:
    graph = nir.trace(lambda x: x.shape[0] * x + x.shape[0] // 2, "f32[B]")
    (out,) = run(graph, [np.ones(5, np.float32)])
    assert out.tolist() == [7] * 5
    with pytest.raises(TypeError, match="unsupported operand"):
        nir.trace(lambda x: x * (0.5 * x.shape[0]), "f32[B]")
