"""A layer that is the solution of an equation, trained on digits: a deep equilibrium model.

    python -m examples.deep_equilibrium [--epochs 10] [--hidden 48] [--seed 0]

The layer's output is the fixed point z = f(z) of f(z) = tanh(z W^T + u), u a linear function of the
image. Forward is a `nir.while_loop` that applies f until z stands still. Its gradient does not go
back through these steps: at the fixed point dz = J dz + (df/dtheta) dtheta, J = df/dz, so that
with v = g + J^T v, a fixed point again, the gradient is v^T df/dtheta (implicit function theorem;
Bai et al., Deep Equilibrium Models, 2019). `nir.custom_vjp` puts the second solve in the place of
the derivative of the first: memory does not grow with the number of steps.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

import nir
from examples import digits
from nir import nn
from nir.nn import functional as F

MAX_STEPS = 100


def f(z: nir.Tensor, w: nir.Tensor, u: nir.Tensor) -> nir.Tensor:
    return (F.linear(z, w) + u).tanh()


def fixed_point(
    step: Callable[[nir.Tensor], nir.Tensor], start: nir.Tensor, tolerance: float
) -> tuple[nir.Tensor, nir.Tensor]:
    """(z with z = step(z) up to ``tolerance`` in every element, i64[] the number of steps)."""

    def unsettled(carry: tuple[nir.Tensor, ...]) -> nir.Tensor:
        z, before, _ = carry
        return ((z - before).abs() > tolerance).any()

    def advance(carry: tuple[nir.Tensor, ...]) -> tuple[nir.Tensor, ...]:
        z, _, count = carry
        return step(z), z, count + 1

    first = (step(start), start, nir.full((), 1))
    z, _, count = nir.while_loop(unsettled, advance, first, max_trips=MAX_STEPS)
    return z, count


def equilibrium(tolerance: float) -> Callable[..., tuple[nir.Tensor, nir.Tensor]]:
    """The function (w, u) -> (z = f(z, w, u), steps taken), whose gradient is another solve."""

    def forward(w: nir.Tensor, u: nir.Tensor) -> tuple[nir.Tensor, nir.Tensor]:
        return fixed_point(lambda z: f(z, w, u), nir.zeros_like(u), tolerance)

    def backward(operands: tuple, results: tuple, cotangents: tuple) -> tuple:
        (w, u), (z, _), (g,) = operands, results, cotangents
        _, pull = nir.vjp(f, z, w, u)  # v -> (J^T v, v^T df/dw, v^T df/du)
        v, _ = fixed_point(lambda v: g + pull(v)[0], g, tolerance)
        return pull(v)[1:]

    return nir.custom_vjp(forward, backward)


class DeepEquilibrium(nn.Module):
    """f32[B,1,8,8] -> (logits f32[B,10], i64[] the steps of the solve)."""

    def __init__(self, hidden: int, tolerance: float = 1e-5) -> None:
        super().__init__()
        self.encode = nn.Linear(digits.SIDE**2, hidden)
        self.weight = nn.Parameter(nir.randn(hidden, hidden) / hidden)
        self.decode = nn.Linear(hidden, 10)
        self.solve = equilibrium(tolerance)

    def contraction(self) -> nir.Tensor:
        """W, its rows scaled to |w|_1 <= 0.9: f is then a contraction, and has one fixed point."""
        rows = self.weight.abs().sum(1, keepdim=True)
        return self.weight * (0.9 / nir.maximum(rows, 0.9))

    def forward(self, x: nir.Tensor) -> tuple[nir.Tensor, nir.Tensor]:
        z, steps = self.solve(self.contraction(), self.encode(x.flatten(1)))
        return self.decode(z), steps


class Trainer:
    """The model, its optimiser and the two compiled functions."""

    def __init__(self, hidden: int, lr: float = 5e-3) -> None:
        self.model = model = DeepEquilibrium(hidden)
        optimizer = nir.optim.Adam(model.parameters(), lr=lr)

        @nir.jit(state=[model, optimizer])
        def train(x: nir.Tensor, y: nir.Tensor) -> tuple[nir.Tensor, nir.Tensor]:
            optimizer.zero_grad()
            logits, steps = model(x)
            loss = F.cross_entropy(logits, y)
            loss.backward()
            optimizer.step()
            return loss.detach(), steps

        @nir.jit(state=[model])
        def evaluate(x: nir.Tensor, y: nir.Tensor) -> nir.Tensor:
            return (model(x)[0].argmax(1) == y).to("f32").mean()

        self.train, self.evaluate = train, evaluate

    def epoch(self, images: np.ndarray, labels: np.ndarray, seed: list[int]) -> tuple[float, float]:
        """The mean loss and the mean number of steps of the forward solve."""
        done = [
            [t.item() for t in self.train(images[i], labels[i])]
            for i in digits.batches(len(images), 32, seed)
        ]
        loss, steps = np.mean(done, axis=0)
        return loss, steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--hidden", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    nir.manual_seed(args.seed)
    train, test = digits.load(), digits.load("test")
    trainer = Trainer(args.hidden)
    for i in range(1, args.epochs + 1):
        start = time.perf_counter()
        loss, steps = trainer.epoch(*train, seed=[args.seed, i])
        seconds = time.perf_counter() - start
        print(f"epoch {i:2}/{args.epochs}  loss {loss:.4f}  test accuracy "
              f"{trainer.evaluate(*test).item():.4f}  {steps:.1f} steps a solve  "
              f"{seconds * 1e3:.0f} ms", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
