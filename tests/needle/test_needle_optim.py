"""Optimisers: the rules, what they leave alone, and how many programs they take."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

import nir
import nir.needle as ndl
from nir.needle import autograd, nn, optim
from nir.needle.deferred import Call, Ref
from nir.needle.store import IS_NUMPY


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def steps(make: Any, count: int = 4) -> tuple[np.ndarray, list[np.ndarray]]:
    """The parameter after ``count`` steps on sum(w^3), and the gradients on the way."""
    w = nn.Parameter(ndl.Tensor(array(3, 2), dtype="float32"))
    optimizer = make([w])
    found = []
    for _ in range(count):
        optimizer.reset_grad()
        assert w.grad is None
        (w**3).sum().backward()
        before = w.grad.numpy()
        optimizer.step()
        np.testing.assert_array_equal(w.grad.detach().numpy(), before)
        found.append(before)
        assert str(w.dtype) == "float32"
    return w.numpy(), found


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd(momentum: float, decay: float) -> None:
    """u = m u + (1 - m) g, which is not PyTorch's rule."""
    w, u = array(3, 2).astype(np.float64), np.zeros((3, 2))
    result, grads = steps(lambda p: optim.SGD(p, 0.1, momentum, decay))
    for g in grads:
        np.testing.assert_allclose(g, 3 * w**2, 1e-4, 1e-5)
        u = momentum * u + (1 - momentum) * (3 * w**2 + decay * w)
        w = w - 0.1 * u
    np.testing.assert_allclose(result, w, 1e-4, 1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam(decay: float) -> None:
    w = array(3, 2).astype(np.float64)
    m = v = np.zeros((3, 2))
    result, grads = steps(lambda p: optim.Adam(p, 0.05, weight_decay=decay))
    for t in range(1, len(grads) + 1):
        g = 3 * w**2 + decay * w
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w = w - 0.05 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    np.testing.assert_allclose(result, w, 1e-4, 1e-5)


@pytest.mark.parametrize("scale", [10.0, 0.01])
def test_clip_grad_norm(scale: float) -> None:
    a, b = (nn.Parameter(ndl.Tensor(array(4, seed=s), dtype="float32")) for s in (1, 2))
    ((a * a).sum() * scale + (b * b).sum() * scale).backward()
    grads = [a.grad.numpy(), b.grad.numpy()]
    norm = np.sqrt(sum((g**2).sum() for g in grads))
    optim.SGD([a, b]).clip_grad_norm(0.25)
    for p, g in zip((a, b), grads, strict=True):
        np.testing.assert_allclose(p.grad.numpy(), g * min(1, 0.25 / (norm + 1e-6)), 1e-5)


def test_a_parameter_without_gradient_stays() -> None:
    a, b = (nn.Parameter(ndl.Tensor(array(2, seed=s), dtype="float32")) for s in (1, 2))
    before = b.numpy()
    (a * a).sum().backward()
    optim.Adam([a, b]).step()
    np.testing.assert_array_equal(b.numpy(), before)


class Plain(optim.Optimizer):
    """An optimiser in a user's words."""

    def step(self) -> None:
        for p in self.params:
            p.data = p.data - p.grad.data * 0.1


def model_and_data() -> tuple[Any, Any, Any]:
    np.random.seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    x = ndl.Tensor(array(20, 8), dtype="float32")
    return model, x, ndl.Tensor(np.arange(20) % 3)


@pytest.mark.parametrize("make", [Plain, optim.SGD, optim.Adam])
def test_training_runs_one_program_a_step_and_compiles_no_more(make: Any) -> None:
    model, x, y = model_and_data()
    optimizer = make(model.parameters())

    def step() -> float:
        optimizer.reset_grad()
        loss = nn.SoftmaxLoss()(model(x), y)
        loss.backward()
        optimizer.step()
        return float(loss.numpy().reshape(()))

    losses = [step() for _ in range(3)]
    gc.collect()
    compiled, alive = nir.compile_count(), autograd.TENSOR_COUNTER
    losses += [step() for _ in range(20)]
    gc.collect()
    assert nir.compile_count() == compiled
    assert alive + 5 >= autograd.TENSOR_COUNTER
    assert losses[-1] < losses[0]


@pytest.mark.skipif(not IS_NUMPY, reason="arrays of np change in place")
def test_arrays_that_change_in_place_are_parameters_all_the_same() -> None:
    w = nn.Parameter(ndl.Tensor(array(3), dtype="float32"))
    expected = w.numpy()
    for _ in range(3):
        (w * w).sum().backward()
        w.cached_data -= 0.1 * w.grad.cached_data
        expected = expected - 0.1 * 2 * expected
    np.testing.assert_allclose(w.numpy(), expected, 1e-5)


def test_a_loop_that_never_looks_runs_all_the_same() -> None:
    model, x, y = model_and_data()
    optimizer = optim.SGD(model.parameters(), 0.1)
    first = nn.SoftmaxLoss()(model(x), y).numpy()
    for _ in range(50):
        optimizer.reset_grad()
        nn.SoftmaxLoss()(model(x), y).backward()
        optimizer.step()
        # What a step makes is stored when it ends, so that nothing waits for long.
        assert all(p.ref().data is not None for p in model.parameters())
    assert nn.SoftmaxLoss()(model(x), y).numpy() < first


@pytest.mark.skipif(IS_NUMPY, reason="its gradients are nodes that hold each other, as in Needle")
def test_steps_leave_nothing_for_the_collector() -> None:
    """What a step recorded is freed when its names are gone: memory does not wait for cycles."""
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    opt = ndl.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.01)
    x = ndl.Tensor(np.random.randn(4, 6).astype(np.float32))
    y = ndl.Tensor(np.array([0, 1, 2, 0]))

    def step() -> None:
        opt.reset_grad()
        loss = nn.SoftmaxLoss()(model(x), y)
        loss.backward()
        opt.step()
        loss.numpy()

    def alive() -> int:
        return sum(type(o) in (Call, Ref) for o in gc.get_objects())

    for _ in range(3):
        step()
    gc.collect()
    gc.disable()
    try:
        before = alive()
        for _ in range(5):
            step()
        assert alive() == before
    finally:
        gc.enable()
