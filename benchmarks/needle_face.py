"""Training steps in Needle's own words, on `nir.needle`, from the weights that every peer has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np

from benchmarks.training import LEARNING_RATE, WEIGHT_DECAY
from benchmarks.workloads import Step


def load(model: Any, weights: Mapping[str, np.ndarray]) -> None:
    """Give ``model`` the parameters of its PyTorch twin, in order: Needle transposes matrices."""
    import nir.needle as ndl

    for p, (name, w) in zip(model.parameters(), weights.items(), strict=True):
        match w.ndim:
            case 4:  # OIHW to (k, k, I, O)
                w = w.transpose(2, 3, 1, 0)
            case 2 if "embed" not in name:
                w = w.T
        shape = tuple(p.shape)
        if w.size != np.prod(shape):
            raise ValueError(f"{name}: expected {shape}, got {w.shape}")
        p.data = ndl.Tensor(np.ascontiguousarray(w).reshape(shape), dtype="float32")


def train_step(model: Any, batches: Sequence[Any]) -> Step:
    """The inner loop of the course: forward, loss, backward, Adam, and a look at the loss."""
    import nir.needle as ndl

    optimizer = ndl.optim.Adam(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    loss_of = ndl.nn.SoftmaxLoss()
    model.train()
    turn = cycle(batches)

    def step() -> float:
        x, y = next(turn)
        optimizer.reset_grad()
        out = model(ndl.Tensor(x, dtype="float32"))
        logits = out[0] if isinstance(out, tuple) else out
        loss = loss_of(logits, ndl.Tensor(y.reshape(-1), dtype="float32"))
        loss.backward()
        optimizer.step()
        return float(loss.numpy().reshape(()))

    return step
