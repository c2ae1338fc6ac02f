"""Training steps for the workloads: the same loop on nir and on PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import Any

from benchmarks import weights
from benchmarks.workloads import Step

LEARNING_RATE, WEIGHT_DECAY = 5e-4, 1e-3


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

    turn = cycle([(nir.tensor(x), nir.tensor(y)) for x, y in batches])
    return lambda: train(*next(turn)).item()


def torch_step(model: Any, batches: Sequence[Any], compiled: bool) -> Step:
    """The same in PyTorch, eager or through torch.compile."""
    import os

    import torch

    from benchmarks import torch_twins

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch_twins.load(model, weights.make(model.state_dict()))
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def loss_of(x: Any, y: Any) -> Any:
        return torch.nn.functional.cross_entropy(model(x), y.reshape(-1))

    forward = torch.compile(loss_of) if compiled else loss_of
    turn = cycle([(torch.from_numpy(x), torch.from_numpy(y)) for x, y in batches])

    def step() -> float:
        optimizer.zero_grad()
        loss = forward(*next(turn))
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step
