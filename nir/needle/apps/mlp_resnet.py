"""A residual network of fully connected layers on MNIST."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from nir.needle import data, nn, optim

np.random.seed(0)


def ResidualBlock(
    dim: int,
    hidden_dim: int,
    norm: Callable[[int], nn.Module] = nn.BatchNorm1d,
    drop_prob: float = 0.1,
) -> nn.Module:
    """relu(x + f(x)), f two linear layers with norms, ReLU and dropout between."""
    return nn.Sequential(
        nn.Residual(
            nn.Sequential(
                nn.Linear(dim, hidden_dim),
                norm(hidden_dim),
                nn.ReLU(),
                nn.Dropout(drop_prob),
                nn.Linear(hidden_dim, dim),
                norm(dim),
            )
        ),
        nn.ReLU(),
    )


def MLPResNet(
    dim: int,
    hidden_dim: int = 100,
    num_blocks: int = 3,
    num_classes: int = 10,
    norm: Callable[[int], nn.Module] = nn.BatchNorm1d,
    drop_prob: float = 0.1,
) -> nn.Module:
    """A linear layer, ``num_blocks`` residual blocks, and logits."""
    return nn.Sequential(
        nn.Linear(dim, hidden_dim),
        nn.ReLU(),
        *[ResidualBlock(hidden_dim, hidden_dim // 2, norm, drop_prob) for _ in range(num_blocks)],
        nn.Linear(hidden_dim, num_classes),
    )


def epoch(dataloader: Any, model: Any, opt: Any = None) -> tuple[float, float]:
    """(error rate, mean of the batches' losses) of one pass, which trains if there is ``opt``."""
    np.random.seed(4)
    model.eval() if opt is None else model.train()
    loss_fn = nn.SoftmaxLoss()
    wrong, count = 0, 0
    losses = []
    for x, y in dataloader:
        logits = model(x.reshape((x.shape[0], -1)) if len(x.shape) > 2 else x)
        loss = loss_fn(logits, y)
        if opt is not None:
            opt.reset_grad()
            loss.backward()
            opt.step()
        wrong += int((logits.numpy().argmax(axis=1) != y.numpy()).sum())
        losses.append(loss.numpy())
        count += y.shape[0]
    return wrong / count, float(np.mean(losses))


def train_mnist(
    batch_size: int = 100,
    epochs: int = 10,
    optimizer: Any = optim.Adam,
    lr: float = 0.001,
    weight_decay: float = 0.001,
    hidden_dim: int = 100,
    data_dir: str = "data",
) -> tuple[float, float, float, float]:
    """Train on MNIST: (training error, training loss, test error, test loss)."""
    np.random.seed(4)

    def loader(stem: str, shuffle: bool) -> data.DataLoader:
        images = os.path.join(data_dir, f"{stem}-images-idx3-ubyte.gz")
        labels = os.path.join(data_dir, f"{stem}-labels-idx1-ubyte.gz")
        return data.DataLoader(data.MNISTDataset(images, labels), batch_size, shuffle=shuffle)

    train, test = loader("train", True), loader("t10k", False)
    model = MLPResNet(784, hidden_dim)
    opt = optimizer(model.parameters(), lr=lr, weight_decay=weight_decay)
    train_error = train_loss = 0.0
    for _ in range(epochs):
        train_error, train_loss = epoch(train, model, opt)
    return (train_error, train_loss, *epoch(test, model))
