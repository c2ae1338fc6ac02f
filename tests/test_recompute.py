"""`nir.checkpoint`: equal results and gradients, less kept from the forward to the backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import nir
from nir import nn
from nir.errors import NotDifferentiable
from nir.ir.op import OPS
from nir.ops.vjp import gradient

DEPTH = 6


def data(*shape: int, seed: int = 0) -> nir.Tensor:
    return nir.tensor(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def identity(fn: Any) -> Any:
    return fn


def blocks() -> list[nn.Module]:
    nir.manual_seed(1)
    return [
        nn.Sequential(
            nn.Linear(32, 32), nn.BatchNorm1d(32), nn.Tanh(), nn.Dropout(0.4), nn.Linear(32, 32)
        )
        for _ in range(DEPTH)
    ]


def train(wrap: Callable[[Any], Any], compiled: bool) -> tuple[list[Any], Any]:
    """Losses and all state after three steps, and the step."""
    layers = blocks()
    wrapped = [wrap(layer) for layer in layers]
    opt = nir.optim.Adam([p for layer in layers for p in layer.parameters()], 0.01)

    def step(x: nir.Tensor) -> nir.Tensor:
        opt.zero_grad()
        for layer in wrapped:
            x = x + layer(x)
        loss = (x * x).mean()
        loss.backward()
        opt.step()
        return loss

    run = nir.jit(step, state=[*layers, opt]) if compiled else step
    x = data(256, 32)
    seen = [run(x).item() for _ in range(3)]
    state = [t.numpy() for layer in layers for t in layer.state_dict().values()]
    return [seen, state], run


@pytest.mark.parametrize("compiled", [True, False])
def test_training_is_equal_to_the_bit(compiled: bool) -> None:
    """Dropout draws the same numbers, and running statistics are updated once."""
    (losses, state), plain = train(identity, compiled)
    (own_losses, own_state), checkpointed = train(nir.checkpoint, compiled)
    assert own_losses == losses and len(set(losses)) == 3
    for a, b in zip(state, own_state, strict=True):
        np.testing.assert_array_equal(a, b)
    if compiled:
        before, after = (f.executable.program for f in (plain, checkpointed))
        assert after.arena < 0.75 * before.arena
        assert len(after.calls) > len(before.calls)


def _chain(wrap: Callable[[Any], Any]) -> Callable[[nir.Tensor], nir.Tensor]:
    f = wrap(lambda x: ((x * 1.5).exp() + x).log().tanh())
    return lambda x: f(f(x)).sum()


def test_gradients_of_any_kind() -> None:
    x, ct = data(5, 3), nir.tensor(2.0)
    for own, plain in (
        (nir.grad(_chain(nir.checkpoint))(x), nir.grad(_chain(identity))(x)),
        (nir.value_and_grad(_chain(nir.checkpoint))(x)[1], nir.grad(_chain(identity))(x)),
        (nir.vjp(_chain(nir.checkpoint), x)[1](ct)[0], nir.vjp(_chain(identity), x)[1](ct)[0]),
    ):
        np.testing.assert_array_equal(own.numpy(), plain.numpy())


def test_gradients_of_gradients() -> None:
    def slope(wrap: Callable[[Any], Any]) -> Any:
        first = nir.grad(_chain(wrap))
        return nir.grad(lambda x: (first(x) ** 2).sum())

    x = data(4, 2)
    own, plain = slope(nir.checkpoint)(x), slope(identity)(x)
    np.testing.assert_allclose(own.numpy(), plain.numpy(), rtol=1e-5)


def test_graphs_that_were_traced_are_differentiated_with_their_checkpoints() -> None:
    graph = nir.trace(_chain(nir.checkpoint), "f32[B,3]")
    derived = gradient(graph)
    assert sum(op.name == "hold" for op in derived.nodes) == 2
    # One exp for each use, and once more in the backward.
    assert sum(op.name == "exp" for op in derived.nodes) == 4


def test_a_checkpoint_in_another_is_part_of_it() -> None:
    inner = nir.checkpoint(lambda x: x.exp())
    outer = nir.checkpoint(lambda x: inner(x).tanh())
    graph = nir.trace(nir.grad(lambda x: outer(x).sum()), "f32[4]")
    assert sum(op.name == "hold" for op in graph.nodes) == 1


def test_in_the_body_of_a_loop() -> None:
    w = data(8, 8)

    def total(wrap: Callable[[Any], Any]) -> Any:
        cell = wrap(lambda h, x: (x + h @ w).tanh())
        return nir.grad(
            lambda xs: nir.scan(lambda h, x: (cell(h, x), None), nir.zeros(4, 8), xs)[0].sum()
        )

    xs = data(5, 4, 8)
    own = nir.jit(total(nir.checkpoint), state={"w": w})(xs)
    np.testing.assert_array_equal(own.numpy(), nir.jit(total(identity), state={"w": w})(xs).numpy())


def test_without_gradients_nothing_is_marked() -> None:
    marked = nir.trace(nir.checkpoint(lambda x: x.exp()), "f32[4]")
    assert [op.segment for op in marked.nodes] != [0]
    with nir.no_grad():
        plain = nir.trace(nir.checkpoint(lambda x: x.exp()), "f32[4]")
    assert [op.segment for op in plain.nodes] == [0]


def test_what_reads_parameters_only() -> None:
    """With nothing else to hold back, what is read is held back all the same."""
    w = nir.tensor([0.5, -0.5], requires_grad=True)
    block = nir.checkpoint(lambda: (w * 2).exp())
    block().sum().backward()
    np.testing.assert_allclose(w.grad.numpy(), 2 * np.exp([1.0, -1.0]), rtol=1e-6)


def test_effects_do_not_happen_twice() -> None:
    seen = []

    def note(x: np.ndarray) -> np.ndarray:
        seen.append(x.copy())
        return x

    def fn(x: nir.Tensor) -> nir.Tensor:
        return nir.host_call(note, "f32[2]", x).exp() * x

    with pytest.raises(NotDifferentiable, match="may have effects, and a checkpoint"):
        nir.grad(lambda x: nir.checkpoint(fn)(x).sum())(nir.tensor([1.0, 2.0]))
    assert not seen


def test_hold_keeps_its_operand_from_being_merged() -> None:
    assert OPS["hold"].view
    graph = nir.trace(
        nir.grad(lambda x: nir.checkpoint(lambda x: x.exp().tanh())(x).sum()), "f32[4]"
    )
    exe = nir.compile(graph).executable
    np.testing.assert_allclose(
        exe(np.zeros(4, np.float32)).numpy(), np.full(4, 1 - np.tanh(1.0) ** 2), rtol=1e-6
    )
