"""Convolution of 1 to 3 axes and its transposes beside PyTorch: outputs, gradients, errors."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import nir
from nir import nn
from nir.errors import NirError, ShapeError
from nir.ir.interp import run
from nir.nn import functional as F
from tests.peers import torch_or_skip

torch = torch_or_skip()
TF = torch.nn.functional

# (channels in, channels out, kernel, size, options) of each number of axes.
FORWARD: dict[int, list[tuple[Any, ...]]] = {
    1: [
        (4, 6, 3, (9,), {}),
        (4, 6, 5, (12,), {"stride": 3, "padding": 2}),
        (4, 6, 3, (12,), {"dilation": 2, "padding": "same"}),
        (4, 6, 4, (11,), {"padding": "same", "bias": False}),
        (4, 8, 3, (9,), {"groups": 2, "padding": 1}),
        (4, 8, 3, (9,), {"groups": 4, "stride": 2}),
        (3, 5, 1, (7,), {}),
    ],
    2: [
        (4, 6, (2, 3), (7, 6), {"stride": (2, 1), "padding": (1, 0)}),
        (4, 6, 3, (7, 6), {"dilation": (1, 2), "groups": 2}),
    ],
    3: [
        (2, 3, 3, (5, 6, 7), {}),
        (2, 3, (3, 2, 1), (5, 4, 4), {"stride": (2, 1, 2), "padding": (1, 0, 2)}),
        (2, 4, (2, 3, 3), (6, 5, 5), {"dilation": (2, 1, 1), "padding": "same"}),
        (4, 4, 3, (4, 4, 4), {"groups": 2, "padding": 1, "bias": False}),
        (4, 4, (2, 1, 3), (4, 4, 4), {"groups": 4, "stride": 2}),
        (3, 2, (1, 3, 3), (4, 5, 5), {}),
    ],
}
TRANSPOSED: dict[int, list[tuple[Any, ...]]] = {
    1: [
        (4, 6, 3, (5,), {}),
        (4, 6, 4, (5,), {"stride": 2, "padding": 1}),
        (4, 6, 3, (5,), {"stride": 3, "output_padding": 2, "padding": 2, "bias": False}),
        (4, 6, 3, (5,), {"groups": 2, "dilation": 2}),
        (4, 6, 3, (5,), {"dilation": 3, "stride": 1, "output_padding": 2}),
        (4, 4, 3, (5,), {"groups": 4, "stride": 2}),
    ],
    2: [
        (4, 6, 3, (5, 4), {}),
        (4, 6, 4, (4, 4), {"stride": 2, "padding": 1}),
        (4, 6, (3, 2), (4, 3), {"stride": (2, 3), "output_padding": (1, 2), "padding": (0, 1)}),
        (4, 6, 3, (4, 4), {"groups": 2, "dilation": (1, 2), "bias": False}),
        (4, 4, 3, (4, 4), {"groups": 4, "stride": 2, "padding": 1}),
        (3, 5, 1, (4, 4), {"stride": 2}),
        (3, 5, 2, (4, 4), {"dilation": (4, 1), "output_padding": (3, 0)}),
    ],
    3: [
        (2, 3, 3, (3, 4, 3), {}),
        (2, 4, (2, 3, 3), (3, 4, 3), {"stride": 2, "padding": 1, "output_padding": (1, 0, 1)}),
        (4, 2, 2, (3, 3, 3), {"groups": 2, "dilation": (2, 1, 1), "bias": False}),
        (2, 2, (1, 2, 2), (3, 3, 3), {"stride": 3, "output_padding": 2}),
        (2, 2, (2, 1, 1), (4, 3, 3), {"stride": (2, 1, 1), "dilation": 3, "padding": (3, 0, 0)}),
        (2, 3, 3, (2, 3, 3), {"dilation": 4, "output_padding": (3, 0, 0)}),
    ],
}
CASES = [
    pytest.param(kind, axes, case, id=f"{kind}{axes}d-{i}")
    for kind, table in (("Conv", FORWARD), ("ConvTranspose", TRANSPOSED))
    for axes, cases in table.items()
    for i, case in enumerate(cases)
]
DTYPES = {"f32": (torch.float32, 2e-5), "f64": (torch.float64, 1e-12)}


def twins(kind: str, axes: int, case: Any, dtype: str) -> tuple[nn.Module, Any]:
    """Our layer and torch's, with torch's weights."""
    c_in, c_out, kernel, _, options = case
    name = f"{kind}{axes}d"
    ours = getattr(nn, name)(c_in, c_out, kernel, **options, dtype=dtype)
    theirs = getattr(torch.nn, name)(c_in, c_out, kernel, **options, dtype=DTYPES[dtype][0])
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "axes", "case"), CASES)
def test_layer_and_gradients(kind: str, axes: int, case: Any, dtype: str) -> None:
    ours, theirs = twins(kind, axes, case, dtype)
    rng = np.random.default_rng(axes)
    x = rng.standard_normal((3, case[0], *case[3])).astype(dtype.replace("f", "float"))
    a = nir.Tensor(x, requires_grad=True)
    b = torch.from_numpy(x.copy()).requires_grad_()
    y, z = ours(a), theirs(b)
    assert tuple(y.shape) == tuple(z.shape) and y.dtype.name == dtype
    v = rng.standard_normal(tuple(z.shape)).astype(x.dtype)
    (y * nir.Tensor(v)).sum().backward()
    (z * torch.from_numpy(v)).sum().backward()
    tol = DTYPES[dtype][1]
    pairs = [(y, z), (a.grad, b.grad)]
    pairs += [(p.grad, q.grad) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True)]
    for mine, wanted in pairs:
        np.testing.assert_allclose(mine.numpy(), wanted.detach().numpy(), tol, tol)


@pytest.mark.parametrize(
    ("kind", "axes"), list(itertools.product(("conv", "conv_transpose"), (1, 2, 3)))
)
def test_second_order(kind: str, axes: int) -> None:
    """d/dx and d/dw of |dx|^2 + |dw|^2, dx and dw the gradients of a sum of squares."""
    rng = np.random.default_rng(9)
    x, w = rng.standard_normal((2, 2, *(4,) * axes)), rng.standard_normal((2, 2, *(2,) * axes))
    name, options = f"{kind}{axes}d", {"stride": 2, "padding": 1}

    def slope(x, w):
        dx, dw = nir.grad(lambda x, w: (getattr(F, name)(x, w, **options) ** 2).sum(), (0, 1))(x, w)
        return (dx**2).sum() + (dw**2).sum()

    p, q = (torch.from_numpy(a).requires_grad_() for a in (x, w))
    loss = (getattr(TF, name)(p, q, **options) ** 2).sum()
    dp, dq = torch.autograd.grad(loss, (p, q), create_graph=True)
    wanted = torch.autograd.grad((dp**2).sum() + (dq**2).sum(), (p, q))
    found = nir.grad(slope, (0, 1))(nir.Tensor(x), nir.Tensor(w))
    for mine, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(mine.numpy(), other.numpy(), 1e-10, 1e-10)


@pytest.mark.parametrize(
    ("kind", "axes"), list(itertools.product(("conv", "conv_transpose"), (1, 2, 3)))
)
def test_symbolic_batch(kind: str, axes: int) -> None:
    """One compiled step serves every batch size, and agrees with the interpreter."""
    name, shape = f"{kind}{axes}d", ",".join("5" * axes)
    kernel = ",".join("3" * axes)

    def step(x, w):
        return nir.value_and_grad(lambda w: getattr(F, name)(x, w, stride=2).square().sum())(w)

    specs = nir.spec(f"f32[B,2,{shape}]"), nir.spec(f"f32[2,2,{kernel}]")
    graph, compiled = nir.trace(step, *specs), nir.compile(step, *specs)
    for batch in (1, 3):
        rng = np.random.default_rng(batch)
        x = rng.standard_normal((batch, 2, *(5,) * axes)).astype(np.float32)
        w = rng.standard_normal((2, 2, *(3,) * axes)).astype(np.float32)
        for mine, want in zip(compiled(x, w), run(graph, [x, w]), strict=True):
            np.testing.assert_allclose(mine, want, 1e-4, 1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: F.conv1d(nir.zeros(2, 3), nir.zeros(4, 3, 2)), r"conv1d: expected images \[N,C,L"),
        (
            lambda: F.conv3d(nir.zeros(1, 2, 3, 3, 3), nir.zeros(2, 2, 4, 1, 1)),
            r"conv3d: kernel \(4, 1, 1\) with dilation .* exceeds",
        ),
        (
            lambda: F.conv_transpose2d(nir.zeros(1, 2, 3, 3), nir.zeros(3, 2, 2, 2)),
            r"conv_transpose2d: expected 3 channels, divisible by groups 1, got \(1, 2, 3, 3\)",
        ),
        (
            lambda: F.conv_transpose1d(nir.zeros(1, 2, 3), nir.zeros(2, 2, 2), output_padding=1),
            r"conv_transpose1d: expected output padding below stride or dilation, got \(1,\)",
        ),
        (
            lambda: F.conv_transpose2d(nir.zeros(1, 1, 1, 2), nir.zeros(1, 1, 2, 2), padding=1),
            "padding leaves nothing of the result, of size 0, 1",
        ),
        (
            lambda: F.conv_transpose3d(
                nir.zeros(1, 1, 1, 2, 2), nir.zeros(1, 1, 2, 2, 2), padding=(2, 0, 0)
            ),
            "padding leaves nothing of the result, of size -2",
        ),
        (lambda: nn.Conv1d(3, 4, 2, groups=2), "Conv1d: expected channels divisible by groups=2"),
        (lambda: nn.Conv3d(2, 2, (1, 2)), r"Conv3d: expected one size or 3, got \(1, 2\)"),
        (
            lambda: F.conv1d(nir.zeros(1, 1, 4), nir.zeros(1, 1, 2), stride=2, padding="same"),
            "conv1d: padding 'same' needs stride 1",
        ),
    ],
)
def test_errors(call: Any, message: str) -> None:
    with pytest.raises((ShapeError, NirError), match=message):
        call()
