"""Softmax regression and a two-layer network, on numpy arrays that change in place."""

from __future__ import annotations

from typing import Any

import numpy as np

import nir
from nir.frontend.nn import functional as F
from nir.needle.apps.hw0.simple_ml_ext import softmax_regression_epoch_cpp
from nir.needle.data.datasets.mnist_dataset import parse_mnist as parse_mnist


def add(x: Any, y: Any) -> Any:
    """x + y."""
    return x + y


def softmax_loss(Z: np.ndarray, y: np.ndarray) -> Any:
    """The mean over the batch of logsumexp(z) - z_y, for logits (B, C) and labels (B,)."""
    return F.cross_entropy(nir.Tensor(Z), nir.Tensor(y).long()).numpy()[()]


def softmax_regression_epoch(
    X: np.ndarray, y: np.ndarray, theta: np.ndarray, lr: float = 0.1, batch: int = 100
) -> None:
    """One pass of gradient descent over the logits X theta, in order; ``theta`` changes."""
    softmax_regression_epoch_cpp(X, y, theta, lr, batch)


def nn_epoch(
    X: np.ndarray,
    y: np.ndarray,
    W1: np.ndarray,
    W2: np.ndarray,
    lr: float = 0.1,
    batch: int = 100,
) -> None:
    """One pass of gradient descent over the logits relu(X W1) W2; ``W1`` and ``W2`` change."""

    def loss(a: nir.Tensor, b: nir.Tensor, x: nir.Tensor, labels: nir.Tensor) -> nir.Tensor:
        return F.cross_entropy((x @ a).relu() @ b, labels)

    a, b = nir.Tensor(W1), nir.Tensor(W2)
    slope = nir.grad(loss, (0, 1))
    for start in range(0, len(X), batch):
        rows = slice(start, start + batch)
        x, labels = nir.Tensor(X[rows]).to(a.dtype), nir.Tensor(y[rows]).long()
        da, db = slope(a, b, x, labels)
        a, b = a - lr * da, b - lr * db
        nir.realize([a, b])
    W1[...], W2[...] = a.numpy(), b.numpy()


def loss_err(h: np.ndarray, y: np.ndarray) -> tuple[Any, Any]:
    """(loss, error rate) of logits."""
    return softmax_loss(h, y), np.mean(h.argmax(axis=1) != y)


def train_softmax(
    X_tr: np.ndarray,
    y_tr: np.ndarray,
    X_te: np.ndarray,
    y_te: np.ndarray,
    epochs: int = 10,
    lr: float = 0.5,
    batch: int = 100,
    cpp: bool = False,
) -> None:
    """Train softmax regression, and print losses and errors after each epoch."""
    theta = np.zeros((X_tr.shape[1], y_tr.max() + 1), dtype=np.float32)
    run = softmax_regression_epoch_cpp if cpp else softmax_regression_epoch
    print("| Epoch | Train Loss | Train Err | Test Loss | Test Err |")
    for epoch in range(epochs):
        run(X_tr, y_tr, theta, lr, batch)
        _report(epoch, loss_err(X_tr @ theta, y_tr), loss_err(X_te @ theta, y_te))


def train_nn(
    X_tr: np.ndarray,
    y_tr: np.ndarray,
    X_te: np.ndarray,
    y_te: np.ndarray,
    hidden_dim: int = 500,
    epochs: int = 10,
    lr: float = 0.5,
    batch: int = 100,
) -> None:
    """Train the two-layer network, and print losses and errors after each epoch."""
    n, k = X_tr.shape[1], y_tr.max() + 1
    np.random.seed(0)
    W1 = np.random.randn(n, hidden_dim).astype(np.float32) / np.sqrt(hidden_dim)
    W2 = np.random.randn(hidden_dim, k).astype(np.float32) / np.sqrt(k)
    print("| Epoch | Train Loss | Train Err | Test Loss | Test Err |")
    for epoch in range(epochs):
        nn_epoch(X_tr, y_tr, W1, W2, lr=lr, batch=batch)
        logits = [np.maximum(X @ W1, 0) @ W2 for X in (X_tr, X_te)]
        _report(epoch, loss_err(logits[0], y_tr), loss_err(logits[1], y_te))


def _report(epoch: int, train: tuple[Any, Any], test: tuple[Any, Any]) -> None:
    print(
        f"|  {epoch:>4} |    {train[0]:.5f} |   {train[1]:.5f} |   {test[0]:.5f} |  {test[1]:.5f} |"
    )
