"""A diffusion model that draws digits of 8x8 pixels.

    python -m examples.diffusion [--epochs 100] [--steps 100] [--seed 0] [--out out/diffusion.png]

Images become noise in T steps: x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e with e normal. A network
learns to say e from x_t and t. Samples start as noise and go back, x_t to x_t-1, by ancestral
sampling: all T steps are one `nir.scan`, so that the compiled program holds the network once.
Ho et al., Denoising Diffusion Probabilistic Models, 2020; a_t is the cosine schedule of Nichol
and Dhariwal, 2021.
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

BATCH, PIXELS = 64, digits.SIDE**2


def schedule(steps: int) -> np.ndarray:
    """f32[T]: a_t, the share of the image's variance that is left at t, from nearly 1 to 0."""
    t = (np.arange(steps + 1) / steps + 0.008) / 1.008
    level = np.cos(t * np.pi / 2) ** 2
    # Each step keeps at least 0.1 % of the variance.
    return np.cumprod(np.maximum(level[1:] / level[:-1], 1e-3)).astype(np.float32)


class Denoiser(nn.Module):
    """(x_t f32[B,64], t/T f32[B]) -> the noise in it f32[B,64]; an MLP with residual blocks."""

    def __init__(self, hidden: int = 256, waves: int = 16) -> None:
        super().__init__()
        rates = np.pi * 2 ** np.linspace(0, 5, waves)
        self.register_buffer("rates", nir.tensor(rates, dtype="f32"))
        self.time = nn.Sequential(nn.Linear(2 * waves, hidden), nn.SiLU())
        self.enter = nn.Linear(PIXELS, hidden)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(hidden),
                nn.Linear(hidden, hidden),
                nn.SiLU(),
                nn.Linear(hidden, hidden),
            )
            for _ in range(3)
        )
        self.leave = nn.Linear(hidden, PIXELS)

    def forward(self, x: nir.Tensor, t: nir.Tensor) -> nir.Tensor:
        angles = t.unsqueeze(1) * self.rates
        moment = self.time(nir.cat([angles.sin(), angles.cos()], 1))
        h = self.enter(x)
        for block in self.blocks:
            h = h + block(h + moment)
        return self.leave(h)


class Diffusion:
    """The model, its optimiser and the two compiled functions."""

    def __init__(self, steps: int, lr: float = 2e-3) -> None:
        self.model = model = Denoiser()
        self.optimizer = optimizer = nir.optim.Adam(model.parameters(), lr=lr)
        levels = schedule(steps)
        # Of x_t, x_t-1 keeps beta_t less: a_t = (1 - beta_t) a_t-1.
        before = np.concatenate([[1], levels[:-1]]).astype(np.float32)
        beta = 1 - levels / before

        @nir.jit(state=[model, optimizer])
        def train(x: nir.Tensor) -> nir.Tensor:
            t = nir.randint(0, steps, (len(x),))
            a = nir.constant(levels)[t].unsqueeze(1)
            noise = nir.randn(*x.shape)
            optimizer.zero_grad()
            guess = model(a.sqrt() * x + (1 - a).sqrt() * noise, t.to("f32") / steps)
            loss = F.mse_loss(guess, noise)
            loss.backward()
            optimizer.step()
            return loss.detach()

        def backwards(x: nir.Tensor, step: tuple[nir.Tensor, ...]) -> tuple[nir.Tensor, None]:
            t, a, b, before, noise = step
            guess = model(x, t.expand(x.shape[0]))
            # The image that the guess leaves, kept within the range of images, and the mean and
            # variance of x_t-1 between it and x_t (equations 6 and 7 of Ho et al.).
            image = ((x - (1 - a).sqrt() * guess) / a.sqrt()).clamp(-1, 1)
            mean = (before.sqrt() * b * image + (1 - b).sqrt() * (1 - before) * x) / (1 - a)
            variance = b * (1 - before) / (1 - a)
            return mean + variance.sqrt() * noise, None

        @nir.jit(state=[model])
        def draw(start: nir.Tensor, noise: nir.Tensor) -> nir.Tensor:
            t = nir.arange(steps).to("f32") / steps
            table = [t, *map(nir.constant, (levels, beta, before)), noise]
            with nir.no_grad():
                return nir.scan(backwards, start, tuple(table), reverse=True)[0]

        self.train, self.draw, self.steps = train, draw, steps

    def epoch(self, images: np.ndarray, seed: list[int]) -> float:
        """The mean loss over f32[N,64] images."""
        order = digits.batches(len(images), BATCH, seed)
        return float(np.mean([self.train(images[i]).item() for i in order]))

    def samples(self, count: int, seed: int) -> np.ndarray:
        """f32[count,1,8,8]."""
        g = nir.Generator(seed)
        start = nir.randn(count, PIXELS, generator=g)
        noise = nir.randn(self.steps, count, PIXELS, generator=g)
        return self.draw(start, noise).numpy().reshape(count, 1, digits.SIDE, digits.SIDE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--steps", type=int, default=100, help="T, from image to noise")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/diffusion.png"))
    args = parser.parse_args()

    nir.manual_seed(args.seed)
    images, labels = digits.load()
    diffusion = Diffusion(args.steps)
    judge = digits.Judge(images, labels, args.seed)
    flat = images.reshape(len(images), PIXELS)
    decay = nir.optim.CosineAnnealingLR(diffusion.optimizer, T_max=args.epochs)
    for i in range(1, args.epochs + 1):
        start = time.perf_counter()
        loss = diffusion.epoch(flat, [args.seed, i])
        decay.step()
        if i % 20 == 0 or i in (1, args.epochs):
            seconds = time.perf_counter() - start
            print(f"epoch {i:3}/{args.epochs}  loss {loss:.4f}  {seconds:.2f} s", flush=True)
    start = time.perf_counter()
    samples = diffusion.samples(500, args.seed)
    seconds = time.perf_counter() - start
    print(f"sampling          {len(samples)} images in {args.steps} steps, {seconds:.2f} s")
    print(f"samples           {judge(samples)}")
    digits.finish(judge, samples, args.seed, args.out)


if __name__ == "__main__":
    main()
