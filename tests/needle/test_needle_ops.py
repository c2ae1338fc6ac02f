"""The ops: values against numpy and PyTorch, gradients against differences and PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import nir.needle as ndl
from nir.needle import ops
from nir.needle.store import IS_NUMPY
from tests.peers import torch_or_skip

torch = torch_or_skip()
RTOL, ATOL = (1e-7, 1e-9) if IS_NUMPY else (2e-5, 2e-5)


def array(*shape: int, seed: int = 0, positive: bool = False) -> np.ndarray:
    a = np.random.default_rng(seed).standard_normal(shape)
    a = np.abs(a) + 0.5 if positive else a
    return a if IS_NUMPY else a.astype(np.float32)


def logsumexp(a: np.ndarray, axes: Any = None) -> np.ndarray:
    return np.asarray(np.log(np.exp(a).sum(axis=axes)))


A, B, P, Q = array(3, 4), array(3, 4, seed=1), array(3, 4, positive=True), array(3, 4, seed=2)
T = array(2, 3, 4, seed=3)

# name -> (function of Tensors, function of arrays, operands)
CASES: dict[str, tuple[Callable[..., Any], Callable[..., Any], list[np.ndarray]]] = {
    "add": (ndl.add, np.add, [A, B]),
    "add_scalar": (lambda a: ndl.add_scalar(a, scalar=2.5), lambda a: a + 2.5, [A]),
    "subtract": (lambda a, b: a - b, np.subtract, [A, B]),
    "scalar_minus": (lambda a: 2 - a, lambda a: 2 - a, [A]),
    "multiply": (ndl.multiply, np.multiply, [A, B]),
    "mul_scalar": (lambda a: ndl.mul_scalar(a, scalar=-3), lambda a: a * -3, [A]),
    "divide": (ndl.divide, np.divide, [A, P]),
    "divide_scalar": (lambda a: ndl.divide_scalar(a, scalar=3), lambda a: a / 3, [A]),
    "power": (ndl.power, np.power, [P, Q]),
    "power_scalar": (lambda a: ndl.power_scalar(a, scalar=3), lambda a: a**3, [A]),
    "power_negative": (lambda a: a**-1.5, lambda a: a**-1.5, [P]),
    "power_root": (lambda a: a**0.5, lambda a: a**0.5, [P]),
    "power_zero": (lambda a: a**0, lambda a: a**0, [A]),
    "negate": (ndl.negate, np.negative, [A]),
    "log": (ndl.log, np.log, [P]),
    "exp": (ndl.exp, np.exp, [A]),
    "tanh": (ndl.tanh, np.tanh, [A]),
    "relu": (ndl.relu, lambda a: np.maximum(a, 0), [A]),
    "transpose": (ndl.transpose, lambda a: a.swapaxes(-1, -2), [T]),
    "transpose_axes": (lambda a: ndl.transpose(a, axes=(0, 2)), lambda a: a.swapaxes(0, 2), [T]),
    "reshape": (lambda a: ndl.reshape(a, shape=(4, 6)), lambda a: a.reshape(4, 6), [T]),
    "reshape_list": (lambda a: a.reshape([2, 12]), lambda a: a.reshape(2, 12), [T]),
    "broadcast": (
        lambda a: ndl.broadcast_to(a, shape=(5, 3, 4)),
        lambda a: np.broadcast_to(a, (5, 3, 4)),
        [A],
    ),
    "broadcast_ones": (
        lambda a: ndl.broadcast_to(a, (3, 5, 4)),
        lambda a: np.broadcast_to(a, (3, 5, 4)),
        [array(3, 1, 4)],
    ),
    "sum_axis": (lambda a: ndl.summation(a, axes=1), lambda a: a.sum(1), [T]),
    "sum_axes": (lambda a: ndl.summation(a, axes=(0, 2)), lambda a: a.sum((0, 2)), [T]),
    "sum_negative_axis": (lambda a: a.sum(-1), lambda a: a.sum(-1), [T]),
    "matmul": (ndl.matmul, np.matmul, [A, array(4, 5, seed=4)]),
    "logsumexp_axis": (lambda a: ndl.logsumexp(a, axes=1), lambda a: logsumexp(a, 1), [T]),
    "logsumexp_axes": (lambda a: ndl.logsumexp(a, (0, 2)), lambda a: logsumexp(a, (0, 2)), [T]),
    "logsoftmax": (ndl.logsoftmax, lambda a: a - logsumexp(a, 1)[:, None], [A]),
    "flip": (lambda a: ndl.flip(a, axes=(0, 2)), lambda a: np.flip(a, (0, 2)), [T]),
    "stack": (lambda a, b: ndl.stack([a, b], axis=1), lambda a, b: np.stack([a, b], 1), [A, B]),
    "stack_last": (lambda a, b: ndl.stack([a, b], 2), lambda a, b: np.stack([a, b], 2), [A, B]),
    "split": (lambda a: ops.split(a, axis=1)[1] * 2, lambda a: a[:, 1] * 2, [T]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_values(name: str) -> None:
    fn, reference, operands = CASES[name]
    out = fn(*map(ndl.Tensor, operands)).numpy()
    expected = np.asarray(reference(*operands))
    assert out.shape == expected.shape and out.dtype == expected.dtype
    np.testing.assert_allclose(out, expected, RTOL, ATOL)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_slopes(name: str) -> None:
    """Of sum(c f(x)), against central differences in float64."""
    fn, reference, operands = CASES[name]
    tensors = [ndl.Tensor(x) for x in operands]
    out = fn(*tensors)
    c = array(*out.shape, seed=9)
    out.backward(ndl.Tensor(c, device=out.device))
    wide = [x.astype(np.float64) for x in operands]
    for k, x in enumerate(tensors):
        expected = np.zeros(x.shape)
        for i in np.ndindex(*x.shape):
            sides = []
            for step in (1e-6, -1e-6):
                moved = [w.copy() for w in wide]
                moved[k][i] += step
                sides.append((reference(*moved) * c).sum())
            expected[i] = (sides[0] - sides[1]) / 2e-6
        np.testing.assert_allclose(x.grad.numpy(), expected, 1e-4, 1e-4)


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_of_a_node_is_that_of_backward(name: str) -> None:
    fn, _, operands = CASES[name]
    tensors = [ndl.Tensor(x) for x in operands]
    out = fn(*tensors)
    if len(out.inputs) != len(tensors) or any(a is not b for a, b in zip(out.inputs, tensors)):  # noqa: B905
        pytest.skip("more than one node")
    c = ndl.Tensor(array(*out.shape, seed=9), device=out.device)
    adjoints = out.op.gradient_as_tuple(c, out)
    out.backward(c)
    for x, adjoint in zip(tensors, adjoints, strict=True):
        np.testing.assert_allclose(adjoint.numpy(), x.grad.numpy(), RTOL, ATOL)


def test_a_full_reduction_has_the_personalitys_shape() -> None:
    x = ndl.Tensor(T)
    expected = () if IS_NUMPY else (1,)
    for y, value in ((x.sum(), T.sum()), (ndl.logsumexp(x), logsumexp(T))):
        assert y.shape == expected
        np.testing.assert_allclose(y.numpy(), np.full(expected, value), 1e-5)
    x.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), np.ones(T.shape))


def test_relu_has_slope_0_at_0() -> None:
    x = ndl.Tensor(np.array([-1.0, 0.0, 2.0]))
    ndl.relu(x).sum().backward()
    assert x.grad.numpy().tolist() == [0, 0, 1]


def test_logarithms_do_not_overflow() -> None:
    big = ndl.Tensor(np.array([[1e10, 1e10], [-1e5, 1e5]], np.float32))
    np.testing.assert_allclose(ndl.logsumexp(big, axes=1).numpy(), [1e10 + np.log(2), 1e5], 1e-6)
    assert np.isfinite(ndl.logsoftmax(big).numpy()).all()


@pytest.mark.skipif(not IS_NUMPY, reason="numpy's broadcasting is np's alone")
def test_np_broadcasts_and_multiplies_batches() -> None:
    a, b = ndl.Tensor(array(1, 3, positive=True)), ndl.Tensor(array(3, seed=1))
    y = ndl.power(a, b)
    np.testing.assert_allclose(y.numpy(), a.numpy() ** b.numpy(), 1e-7)
    y.backward()
    assert a.grad.shape == (1, 3) and b.grad.shape == (3,)
    x, w = ndl.Tensor(array(2, 3, 4, 5)), ndl.Tensor(array(5, 6))
    (x @ w).sum().backward()
    np.testing.assert_allclose(w.grad.numpy(), np.repeat(x.numpy().sum((0, 1, 2))[:, None], 6, 1))
    s = ndl.divide_scalar(ndl.Tensor([1.0, 2.0]), scalar=np.array([4.0]))
    assert s.numpy().tolist() == [0.25, 0.5]


# ---- moves ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("axes", "dilation"), [((0,), 1), ((1,), 2), ((0, 1), 1), ((0, 1), 0)])
def test_dilate(axes: tuple[int, ...], dilation: int) -> None:
    x = ndl.Tensor(A)
    y = ndl.dilate(x, axes=axes, dilation=dilation)
    step = [dilation + 1 if a in axes else 1 for a in range(2)]
    expected = np.zeros([n * s for n, s in zip(A.shape, step, strict=True)])
    expected[:: step[0], :: step[1]] = A
    np.testing.assert_array_equal(y.numpy(), expected)
    np.testing.assert_array_equal(ndl.undilate(y, axes=axes, dilation=dilation).numpy(), A)
    c = array(*y.shape, seed=4)
    y.backward(ndl.Tensor(c))
    np.testing.assert_allclose(x.grad.numpy(), c[:: step[0], :: step[1]])


def test_dilate_ignores_axes_that_are_not_there() -> None:
    np.testing.assert_array_equal(ndl.dilate(ndl.Tensor(A), axes=(2,), dilation=1).numpy(), A)


def test_undilate_spreads_its_gradient() -> None:
    x = ndl.Tensor(array(4, 6))
    ndl.undilate(x, axes=(0, 1), dilation=1).sum().backward()
    expected = np.zeros((4, 6))
    expected[::2, ::2] = 1
    np.testing.assert_array_equal(x.grad.numpy(), expected)


# ---- convolution ---------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("size", "k"), [(14, 3), (17, 5), (6, 1)])
def test_conv(size: int, k: int, stride: int, padding: int) -> None:
    """Values and both gradients, element by element."""
    images, kernel = array(2, size, size, 3), array(k, k, 3, 4, seed=1)
    x, w = ndl.Tensor(images), ndl.Tensor(kernel)
    y = ndl.conv(x, w, stride=stride, padding=padding)
    tx = torch.tensor(images.transpose(0, 3, 1, 2), requires_grad=True)
    tw = torch.tensor(kernel.transpose(3, 2, 0, 1), requires_grad=True)
    ty = torch.nn.functional.conv2d(tx, tw, stride=stride, padding=padding)
    np.testing.assert_allclose(y.numpy(), ty.detach().numpy().transpose(0, 2, 3, 1), 1e-4, 1e-4)
    c = array(*y.shape, seed=2)
    y.backward(ndl.Tensor(c))
    ty.backward(torch.tensor(c.transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(x.grad.numpy(), tx.grad.numpy().transpose(0, 2, 3, 1), 1e-4, 1e-4)
    np.testing.assert_allclose(w.grad.numpy(), tw.grad.numpy().transpose(2, 3, 1, 0), 1e-4, 1e-3)


def test_conv_has_needles_defaults() -> None:
    x, w = ndl.Tensor(array(1, 5, 5, 2)), ndl.Tensor(array(3, 3, 2, 3))
    assert ndl.conv(x, w).shape == (1, 5, 5, 3)
    assert ops.Conv()(x, w).shape == (1, 3, 3, 3)
