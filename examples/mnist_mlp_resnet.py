"""Trains an MLP with residual blocks on MNIST.

    python -m examples.mnist_mlp_resnet --data FOLDER                with batch norm
    python -m examples.mnist_mlp_resnet --data FOLDER --norm layer   with layer norm

FOLDER holds MNIST's IDX files, each with or without .gz. Without those of the training split, the
test split is cut 8:2 into one to train on and one to test on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nir
from examples.mlp_resnet import mlp_resnet
from nir import data, nn
from nir.nn import functional as F

NORMS = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


@dataclass(frozen=True)
class Epoch:
    """Means over one epoch; errors are shares."""

    train_loss: float
    train_error: float
    test_loss: float
    test_error: float
    seconds: float


def load(folder: str) -> tuple[data.TensorDataset, data.TensorDataset]:
    """Training and test images, f32[784] in [0, 1], with their labels."""
    if any(Path(folder).glob("train-images*")):
        splits = data.mnist(folder, "train"), data.mnist(folder, "test")
    else:
        images, labels = data.mnist(folder, "test")
        cut = len(images) * 8 // 10
        splits = (images[:cut], labels[:cut]), (images[cut:], labels[cut:])
    train, test = (
        data.TensorDataset(images.reshape(-1, 784), labels, transform=data.ToFloat())
        for images, labels in splits
    )
    return train, test


def train(
    model: nn.Module,
    optimizer: nir.optim.Optimizer,
    train_set: data.DataLoader,
    test_set: data.DataLoader,
    epochs: int,
) -> Iterator[Epoch]:
    """Yields what each epoch came to."""
    # B stays symbolic: one program serves full batches and the last partial one.
    specs = ("f32[B,784]", "i64[B]")

    @nir.jit(state=[model, optimizer], specs=specs)
    def step(x: nir.Tensor, y: nir.Tensor) -> tuple[nir.Tensor, nir.Tensor]:
        optimizer.zero_grad()
        logits = model(x)
        loss = F.cross_entropy(logits, y)
        loss.backward()
        optimizer.step()
        return loss.detach(), (logits.argmax(1) != y).sum()

    @nir.jit(state=[model], specs=specs)
    def evaluate(x: nir.Tensor, y: nir.Tensor) -> tuple[nir.Tensor, nir.Tensor]:
        logits = model(x)
        return F.cross_entropy(logits, y), (logits.argmax(1) != y).sum()

    def means(function: Callable[..., Any], loader: data.DataLoader) -> tuple[float, float]:
        """Loss and error of ``function`` over the batches of ``loader``."""
        loss = errors = seen = 0
        for x, y in loader:
            batch_loss, wrong = function(x, y)
            loss += batch_loss.item() * len(y)
            errors, seen = errors + wrong.item(), seen + len(y)
        return loss / seen, errors / seen

    for _ in range(epochs):
        start = time.perf_counter()
        model.train()
        trained = means(step, train_set)
        seconds = time.perf_counter() - start
        model.eval()
        yield Epoch(*trained, *means(evaluate, test_set), seconds)


def main(argv: Sequence[str] | None = None) -> list[Epoch]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-d", "--data", required=True, help="a folder with MNIST's IDX files")
    parser.add_argument("-n", "--norm", choices=NORMS, default="batch")
    parser.add_argument("-e", "--epochs", type=int, default=10)
    parser.add_argument("-b", "--batch", type=int, default=100)
    parser.add_argument("-s", "--seed", type=int, default=0)
    args = parser.parse_args(argv)

    nir.manual_seed(args.seed)
    train_set, test_set = load(args.data)
    model = mlp_resnet(norm=NORMS[args.norm])
    optimizer = nir.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-3)
    loaders = (
        data.DataLoader(train_set, args.batch, shuffle=True, seed=args.seed),
        data.DataLoader(test_set, args.batch),
    )
    count = sum(p.numel() for p in model.parameters())
    print(f"MLP-ResNet, {args.norm} norm, {count:,} parameters: {len(train_set):,} images to train "
          f"on, {len(test_set):,} to test")  # fmt: skip
    history = []
    for epoch in train(model, optimizer, *loaders, args.epochs):
        history.append(epoch)
        print(
            f"epoch {len(history):2}/{args.epochs}  "
            f"train loss {epoch.train_loss:.4f} error {epoch.train_error:.4f}  "
            f"test loss {epoch.test_loss:.4f} error {epoch.test_error:.4f}  "
            f"{epoch.seconds:.1f} s",
            flush=True,
        )
    return history


if __name__ == "__main__":
    main()
