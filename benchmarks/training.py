"""Training steps for the workloads: the same loop on nir, on PyTorch and on JAX."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any

from benchmarks import weights
from benchmarks.workloads import Step

LEARNING_RATE, WEIGHT_DECAY = 5e-4, 1e-3
_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8


def nir_step(model: Any, batches: Sequence[Any], specs: tuple[str, str] | None = None) -> Step:
    """A compiled step of ``model``: forward, cross-entropy, backward, Adam.

    ``specs`` are the types of a batch; by default images and labels, of any number.
    """
    import nir
    from nir.nn import functional as F

    model.load_state_dict(weights.make(model.state_dict()))
    optimizer = nir.optim.Adam(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    sizes = ",".join(map(str, batches[0][0].shape[1:]))
    specs = specs or (f"f32[B,{sizes}]", "i64[B]")

    @nir.jit(state=[model, optimizer], specs=specs)
    def train(x: nir.Tensor, y: nir.Tensor) -> nir.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y.reshape(-1))
        loss.backward()
        optimizer.step()
        return loss.detach()

    return NirStep(train, [(nir.tensor(x), nir.tensor(y)) for x, y in batches])


class NirStep:
    """A step on each batch in turn; ``train`` is the compiled function."""

    def __init__(self, train: Any, batches: Sequence[Any]) -> None:
        self.train, self.batches = train, batches
        self._turn = cycle(batches)

    def __call__(self) -> float:
        loss: float = self.train(*next(self._turn)).item()
        return loss


def torch_step(
    model: Any, batches: Sequence[Any], *, compiled: bool = False, channels_last: bool = False
) -> Step:
    """The same in PyTorch, eager or through torch.compile, with Adam as one fused kernel."""
    import torch

    from benchmarks import torch_twins

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch_twins.load(model, weights.make(model.state_dict()))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model.to(memory_format=layout)
    optimizer = torch.optim.Adam(
        model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
    )

    def loss_of(x: Any, y: Any) -> Any:
        return torch.nn.functional.cross_entropy(model(x), y.reshape(-1))

    forward = torch.compile(loss_of) if compiled else loss_of
    turn = cycle(
        [
            (torch.from_numpy(x).contiguous(memory_format=layout), torch.from_numpy(y))
            for x, y in batches
        ]
    )

    def step() -> float:
        optimizer.zero_grad()
        loss = forward(*next(turn))
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def torch_peers(model: Callable[[], Any], batches: Callable[[], Any]) -> dict[str, Any]:
    """The peers of PyTorch for a model without convolutions."""
    return {
        "torch": lambda: torch_step(model(), batches()),
        "torch_compile": lambda: torch_step(model(), batches(), compiled=True),
    }


def torch_image_peers(model: Callable[[], Any], batches: Callable[[], Any]) -> dict[str, Any]:
    """The peers of PyTorch for a model with convolutions."""
    channels_last = {
        "torch_channels_last": lambda: torch_step(model(), batches(), channels_last=True)
    }
    return torch_peers(model, batches) | channels_last


def jax_step(
    forward: Callable[..., Any], shapes: Mapping[str, tuple[int, ...]], batches: Sequence[Any]
) -> Step:
    """The same in JAX: one jitted function that is given its state to overwrite.

    ``forward(p, x)`` gives the logits, and new values of what is not trained: the running
    statistics of norms, by path.
    """
    if os.environ["OMP_NUM_THREADS"] == "1":
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    import jax
    import jax.numpy as jnp

    class Shaped:
        def __init__(self, shape: tuple[int, ...]) -> None:
            self.shape = shape

    made = weights.make({path: Shaped(s) for path, s in shapes.items()})
    running = {k: jnp.asarray(v) for k, v in made.items() if ".running_" in k}
    params = {k: jnp.asarray(v) for k, v in made.items() if k not in running}
    moments = [jax.tree.map(jnp.zeros_like, params) for _ in range(2)]

    def loss_of(params: Any, running: Any, x: Any, y: Any) -> Any:
        logits, running = forward({**params, **running}, x)
        labels = y.reshape(-1)
        picked = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
        return (jax.nn.logsumexp(logits, axis=1) - picked).mean(), running

    def train(state: Any, x: Any, y: Any) -> Any:
        params, running, m, v, t = state
        (loss, running), grads = jax.value_and_grad(loss_of, has_aux=True)(params, running, x, y)
        t = t + 1
        grads = jax.tree.map(lambda g, p: g + WEIGHT_DECAY * p, grads, params)
        m = jax.tree.map(lambda m, g: _BETA1 * m + (1 - _BETA1) * g, m, grads)
        v = jax.tree.map(lambda v, g: _BETA2 * v + (1 - _BETA2) * g * g, v, grads)
        rate, scale = LEARNING_RATE / (1 - _BETA1**t), jnp.sqrt(1 - _BETA2**t)
        params = jax.tree.map(
            lambda p, m, v: p - rate * m / (jnp.sqrt(v) / scale + _EPSILON), params, m, v
        )
        return (params, running, m, v, t), loss

    compiled = jax.jit(train, donate_argnums=0)
    state: Any = (params, running, *moments, jnp.float32(0))
    del made, params, running, moments
    turn = cycle([(jnp.asarray(x), jnp.asarray(y)) for x, y in batches])

    def step() -> float:
        nonlocal state
        state, loss = compiled(state, *next(turn))
        return float(loss)

    return step
