"""What the small examples share: digits of 8x8 pixels, a classifier, measures, a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

import nir
from nir import data, nn
from nir.nn import functional as F

SIDE = 8


def load(split: Literal["train", "test"] = "train") -> tuple[np.ndarray, np.ndarray]:
    """(images f32[N,1,8,8] from -1 to 1, labels i64[N]): nir.data.digits, reduced by means."""
    images, labels = data.digits(split)
    blocks = images[:, :1].reshape(len(images), 1, SIDE, 4, SIDE, 4)
    return (blocks.mean((3, 5)) / 127.5 - 1).astype(np.float32), labels


def batches(count: int, size: int, seed: list[int]) -> np.ndarray:
    """Rows of ``size`` random indices below ``count``: one epoch, without the rest."""
    order = np.random.default_rng(seed).permutation(count)
    return order[: count // size * size].reshape(-1, size)


def classifier(hidden: int = 64) -> nn.Sequential:
    """f32[B,1,8,8] -> logits f32[B,10]."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(SIDE * SIDE, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 10),
    )


def fit(
    model: nn.Module, images: np.ndarray, labels: np.ndarray, epochs: int, lr: float, seed: int
) -> list[float]:
    """Train the parameters of ``model`` that require a gradient; the mean loss of each epoch."""
    optimizer = nir.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)

    @nir.jit(state=[model, optimizer])
    def step(x: nir.Tensor, y: nir.Tensor) -> nir.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    model.train()
    return [
        float(
            np.mean(
                [step(images[i], labels[i]).item() for i in batches(len(images), 32, [seed, e])]
            )
        )
        for e in range(epochs)
    ]


def logits(model: nn.Module, images: np.ndarray) -> np.ndarray:
    """f32[N,10] of the model in evaluation mode."""
    return np.asarray(nir.jit(model.eval())(images))


def accuracy(model: nn.Module, images: np.ndarray, labels: np.ndarray) -> float:
    return float((logits(model, images).argmax(1) == labels).mean())


def noise_like(images: np.ndarray, seed: int) -> np.ndarray:
    """Independent pixels with the mean and deviation that each pixel has in ``images``."""
    normal = np.random.default_rng(seed).standard_normal(images.shape)
    return np.clip(images.mean(0) + images.std(0) * normal, -1, 1).astype(np.float32)


@dataclass(frozen=True)
class Verdict:
    """How much samples look like digits."""

    confidence: float  # mean probability of the class that a classifier finds most likely
    distance: float  # mean distance to the nearest digit, root mean square over its pixels
    classes: int  # that at least 1 of 50 samples belongs to

    def __str__(self) -> str:
        return (
            f"confidence {self.confidence:.3f}  distance {self.distance:.3f}  "
            f"classes {self.classes}"
        )


class Judge:
    """Compares samples with digits by pixels and by a classifier trained on them."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, seed: int) -> None:
        self.images = images
        self.model = classifier()
        fit(self.model, images, labels, 15, 3e-3, seed)

    def __call__(self, samples: np.ndarray) -> Verdict:
        z = logits(self.model, samples)
        p = np.exp(z - z.max(1, keepdims=True))
        shares = np.bincount(z.argmax(1), minlength=10) / len(z)
        return Verdict(
            float((p.max(1) / p.sum(1)).mean()),
            distance(samples, self.images),
            int((shares >= 0.02).sum()),
        )


def distance(samples: np.ndarray, images: np.ndarray) -> float:
    """The mean distance of a sample to the nearest of ``images``, per pixel (root mean square)."""
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (samples, images))
    squares = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T
    return float(np.sqrt(np.maximum(squares.min(1), 0) / a.shape[1]).mean())


def save_grid(images: np.ndarray, path: Path, columns: int = 10) -> None:
    """``images`` [N,1,8,8] in rows of ``columns``, white on black, as a PNG. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = len(images) // columns
    tiles = np.pad(images[: rows * columns, 0], ((0, 0), (1, 1), (1, 1)), constant_values=-1)
    side = tiles.shape[-1]
    picture = tiles.reshape(rows, columns, side, side).swapaxes(1, 2).reshape(rows * side, -1)
    plt.imsave(path, np.kron(picture, np.ones((4, 4))), cmap="gray", vmin=-1, vmax=1)


def finish(judge: Judge, samples: np.ndarray, seed: int, out: Path) -> None:
    """Print what real digits and noise are judged to be, and write a picture of ``samples``."""
    print(f"test digits       {judge(load('test')[0])}")
    print(f"pixel noise       {judge(noise_like(judge.images[:500], seed))}")
    out.parent.mkdir(parents=True, exist_ok=True)
    save_grid(samples[:100], out)
    print(f"samples           {out}")
