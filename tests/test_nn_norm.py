"""Norms and activations beside PyTorch, in training and in evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nir
from nir import nn
from nir.errors import ShapeError
from nir.nn import functional as F
from tests.peers import torch_or_skip

torch = torch_or_skip()

TOLERANCE = {np.float32: 2e-5, np.float64: 1e-11}


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def compare(ours: Any, theirs: Any, x: np.ndarray) -> None:
    """Outputs and gradients of x and of the parameters, of a random linear function."""
    dtype = x.dtype.type
    a, b = nir.Tensor(x, requires_grad=True), torch.from_numpy(x.copy()).requires_grad_()
    y, z = ours(a), theirs(b)
    v = array(*z.shape, seed=8).astype(dtype)
    (y * nir.Tensor(v)).sum().backward()
    (z * torch.from_numpy(v)).sum().backward()
    pairs = [("output", y, z), ("gradient of x", a.grad, b.grad)]
    if isinstance(theirs, torch.nn.Module):
        ours_by_name = dict(ours.named_parameters())
        for name, p in theirs.named_parameters():
            pairs.append((f"gradient of {name}", ours_by_name[name].grad, p.grad))
        for (name, s), t in zip(ours.named_buffers(), theirs.buffers(), strict=True):
            pairs.append((name, s, t))
    for what, mine, other in pairs:
        np.testing.assert_allclose(
            mine.numpy(), other.detach().numpy(), TOLERANCE[dtype], TOLERANCE[dtype], err_msg=what
        )


NORMS: list[tuple[str, tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = [
    ("GroupNorm", (2, 6), {}, (3, 6, 4, 5)),
    ("GroupNorm", (3, 6), {"eps": 1e-3, "affine": False}, (3, 6, 7)),
    ("GroupNorm", (6, 6), {}, (2, 6, 2, 3, 2)),
    ("GroupNorm", (1, 6), {}, (4, 6)),
    ("RMSNorm", (5,), {}, (3, 4, 5)),
    ("RMSNorm", ((4, 5),), {"eps": 1e-3}, (3, 4, 5)),
    ("RMSNorm", (5,), {"elementwise_affine": False}, (3, 5)),
    ("InstanceNorm1d", (4,), {"affine": True}, (3, 4, 6)),
    ("InstanceNorm2d", (4,), {}, (3, 4, 5, 6)),
    ("InstanceNorm2d", (4,), {"affine": True, "track_running_stats": True}, (3, 4, 5, 6)),
    ("InstanceNorm3d", (2,), {"momentum": 0.3, "track_running_stats": True}, (2, 2, 3, 4, 3)),
    ("BatchNorm3d", (3,), {}, (2, 3, 3, 4, 2)),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", NORMS, ids=str)
def test_norm(case: Any, dtype: type) -> None:
    name, args, options, shape = case
    ours = getattr(nn, name)(*args, **options, dtype=dtype)
    theirs = getattr(torch.nn, name)(*args, **options).to(
        torch.float64 if dtype is np.float64 else torch.float32
    )
    with torch.no_grad():
        for i, p in enumerate(theirs.parameters()):
            p += torch.from_numpy(array(*p.shape, seed=i + 3))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    for seed in range(2):
        compare(ours, theirs, (array(*shape, seed=seed) * 2 + 1).astype(dtype))
        ours.zero_grad()
        theirs.zero_grad()
    compare(ours.eval(), theirs.eval(), array(*shape, seed=5).astype(dtype))


def test_group_norm_of_a_symbolic_batch() -> None:
    compiled = nir.compile(lambda x: F.group_norm(x, 2), nir.spec("f32[B,4,3]"))
    for batch in (1, 5):
        x = array(batch, 4, 3).astype(np.float32)
        want = torch.nn.functional.group_norm(torch.from_numpy(x), 2)
        np.testing.assert_allclose(compiled(x), want.numpy(), 1e-5, 1e-5)


X = array(4, 6)
EDGES = np.array([[-30.0, -6.0, -3.0, -1.0, 0.0, 0.5], [1.0, 3.0, 6.0, 25.0, 100.0, -100.0]])
ACTIVATIONS: dict[str, tuple[Any, ...]] = {
    name: (getattr(nn, name)(*args), getattr(torch.nn, name)(*args))
    for name, args in {
        "ReLU6": (), "SELU": (), "CELU": (0.7,), "Mish": (), "Softsign": (), "LogSigmoid": (),
        "Hardsigmoid": (), "Hardtanh": (-0.5, 3.0), "GLU": (0,),
    }.items()
}  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("x", [X, EDGES], ids=["random", "edges"])
def test_activation(name: str, x: np.ndarray) -> None:
    compare(*ACTIVATIONS[name], x.astype(np.float32))


@pytest.mark.parametrize(("count", "shape"), [(1, (3, 4)), (4, (3, 4)), (4, (2, 4, 3, 2))])
def test_prelu(count: int, shape: tuple[int, ...]) -> None:
    ours = nn.PReLU(count, 0.3, dtype="f64")
    theirs = torch.nn.PReLU(count, 0.3, dtype=torch.float64)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    compare(ours, theirs, array(*shape))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nn.GroupNorm(4, 6), "GroupNorm: expected channels divisible by 4 groups, got 6"),
        (lambda: nn.GroupNorm(2, 6)(nir.zeros(1, 4, 2)), "GroupNorm: expected 6 channels"),
        (lambda: F.group_norm(nir.zeros(1, 5), 2), "group_norm: expected .* divisible by 2"),
        (lambda: nn.RMSNorm(4)(nir.zeros(2, 3)), r"rms_norm: expected last axes of \(4,\)"),
        (lambda: nn.InstanceNorm2d(4)(nir.zeros(1, 4, 2)), "InstanceNorm2d: expected 4 channels"),
        (lambda: F.glu(nir.zeros(2, 3)), "glu: expected an even size of axis -1"),
        (lambda: F.prelu(nir.zeros(2, 3), nir.zeros(2)), r"prelu: expected a weight \[1\] or"),
    ],
)
def test_errors(call: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        call()
