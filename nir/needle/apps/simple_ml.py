"""Training loops: a two-layer network, CIFAR-10 and Penn Treebank."""

from __future__ import annotations

from typing import Any

import numpy as np

from nir.needle import nn, ops, optim
from nir.needle.apps.models import LanguageModel as LanguageModel
from nir.needle.apps.models import ResNet9 as ResNet9
from nir.needle.autograd import Tensor
from nir.needle.backend_selection import cpu
from nir.needle.data import get_batch
from nir.needle.data.datasets.mnist_dataset import parse_mnist as parse_mnist

device = cpu()


def softmax_loss(Z: Any, y_one_hot: Any) -> Any:
    """The mean over the batch of logsumexp(z) - z_y, for logits and one-hot labels (B, C)."""
    losses = ops.logsumexp(Z, axes=1) - ops.summation(Z * y_one_hot, axes=1)
    return ops.summation(losses) / Z.shape[0]


def nn_epoch(
    X: np.ndarray, y: np.ndarray, W1: Any, W2: Any, lr: float = 0.1, batch: int = 100
) -> tuple[Any, Any]:
    """One pass of gradient descent over relu(X W1) W2, in order; gives (W1, W2)."""
    classes = W2.shape[1]
    for start in range(0, len(X), batch):
        rows = slice(start, start + batch)
        labels = Tensor(np.eye(classes, dtype=np.float32)[y[rows]], requires_grad=False)
        inputs = Tensor(X[rows], requires_grad=False)
        softmax_loss(ops.relu(inputs @ W1) @ W2, labels).backward()
        for w in (W1, W2):
            w.data = w.data - lr * Tensor(w.grad.data, dtype=w.dtype)
    return W1, W2


def loss_err(h: Any, y: np.ndarray) -> tuple[Any, Any]:
    """(loss, error rate) of logits."""
    one_hot = np.zeros((y.shape[0], h.shape[-1]))
    one_hot[np.arange(y.size), y] = 1
    return softmax_loss(h, Tensor(one_hot)).numpy(), np.mean(h.numpy().argmax(axis=1) != y)


class _Score:
    """Accuracy and loss over the examples seen."""

    def __init__(self) -> None:
        self.right, self.loss, self.count = 0, 0.0, 0

    def add(self, logits: Any, y: Any, loss: Any) -> None:
        count = y.shape[0]
        self.right += int((logits.numpy().argmax(axis=1) == y.numpy()).sum())
        self.loss += float(loss.numpy().reshape(())) * count
        self.count += count

    def result(self) -> tuple[float, float]:
        return self.right / self.count, self.loss / self.count


# ---- CIFAR-10 ----------------------------------------------------------------------------------


def epoch_general_cifar10(
    dataloader: Any, model: Any, loss_fn: Any = None, opt: Any = None
) -> tuple[float, float]:
    """(accuracy, loss) of one pass, which trains if there is ``opt``."""
    np.random.seed(4)
    loss_fn = nn.SoftmaxLoss() if loss_fn is None else loss_fn
    model.eval() if opt is None else model.train()
    score = _Score()
    for x, y in dataloader:
        logits = model(x)
        loss = loss_fn(logits, y)
        if opt is not None:
            opt.reset_grad()
            loss.backward()
            opt.step()
        score.add(logits, y, loss)
    return score.result()


def train_cifar10(
    model: Any,
    dataloader: Any,
    n_epochs: int = 1,
    optimizer: Any = optim.Adam,
    lr: float = 0.001,
    weight_decay: float = 0.001,
    loss_fn: Any = nn.SoftmaxLoss,
) -> tuple[float, float]:
    """(accuracy, loss) of the last of ``n_epochs`` epochs of training."""
    np.random.seed(4)
    opt = optimizer(model.parameters(), lr=lr, weight_decay=weight_decay)
    result = (0.0, 0.0)
    for _ in range(n_epochs):
        result = epoch_general_cifar10(dataloader, model, loss_fn(), opt)
    return result


def evaluate_cifar10(
    model: Any, dataloader: Any, loss_fn: Any = nn.SoftmaxLoss
) -> tuple[float, float]:
    """(accuracy, loss) without training."""
    np.random.seed(4)
    return epoch_general_cifar10(dataloader, model, loss_fn())


# ---- Penn Treebank -----------------------------------------------------------------------------


def epoch_general_ptb(
    data: np.ndarray,
    model: Any,
    seq_len: int = 40,
    loss_fn: Any = None,
    opt: Any = None,
    clip: float | None = None,
    device: Any = None,
    dtype: Any = "float32",
) -> tuple[float, float]:
    """(accuracy, loss) of one pass over ``data``, which trains if there is ``opt``.

    The state goes on from chunk to chunk without its history.
    """
    np.random.seed(4)
    loss_fn = nn.SoftmaxLoss() if loss_fn is None else loss_fn
    model.eval() if opt is None else model.train()
    score = _Score()
    state: Any = None
    for i in range(0, len(data) - 1, seq_len):
        x, y = get_batch(data, i, seq_len, device=device, dtype=dtype)
        logits, state = model(x, state)
        state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
        loss = loss_fn(logits, y)
        if opt is not None:
            opt.reset_grad()
            loss.backward()
            if clip is not None:
                opt.clip_grad_norm(clip)
            opt.step()
        score.add(logits, y, loss)
    return score.result()


def train_ptb(
    model: Any,
    data: np.ndarray,
    seq_len: int = 40,
    n_epochs: int = 1,
    optimizer: Any = optim.SGD,
    lr: float = 4.0,
    weight_decay: float = 0.0,
    loss_fn: Any = nn.SoftmaxLoss,
    clip: float | None = None,
    device: Any = None,
    dtype: Any = "float32",
) -> tuple[float, float]:
    """(accuracy, loss) of the last of ``n_epochs`` epochs of training."""
    np.random.seed(4)
    opt = optimizer(model.parameters(), lr=lr, weight_decay=weight_decay)
    result = (0.0, 0.0)
    for _ in range(n_epochs):
        result = epoch_general_ptb(
            data, model, seq_len, loss_fn(), opt, clip, device=device, dtype=dtype
        )
    return result


def evaluate_ptb(
    model: Any,
    data: np.ndarray,
    seq_len: int = 40,
    loss_fn: Any = nn.SoftmaxLoss,
    device: Any = None,
    dtype: Any = "float32",
) -> tuple[float, float]:
    """(accuracy, loss) without training."""
    np.random.seed(4)
    return epoch_general_ptb(data, model, seq_len, loss_fn(), device=device, dtype=dtype)
