"""A GAN that learns a Gaussian in the plane, two compiled steps in turn.

    python -m examples.gan [--steps 2000] [--batch 32] [--seed 0]

The data are x = z A + b with z normal, so that their covariance is A^T A. The generator is one
linear layer, G(z) = z W^T + c: it has learned the distribution when W W^T = A^T A and c = b. W
itself is free up to a rotation.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

import nir
from nir import nn
from nir.nn import functional as F

A = np.array([[1, 2], [-0.2, 0.5]], np.float32)
MEAN = np.array([2, 1], np.float32)
COVARIANCE = A.T @ A  # [[1.04, 1.9], [1.9, 4.25]]


class Gan:
    """The two models, their optimisers and the two compiled steps."""

    def __init__(self, batch: int = 32, lr: float = 0.01) -> None:
        self.generator = generator = nn.Linear(2, 2)
        self.discriminator = discriminator = nn.Sequential(
            nn.Linear(2, 20), nn.ReLU(), nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 2)
        )
        both = [generator, discriminator]
        optimizer_g, optimizer_d = (
            nir.optim.Adam(m.parameters(), lr=lr, betas=(0.5, 0.999)) for m in both
        )

        def judged(x: nir.Tensor, label: int) -> nir.Tensor:
            return F.cross_entropy(discriminator(x), nir.full((batch,), label))

        # Without arguments: the programs draw their own numbers, and move the generator's counter.
        @nir.jit(state=[*both, optimizer_d])
        def train_discriminator() -> nir.Tensor:
            real = nir.randn(batch, 2) @ nir.constant(A) + nir.constant(MEAN)
            fake = generator(nir.randn(batch, 2)).detach()
            optimizer_d.zero_grad()
            loss = judged(real, 1) + judged(fake, 0)
            loss.backward()
            optimizer_d.step()
            return loss.detach()

        @nir.jit(state=[*both, optimizer_g])
        def train_generator() -> nir.Tensor:
            optimizer_g.zero_grad(), discriminator.zero_grad()
            loss = judged(generator(nir.randn(batch, 2)), 1)
            loss.backward()
            optimizer_g.step()
            # The loss went through the discriminator: its gradients would be results as well.
            discriminator.zero_grad()
            return loss.detach()

        self.train_discriminator, self.train_generator = train_discriminator, train_generator

    def train(self, steps: int) -> tuple[float, float]:
        """``steps`` of both in turn; the last losses, of discriminator and generator."""
        for _ in range(steps):
            loss_d, loss_g = self.train_discriminator(), self.train_generator()
        return loss_d.item(), loss_g.item()

    def learned(self) -> tuple[np.ndarray, np.ndarray]:
        """(covariance, mean) of what the generator makes: f32[2,2] and f32[2]."""
        w = self.generator.weight.detach().numpy()
        return w @ w.T, self.generator.bias.detach().numpy()


def shown(array: np.ndarray) -> str:
    return np.array2string(array, precision=3, floatmode="fixed", separator=", ").replace("\n", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    nir.manual_seed(args.seed)
    gan = Gan(args.batch)
    start = time.perf_counter()
    loss_d, loss_g = gan.train(args.steps)
    seconds = time.perf_counter() - start
    covariance, mean = gan.learned()
    print(f"{args.steps} steps of each in {seconds:.1f} s, compile time included")
    print(f"losses            discriminator {loss_d:.4f}, generator {loss_g:.4f}")
    for name, got, true in (("G^T G", covariance, COVARIANCE), ("bias", mean, MEAN)):
        print(f"{name:16}  {shown(got)}, of the data {shown(true)}")


if __name__ == "__main__":
    main()
