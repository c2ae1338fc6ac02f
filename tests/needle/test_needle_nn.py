"""Initialisers and layers: draws in Needle's order, values and gradients beside PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nir.needle as ndl
from nir.needle import init, nn
from nir.needle.store import IS_NUMPY
from tests.peers import torch_or_skip

torch = torch_or_skip()
TF = torch.nn.functional
RTOL, ATOL = 2e-5, 2e-5


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def leaf(x: np.ndarray) -> Any:
    return torch.tensor(x, requires_grad=True)


def close(a: Any, b: Any) -> None:
    b = b.detach().numpy() if isinstance(b, torch.Tensor) else b
    np.testing.assert_allclose(a.numpy(), b, RTOL, ATOL)


# ---- init ----------------------------------------------------------------------------------------


def test_draws_are_numpys_in_order() -> None:
    np.random.seed(3)
    a = init.rand(2, 3, low=-1, high=2)
    b = init.randn(4, mean=1, std=2)
    c = init.randb(3, 3, p=0.3)
    np.random.seed(3)
    np.testing.assert_allclose(a.numpy(), np.random.rand(2, 3) * 3 - 1, 1e-5, 1e-6)
    np.testing.assert_allclose(b.numpy(), np.random.randn(4) * 2 + 1, 1e-5, 1e-6)
    np.testing.assert_array_equal(c.numpy(), np.random.rand(3, 3) <= 0.3)


def test_constants() -> None:
    assert init.ones(2, 2).numpy().tolist() == [[1, 1], [1, 1]]
    assert init.zeros(3).numpy().tolist() == [0, 0, 0]
    assert init.constant(2, c=4).numpy().tolist() == [4, 4]
    assert not init.ones(1).requires_grad and init.ones(1, requires_grad=True).requires_grad
    hot = init.one_hot(4, ndl.Tensor([2, 0]))
    np.testing.assert_array_equal(hot.numpy(), np.eye(4)[[2, 0]])
    like = init.zeros_like(init.ones(2, 3))
    assert like.shape == (2, 3) and like.numpy().sum() == 0
    assert init.ones(1).device == ndl.cpu()


@pytest.mark.parametrize(
    ("fn", "std"),
    [
        (init.xavier_uniform, np.sqrt(2 / 700)), (init.xavier_normal, np.sqrt(2 / 700)),
        (init.kaiming_uniform, np.sqrt(2 / 300)), (init.kaiming_normal, np.sqrt(2 / 300)),
    ],
)  # fmt: skip
def test_deviations_of_initialisers(fn: Any, std: float) -> None:
    np.random.seed(0)
    x = fn(300, 400).numpy()
    assert x.shape == (300, 400) and x.dtype == np.float32
    assert abs(x.std() / std - 1) < 0.02 and abs(x.mean()) < std / 50


# ---- modules -------------------------------------------------------------------------------------


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(2, 3)
        self.parts = {"x": [nn.Linear(3, 1, bias=False)], "y": (nn.Parameter(init.ones(2)),)}
        self.plain = init.ones(4)
        self.drop = nn.Sequential(nn.Dropout(0.5))


def test_parameters_and_modes_are_found_in_containers() -> None:
    model = Nested()
    shapes = [p.shape for p in model.parameters()]
    assert shapes == [(2, 3), (1, 3), (3, 1), (2,)]
    model.eval()
    assert not model.drop.modules[0].training and not model.parts["x"][0].training
    model.train()
    assert model.drop.modules[0].training
    model.a.weight = ndl.Tensor(np.zeros((2, 3)))  # no Parameter any more
    assert len(model.parameters()) == 3


def test_linear_draws_its_weight_first() -> None:
    np.random.seed(1)
    layer = nn.Linear(3, 2)
    np.random.seed(1)
    bound = np.sqrt(6 / 3)
    np.testing.assert_allclose(
        layer.weight.numpy(), np.random.rand(3, 2) * 2 * bound - bound, 1e-5, 1e-6
    )
    bound = np.sqrt(6 / 2)
    np.testing.assert_allclose(
        layer.bias.numpy(), (np.random.rand(2, 1) * 2 * bound - bound).T, 1e-5, 1e-6
    )
    assert layer.bias.shape == (1, 2) and layer.weight.dtype == "float32"


def test_linear() -> None:
    layer, x = nn.Linear(3, 2), array(4, 3)
    layer.bias.data = ndl.Tensor(array(2, seed=5), dtype="float32")
    given = ndl.Tensor(x, dtype="float32")
    y = layer(given)
    t, w, b = leaf(x), leaf(layer.weight.numpy()), leaf(layer.bias.numpy())
    ty = t @ w + b
    close(y, ty)
    (y * y).sum().backward()
    (ty * ty).sum().backward()
    for mine, theirs in ((given, t), (layer.weight, w), (layer.bias, b)):
        close(mine.grad, theirs.grad)


@pytest.mark.parametrize("shape", [(6, 4), (3, 4, 5, 2)])
def test_batch_norm(shape: tuple[int, ...]) -> None:
    """In training by the batch, with biased running variances; then by the running statistics."""
    layer = nn.BatchNorm1d(4) if len(shape) == 2 else nn.BatchNorm2d(4)
    layer.weight.data = ndl.Tensor(array(4, seed=1), dtype="float32")
    layer.bias.data = ndl.Tensor(array(4, seed=2), dtype="float32")
    w, b = leaf(layer.weight.numpy()), leaf(layer.bias.numpy())
    mean, var = np.zeros(4), np.ones(4)
    for seed in range(3):
        x = array(*shape, seed=seed)
        given, t = ndl.Tensor(x, dtype="float32"), leaf(x)
        y, ty = layer(given), TF.batch_norm(t, None, None, w, b, training=True)
        close(y, ty)
        axes = (0, *range(2, len(shape)))
        mean = 0.9 * mean + 0.1 * x.mean(axes)
        var = 0.9 * var + 0.1 * x.var(axes)
    (y**3).sum().backward()
    w.grad = b.grad = None
    (ty**3).sum().backward()
    for mine, theirs in ((given, t), (layer.weight, w), (layer.bias, b)):
        np.testing.assert_allclose(mine.grad.numpy(), theirs.grad.numpy(), 2e-4, 2e-4)
    np.testing.assert_allclose(layer.running_mean.numpy(), mean, 1e-5, 1e-6)
    np.testing.assert_allclose(layer.running_var.numpy(), var, 1e-5, 1e-6)
    assert not layer.running_mean.requires_grad
    layer.eval()
    expected = TF.batch_norm(
        torch.tensor(x), torch.tensor(mean, dtype=torch.float32),
        torch.tensor(var, dtype=torch.float32), w, b,
    )  # fmt: skip
    close(layer(given), expected)


def test_layer_norm() -> None:
    layer, x = nn.LayerNorm1d(5), array(4, 5)
    given, t = ndl.Tensor(x, dtype="float32"), leaf(x)
    y, ty = layer(given), TF.layer_norm(t, (5,))
    close(y, ty)
    (y**3).sum().backward()
    (ty**3).sum().backward()
    np.testing.assert_allclose(given.grad.numpy(), t.grad.numpy(), 1e-3, 1e-4)


def test_softmax_loss() -> None:
    x, labels = array(5, 3), np.array([0, 2, 1, 1, 0], np.uint8)
    given, t = ndl.Tensor(x, dtype="float32"), leaf(x)
    loss, expected = (
        nn.SoftmaxLoss()(given, ndl.Tensor(labels)),
        TF.cross_entropy(t, torch.tensor(labels).long()),
    )
    assert loss.shape == (() if IS_NUMPY else (1,)) and str(loss.dtype) == "float32"
    np.testing.assert_allclose(loss.numpy().reshape(()), expected.item(), 1e-6)
    loss.backward()
    expected.backward()
    close(given.grad, t.grad)


def test_dropout_draws_and_scales() -> None:
    layer = nn.Dropout(0.25)
    x = ndl.Tensor(np.ones((3, 4)), dtype="float32")
    np.random.seed(5)
    y = layer(x)
    np.random.seed(5)
    expected = (np.random.rand(3, 4) <= 0.75) / 0.75
    np.testing.assert_allclose(y.numpy(), expected, 1e-6)
    y.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), expected, 1e-6)
    np.random.seed(5)
    nn.Dropout(0.0)(x)
    after = np.random.rand()
    np.random.seed(5)
    np.random.rand(3, 4)
    assert after == np.random.rand()  # it draws even where it keeps all
    layer.eval()
    assert layer(x) is x


def test_small_layers() -> None:
    x = ndl.Tensor(array(2, 3, 4), dtype="float32")
    assert nn.Flatten()(x).shape == (2, 12)
    assert nn.Identity()(x) is x
    np.testing.assert_allclose(nn.ReLU()(x).numpy(), np.maximum(x.numpy(), 0))
    np.testing.assert_allclose(nn.Sigmoid()(x).numpy(), 1 / (1 + np.exp(-x.numpy())), 1e-5)
    y = nn.Residual(nn.Sequential(nn.ReLU(), nn.ReLU()))(x)
    np.testing.assert_allclose(y.numpy(), np.maximum(x.numpy(), 0) + x.numpy(), 1e-6)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("size", "k", "stride"), [(8, 3, 1), (9, 3, 2), (12, 7, 4), (6, 1, 1)])
def test_conv(size: int, k: int, stride: int, bias: bool) -> None:
    """Every element of values and gradients."""
    layer, x = nn.Conv(3, 4, k, stride=stride, bias=bias), array(2, 3, size, size)
    assert layer.weight.shape == (k, k, 3, 4)
    given, t = ndl.Tensor(x, dtype="float32"), leaf(x)
    w = leaf(np.ascontiguousarray(layer.weight.numpy().transpose(3, 2, 0, 1)))
    b = leaf(layer.bias.numpy()) if bias else None
    y, ty = layer(given), TF.conv2d(t, w, b, stride=stride, padding=k // 2)
    np.testing.assert_allclose(y.numpy(), ty.detach().numpy(), 1e-4, 1e-4)
    c = array(*y.shape, seed=3)
    y.backward(ndl.Tensor(c, dtype="float32"))
    ty.backward(torch.tensor(c))
    np.testing.assert_allclose(given.grad.numpy(), t.grad.numpy(), 1e-4, 1e-4)
    np.testing.assert_allclose(
        layer.weight.grad.numpy(), w.grad.numpy().transpose(2, 3, 1, 0), 1e-4, 1e-3
    )
    if b is not None:
        np.testing.assert_allclose(layer.bias.grad.numpy(), b.grad.numpy(), 1e-4, 1e-3)
