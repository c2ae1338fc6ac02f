"""A DCGAN that learns to draw digits of 8x8 pixels.

    python -m examples.dcgan [--epochs 40] [--seed 0] [--out out/dcgan.png]

The generator goes from a vector of noise to an image by transposed convolutions, the
discriminator back by strided ones, both with batch norm. Radford et al., Unsupervised
Representation Learning with Deep Convolutional Generative Adversarial Networks, 2016.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

import nir
from examples import digits
from nir import nn
from nir.nn import functional as F

NOISE, CHANNELS, BATCH = 32, 32, 32


def generator() -> nn.Sequential:
    """f32[B,32,1,1] -> images f32[B,1,8,8] from -1 to 1."""
    c = CHANNELS
    return nn.Sequential(
        nn.ConvTranspose2d(NOISE, 2 * c, 2, bias=False),
        nn.BatchNorm2d(2 * c),
        nn.ReLU(),
        nn.ConvTranspose2d(2 * c, c, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(c),
        nn.ReLU(),
        nn.ConvTranspose2d(c, 1, 4, stride=2, padding=1),
        nn.Tanh(),
    )


def discriminator() -> nn.Sequential:
    """Images f32[B,1,8,8] -> logits f32[B,1] of being real."""
    c = CHANNELS
    return nn.Sequential(
        nn.Conv2d(1, c, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(c, 2 * c, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(2 * c),
        nn.LeakyReLU(0.2),
        nn.Conv2d(2 * c, 1, 2),
        nn.Flatten(),
    )


def start_weights(module: nn.Module) -> None:
    """Convolutions from N(0, 0.02^2), as in the paper."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nir.init.normal_(module.weight, 0.0, 0.02)


class DCGan:
    """The two models, their optimisers and the compiled functions."""

    def __init__(self, lr: float = 2e-3) -> None:
        self.generator = g = generator().apply(start_weights)
        self.discriminator = d = discriminator().apply(start_weights)
        optimizer_g, optimizer_d = (
            nir.optim.Adam(m.parameters(), lr=lr, betas=(0.5, 0.999)) for m in (g, d)
        )

        def judged(x: nir.Tensor, target: float) -> nir.Tensor:
            logits = d(x)
            return F.binary_cross_entropy_with_logits(logits, nir.full_like(logits, target))

        @nir.jit(state=[g, d, optimizer_d])
        def train_discriminator(real: nir.Tensor) -> nir.Tensor:
            fake = g(nir.randn(len(real), NOISE, 1, 1)).detach()
            optimizer_d.zero_grad()
            loss = judged(real, 0.9) + judged(fake, 0.0)  # never quite sure of what is real
            loss.backward()
            optimizer_d.step()
            return loss.detach()

        @nir.jit(state=[g, d, optimizer_g])
        def train_generator() -> nir.Tensor:
            optimizer_g.zero_grad(), d.zero_grad()
            loss = judged(g(nir.randn(BATCH, NOISE, 1, 1)), 1.0)
            loss.backward()
            optimizer_g.step()
            # The loss went through the discriminator: its gradients would be results as well.
            d.zero_grad()
            return loss.detach()

        @nir.jit(state=[g])
        def draw(noise: nir.Tensor) -> nir.Tensor:
            return g(noise)

        self.train_discriminator, self.train_generator = train_discriminator, train_generator
        self.draw = draw

    def epoch(self, images: np.ndarray, seed: list[int]) -> tuple[float, float]:
        """The mean losses of discriminator and generator."""
        self.generator.train()
        losses = [
            (self.train_discriminator(images[i]).item(), self.train_generator().item())
            for i in digits.batches(len(images), BATCH, seed)
        ]
        loss_d, loss_g = np.mean(losses, axis=0)
        return loss_d, loss_g

    def samples(self, count: int, seed: int) -> np.ndarray:
        """f32[count,1,8,8]; batch norm by its running statistics."""
        self.generator.eval()
        noise = nir.randn(count, NOISE, 1, 1, generator=nir.Generator(seed))
        return self.draw(noise).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/dcgan.png"))
    args = parser.parse_args()

    nir.manual_seed(args.seed)
    images, labels = digits.load()
    gan = DCGan()
    judge = digits.Judge(images, labels, args.seed)
    first = gan.samples(500, args.seed)
    for i in range(1, args.epochs + 1):
        start = time.perf_counter()
        loss_d, loss_g = gan.epoch(images, [args.seed, i])
        if i % 5 == 0 or i == args.epochs:
            print(f"epoch {i:2}/{args.epochs}  discriminator {loss_d:.3f}  generator {loss_g:.3f}  "
                  f"{time.perf_counter() - start:.2f} s", flush=True)  # fmt: skip
    samples = gan.samples(500, args.seed)
    for name, drawn in (("samples", samples), ("before training", first)):
        print(f"{name:16}  {judge(drawn)}")
    digits.finish(judge, samples, args.seed, args.out)


if __name__ == "__main__":
    main()
