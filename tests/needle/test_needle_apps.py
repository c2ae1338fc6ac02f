"""The course's applications: models beside PyTorch, training loops, the first homework."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nir.needle as ndl
from nir.needle import data, nn, optim
from nir.needle.apps import mlp_resnet, models, simple_ml
from nir.needle.apps.hw0 import simple_ml as first
from nir.needle.apps.hw0 import simple_ml_ext
from tests.peers import torch_or_skip

torch = torch_or_skip()
SHARED = Path(__file__).parents[3] / "shared" / "data"


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# ---- two-layer networks --------------------------------------------------------------------------


def network_step(x: Any, y: np.ndarray, a: np.ndarray, b: np.ndarray, lr: float) -> Any:
    """One step of gradient descent in float64, by hand."""
    h = np.maximum(x @ a, 0)
    z = h @ b
    p = np.exp(z - z.max(1, keepdims=True))
    p = p / p.sum(1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    p /= len(y)
    return a - lr * x.T @ ((p @ b.T) * (h > 0)), b - lr * h.T @ p


def test_nn_epoch_is_gradient_descent_in_order() -> None:
    x, y = array(50, 7), np.arange(50) % 4
    a, b = array(7, 6, seed=1), array(6, 4, seed=2)
    expected: Any = (a.astype(np.float64), b.astype(np.float64))
    for start in range(0, 50, 20):
        rows = slice(start, start + 20)
        expected = network_step(x[rows].astype(np.float64), y[rows], *expected, 0.2)
    w1, w2 = ndl.Tensor(a, dtype="float32"), ndl.Tensor(b, dtype="float32")
    w1, w2 = simple_ml.nn_epoch(x, y, w1, w2, lr=0.2, batch=20)
    np.testing.assert_allclose(w1.numpy(), expected[0], 1e-4, 1e-5)
    np.testing.assert_allclose(w2.numpy(), expected[1], 1e-4, 1e-5)
    own = a.copy(), b.copy()
    first.nn_epoch(x, y, *own, lr=0.2, batch=20)
    np.testing.assert_allclose(own[0], expected[0], 1e-4, 1e-5)
    np.testing.assert_allclose(own[1], expected[1], 1e-4, 1e-5)


def test_losses_of_both_homeworks() -> None:
    z, y = array(6, 4), np.array([0, 1, 2, 3, 0, 1])
    expected = torch.nn.functional.cross_entropy(torch.tensor(z), torch.tensor(y)).item()
    assert abs(first.softmax_loss(z, y) - expected) < 1e-6
    hot = ndl.Tensor(np.eye(4)[y])
    loss = simple_ml.softmax_loss(ndl.Tensor(z), hot).numpy().reshape(())
    assert abs(loss - expected) < 1e-5
    loss, error = simple_ml.loss_err(ndl.Tensor(z), y)
    assert abs(loss.reshape(()) - expected) < 1e-5 and error == (z.argmax(1) != y).mean()


def test_softmax_regression_changes_its_argument() -> None:
    x, y = array(30, 5), np.arange(30) % 3
    expected = np.zeros((5, 3))
    for start in (0, 10, 20):
        rows = slice(start, start + 10)
        z = np.exp(x[rows] @ expected)
        p = z / z.sum(1, keepdims=True)
        p[np.arange(10), y[rows]] -= 1
        expected -= 0.3 * x[rows].T @ p / 10
    for run in (first.softmax_regression_epoch, simple_ml_ext.softmax_regression_epoch_cpp):
        theta = np.zeros((5, 3), np.float32)
        run(x, y, theta, 0.3, 10)
        np.testing.assert_allclose(theta, expected, 1e-4, 1e-6)
    assert first.add(5, 6) == 11


# ---- models --------------------------------------------------------------------------------------


def peer_of(module: Any) -> Any:
    """A PyTorch module with the same layers and weights."""
    match module:
        case nn.Sequential():
            return torch.nn.Sequential(*map(peer_of, module.modules))
        case nn.Residual():
            return Skip(peer_of(module.fn))
        case nn.Conv():
            peer = torch.nn.Conv2d(
                module.in_channels, module.out_channels, module.kernel_size, module.stride,
                module.padding,
            )  # fmt: skip
            peer.weight.data = torch.tensor(module.weight.numpy().transpose(3, 2, 0, 1).copy())
            peer.bias.data = torch.tensor(module.bias.numpy())
            return peer
        case nn.BatchNorm2d():
            return torch.nn.BatchNorm2d(module.dim)
        case nn.Linear():
            peer = torch.nn.Linear(module.in_features, module.out_features)
            peer.weight.data = torch.tensor(module.weight.numpy().T.copy())
            peer.bias.data = torch.tensor(module.bias.numpy().reshape(-1))
            return peer
        case nn.Flatten():
            return torch.nn.Flatten()
        case _:
            return torch.nn.ReLU()


class Skip(torch.nn.Module):  # type: ignore[misc, name-defined]
    def __init__(self, fn: Any) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Any) -> Any:
        return x + self.fn(x)


def test_resnet9_beside_pytorch() -> None:
    """Logits and all gradients of one step of training."""
    np.random.seed(0)
    model = models.ResNet9()
    assert sum(int(np.prod(p.shape)) for p in model.parameters()) == 431946
    peer = peer_of(model.model)
    x, y = array(4, 3, 32, 32), np.array([1, 0, 9, 3])
    logits = model(ndl.Tensor(x, dtype="float32"))
    expected = peer(torch.tensor(x))
    np.testing.assert_allclose(logits.numpy(), expected.detach().numpy(), 1e-3, 1e-3)
    nn.SoftmaxLoss()(logits, ndl.Tensor(y)).backward()
    torch.nn.functional.cross_entropy(expected, torch.tensor(y)).backward()
    layers = [m for m in peer.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    own = [m for m in model._children() if isinstance(m, nn.Conv | nn.Linear)]
    for mine, theirs in zip(own, layers, strict=True):
        grad = mine.weight.grad.numpy()
        grad = grad.transpose(3, 2, 0, 1) if grad.ndim == 4 else grad.T
        want = theirs.weight.grad.numpy()
        assert np.abs(grad - want).max() <= 1e-2 * np.abs(want).max()


def test_mlp_resnet_has_the_courses_shape() -> None:
    model = mlp_resnet.MLPResNet(20, 10, 2, 5, nn.LayerNorm1d, 0.2)
    sizes = [p.shape for p in model.parameters()]
    assert sizes[:2] == [(20, 10), (1, 10)] and sizes[-2:] == [(10, 5), (1, 5)]
    assert sizes[2:8] == [(10, 5), (1, 5), (5,), (5,), (5, 10), (1, 10)]
    block = mlp_resnet.ResidualBlock(10, 5, drop_prob=0.3).modules[0].fn.modules
    assert block[3].p == 0.3 and isinstance(block[1], nn.BatchNorm1d)


def mnist() -> data.MNISTDataset:
    folder = SHARED / "mnist"
    if not folder.is_dir():
        pytest.skip("mnist is not there")
    found = data.MNISTDataset(
        str(folder / "t10k-images-idx3-ubyte.gz"), str(folder / "t10k-labels-idx1-ubyte.gz")
    )
    return found


def test_mlp_resnet_learns_digits() -> None:
    images = mnist()
    train = data.NDArrayDataset(images.X[:2000], images.y[:2000])
    test = data.NDArrayDataset(images.X[9000:], images.y[9000:])
    np.random.seed(0)
    model = mlp_resnet.MLPResNet(784, 64, 2)
    optimizer = optim.Adam(model.parameters(), 0.002, weight_decay=1e-4)
    loader = data.DataLoader(train, 50, shuffle=True)
    errors = [mlp_resnet.epoch(loader, model, optimizer)[0] for _ in range(4)]
    error, loss = mlp_resnet.epoch(data.DataLoader(test, 100), model)
    assert errors[3] < errors[0] and error < 0.2 and loss < 0.7
    assert not model.training


def test_a_language_model_learns_a_pattern() -> None:
    words = data.batchify([0, 1, 2, 3, 4] * 60, 4, device=None, dtype="float32")
    np.random.seed(0)
    model = models.LanguageModel(8, 5, 16, 1, "lstm")
    before = simple_ml.evaluate_ptb(model, words, seq_len=10)
    accuracy, loss = simple_ml.train_ptb(model, words, 10, 8, optim.Adam, 0.02, clip=1.0)
    after = simple_ml.evaluate_ptb(model, words, seq_len=10)
    assert after[1] < loss < before[1] and after[0] > 0.9 and accuracy > before[0]


def test_cifar_training_learns_and_evaluates() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 10
    images = rng.standard_normal((40, 3, 32, 32)).astype(np.float32) * 0.1
    images[np.arange(40), 0, labels] += 2
    loader = data.DataLoader(data.NDArrayDataset(images, labels), 20)
    np.random.seed(0)
    model = models.ResNet9()
    before = simple_ml.evaluate_cifar10(model, loader)
    simple_ml.train_cifar10(model, loader, 12, optim.Adam, 0.003, 0.0)
    after = simple_ml.evaluate_cifar10(model, loader)
    assert after[1] < before[1] and after[0] > before[0]
