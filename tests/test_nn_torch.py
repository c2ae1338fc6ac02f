"""Layers, functions and losses beside PyTorch: outputs, gradients, running statistics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import nir
from nir import nn
from nir.nn import functional as F
from tests.peers import torch_or_skip

torch = torch_or_skip()
TF = torch.nn.functional
RTOL, ATOL = 2e-5, 2e-6


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def classes(count: int, *shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, count, shape)


def close(ours: Any, theirs: Any, what: str) -> None:
    np.testing.assert_allclose(
        ours.numpy(), theirs.detach().numpy(), rtol=RTOL, atol=ATOL, err_msg=what
    )


def compare(
    ours: Callable[..., Any], theirs: Callable[..., Any], *inputs: np.ndarray, seed: int = 9
) -> None:
    """Outputs, and gradients of a random linear function of them by every float input."""
    a = [nir.tensor(x) for x in inputs]
    b = [torch.from_numpy(x.copy()) for x in inputs]
    floats = [i for i, x in enumerate(inputs) if x.dtype.kind == "f"]
    for i in floats:
        a[i].requires_grad_()
        b[i].requires_grad_()
    y, z = ours(*a), theirs(*b)
    assert tuple(y.shape) == tuple(z.shape)
    close(y, z, "output")
    direction = array(*z.shape, seed=seed)
    (y * nir.tensor(direction)).sum().backward()
    (z * torch.from_numpy(direction)).sum().backward()
    for i in floats:
        close(a[i].grad, b[i].grad, f"gradient of input {i}")


# ---- functions of their inputs alone -------------------------------------------------------------

X = array(4, 5)
SPECIAL = np.array([[-30.0, -3.0, -1.0, 0.0, 0.5], [3.0, 7.0, 25.0, 100.0, -100.0]], np.float32)

ACTIVATIONS = {
    "relu": (nn.ReLU(), torch.nn.ReLU()),
    "sigmoid": (nn.Sigmoid(), torch.nn.Sigmoid()),
    "tanh": (nn.Tanh(), torch.nn.Tanh()),
    "silu": (nn.SiLU(), torch.nn.SiLU()),
    "gelu": (nn.GELU(), torch.nn.GELU()),
    "gelu_tanh": (nn.GELU("tanh"), torch.nn.GELU("tanh")),
    "leaky_relu": (nn.LeakyReLU(0.1), torch.nn.LeakyReLU(0.1)),
    "elu": (nn.ELU(0.7), torch.nn.ELU(0.7)),
    "softplus": (nn.Softplus(2.0, 10.0), torch.nn.Softplus(2.0, 10.0)),
    "hardswish": (nn.Hardswish(), torch.nn.Hardswish()),
    "softmax": (nn.Softmax(0), torch.nn.Softmax(0)),
    "log_softmax": (nn.LogSoftmax(1), torch.nn.LogSoftmax(1)),
    "flatten": (nn.Flatten(0), torch.nn.Flatten(0)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("x", [X, SPECIAL], ids=["random", "special"])
def test_activation(name: str, x: np.ndarray) -> None:
    ours, theirs = ACTIVATIONS[name]
    if name == "hardswish" and x is SPECIAL:  # -3 and 3 are kinks, where any slope is right
        x = x[:, 2:]
    compare(ours, theirs, x)


LOSSES = {
    "mse": (nn.MSELoss(), torch.nn.MSELoss(), (X, array(4, 5, seed=2))),
    "mse_sum": (nn.MSELoss("sum"), torch.nn.MSELoss(reduction="sum"), (X, array(4, 5, seed=2))),
    "l1": (nn.L1Loss("none"), torch.nn.L1Loss(reduction="none"), (X, array(4, 5, seed=2))),
    "bce": (
        nn.BCEWithLogitsLoss(),
        torch.nn.BCEWithLogitsLoss(),
        (SPECIAL, abs(array(2, 5, seed=2)) % 1),
    ),
    "cross_entropy": (nn.CrossEntropyLoss(), torch.nn.CrossEntropyLoss(), (X, classes(5, 4))),
    "cross_entropy_sum": (
        nn.CrossEntropyLoss(reduction="sum"),
        torch.nn.CrossEntropyLoss(reduction="sum"),
        (X, classes(5, 4)),
    ),
    "cross_entropy_ignore": (
        nn.CrossEntropyLoss(ignore_index=2),
        torch.nn.CrossEntropyLoss(ignore_index=2),
        (X, np.array([0, 2, 2, 4])),
    ),
    "cross_entropy_default_ignore": (
        nn.CrossEntropyLoss(),
        torch.nn.CrossEntropyLoss(),
        (X, np.array([0, -100, 2, 4])),
    ),
    "cross_entropy_smooth": (
        nn.CrossEntropyLoss(label_smoothing=0.2),
        torch.nn.CrossEntropyLoss(label_smoothing=0.2),
        (X, classes(5, 4)),
    ),
    "cross_entropy_images": (
        nn.CrossEntropyLoss(reduction="none", label_smoothing=0.1),
        torch.nn.CrossEntropyLoss(reduction="none", label_smoothing=0.1),
        (array(2, 5, 3, 4), classes(5, 2, 3, 4)),
    ),
    "nll": (nn.NLLLoss(ignore_index=1), torch.nn.NLLLoss(ignore_index=1), (X, classes(5, 4))),
}


@pytest.mark.parametrize("name", LOSSES)
def test_loss(name: str) -> None:
    ours, theirs, inputs = LOSSES[name]
    compare(ours, theirs, *inputs)


def test_cross_entropy_of_probabilities() -> None:
    target = np.random.default_rng(0).dirichlet(np.ones(5), 4).astype(np.float32)
    compare(
        lambda x, t: F.cross_entropy(x, t, label_smoothing=0.1),
        lambda x, t: TF.cross_entropy(x, t, label_smoothing=0.1),
        X,
        target,
    )


CONVOLUTIONS: list[dict[str, Any]] = [
    {},
    {"stride": 2, "padding": 1},
    {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
    {"padding": "same", "dilation": 2},
    {"padding": "valid"},
    {"groups": 2, "padding": 1},
    {"groups": 4, "padding": 1, "bias": False},
]


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_conv2d(options: dict[str, Any]) -> None:
    layers(nn.Conv2d(4, 8, 3, **options), torch.nn.Conv2d(4, 8, 3, **options), array(2, 4, 9, 8))


def test_conv2d_of_one_image_and_large_kernel() -> None:
    options = {"stride": 4, "padding": 3}
    layers(nn.Conv2d(3, 6, 7, **options), torch.nn.Conv2d(3, 6, 7, **options), array(1, 3, 32, 32))


POOLS = {
    "max": (nn.MaxPool2d(2), torch.nn.MaxPool2d(2)),
    "max_padded": (nn.MaxPool2d(3, 2, 1), torch.nn.MaxPool2d(3, 2, 1)),
    "avg": (nn.AvgPool2d((2, 3)), torch.nn.AvgPool2d((2, 3))),
    "avg_padded": (nn.AvgPool2d(3, 2, 1), torch.nn.AvgPool2d(3, 2, 1)),
    "avg_inner": (
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        torch.nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    ),
    "adaptive_1": (nn.AdaptiveAvgPool2d(1), torch.nn.AdaptiveAvgPool2d(1)),
    "adaptive_even": (nn.AdaptiveAvgPool2d((4, 3)), torch.nn.AdaptiveAvgPool2d((4, 3))),
    "adaptive_odd": (nn.AdaptiveAvgPool2d((3, 5)), torch.nn.AdaptiveAvgPool2d((3, 5))),
}


@pytest.mark.parametrize("name", POOLS)
def test_pool(name: str) -> None:
    compare(*POOLS[name], array(2, 3, 8, 9))


# ---- layers with state ---------------------------------------------------------------------------


def layers(ours: nn.Module, theirs: Any, *inputs: np.ndarray) -> None:
    """`compare`, with equal weights, and the gradients of the parameters."""
    ours.load_state_dict(theirs.state_dict())
    compare(ours, theirs, *inputs)
    gradients = dict(theirs.named_parameters())
    assert [n for n, _ in ours.named_parameters()] == list(gradients)
    for name, parameter in ours.named_parameters():
        close(parameter.grad, gradients[name].grad, f"gradient of {name}")


def test_linear() -> None:
    layers(nn.Linear(5, 3), torch.nn.Linear(5, 3), array(4, 5))
    layers(nn.Linear(5, 3, bias=False), torch.nn.Linear(5, 3, bias=False), array(2, 4, 5))
    layers(nn.Linear(5, 3), torch.nn.Linear(5, 3), array(5))


def test_embedding() -> None:
    ids = classes(7, 3, 4)
    ids[0, 0] = 2
    for padding in (None, 2):
        layers(nn.Embedding(7, 5, padding), torch.nn.Embedding(7, 5, padding), ids)


def test_layer_norm() -> None:
    x = array(3, 4, 5) * 3 + 1
    layers(nn.LayerNorm(5), torch.nn.LayerNorm(5), x)
    layers(nn.LayerNorm((4, 5), eps=1e-3), torch.nn.LayerNorm((4, 5), eps=1e-3), x)
    layers(nn.LayerNorm(5, bias=False), torch.nn.LayerNorm(5, bias=False), x)
    plain = {"elementwise_affine": False}
    layers(nn.LayerNorm(5, **plain), torch.nn.LayerNorm(5, **plain), x)


@dataclass(frozen=True)
class Norm:
    name: str
    shape: tuple[int, ...]
    options: dict[str, Any]


NORMS = [
    Norm("BatchNorm1d", (6, 5), {}),
    Norm("BatchNorm1d", (6, 5, 3), {"momentum": 0.3}),
    Norm("BatchNorm2d", (2, 5, 3, 4), {"eps": 1e-3}),
    Norm("BatchNorm2d", (2, 5, 3, 4), {"momentum": None}),
    Norm("BatchNorm2d", (2, 5, 3, 4), {"affine": False}),
    Norm("BatchNorm2d", (2, 5, 3, 4), {"track_running_stats": False}),
]


@pytest.mark.parametrize("case", NORMS, ids=str)
def test_batch_norm(case: Norm) -> None:
    ours = getattr(nn, case.name)(5, **case.options)
    theirs = getattr(torch.nn, case.name)(5, **case.options)
    for seed in range(3):
        layers(ours, theirs, array(*case.shape, seed=seed) * 2 + 1)
        for (name, a), b in zip(ours.named_buffers(), theirs.buffers(), strict=True):
            close(a, b, f"{name} after batch {seed + 1}")
        ours.zero_grad()
        theirs.zero_grad()
    layers(ours.eval(), theirs.eval(), array(*case.shape, seed=7))


def test_batch_norm_of_one_value_keeps_finite_statistics() -> None:
    norm = nn.BatchNorm1d(3)
    norm(nir.tensor(array(1, 3)))
    assert np.isfinite(norm.running_var.numpy()).all()


def test_models_have_the_same_paths_and_outputs() -> None:
    from benchmarks import torch_twins
    from examples import mlp_resnet, resnet9

    for ours, theirs, x in (
        (resnet9.ResNet9(), torch_twins.ResNet9(), array(2, 3, 32, 32)),
        (mlp_resnet.mlp_resnet(drop=0.0), torch_twins.mlp_resnet(drop=0.0), array(3, 784)),
    ):
        theirs.eval()
        assert list(ours.state_dict()) == list(theirs.state_dict())
        ours.load_state_dict(theirs.state_dict())
        with torch.no_grad():
            expected = theirs(torch.from_numpy(x))
        close(ours.eval()(nir.tensor(x)), expected, type(theirs).__name__)


def test_state_dict_loads_into_torch() -> None:
    ours = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    theirs = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    theirs.load_state_dict(
        {name: torch.from_numpy(t.numpy().copy()) for name, t in ours.state_dict().items()}
    )
    close(ours[0].weight, theirs[0].weight, "weight")
