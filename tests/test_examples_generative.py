"""The examples of generative and implicit models, in their short form, on real digits."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nir
from examples import deep_equilibrium, digits, gan, lora
from nir.ir.interp import run

ROOT = Path(__file__).parent.parent


def output_of(name: str, *options: str) -> str:
    """What `python -m examples.NAME` prints."""
    done = subprocess.run(
        [sys.executable, "-m", f"examples.{name}", *options],
        capture_output=True, text=True, cwd=ROOT, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def noise_like(images: np.ndarray, seed: int = 0) -> np.ndarray:
    """Noise with the mean and the deviation of ``images``, within their range."""
    rng = np.random.default_rng(seed)
    noise = images.mean() + images.std() * rng.standard_normal(images.shape)
    return np.clip(noise, -1, 1).astype(np.float32)


# ---- the Gaussian in the plane -------------------------------------------------------------------


def test_gan_learns_covariance_and_mean() -> None:
    """Within 0.5 and 0.15: the noise of batches of 32 keeps both moving at the end."""
    nir.manual_seed(0)
    model = gan.Gan()
    start, _ = model.learned()
    assert abs(start - gan.COVARIANCE).max() > 2
    model.train(2000)
    covariance, mean = model.learned()
    np.testing.assert_allclose(covariance, gan.COVARIANCE, atol=0.5)
    np.testing.assert_allclose(mean, gan.MEAN, atol=0.15)
    assert model.train_discriminator.compiles == model.train_generator.compiles == 1


def test_gan_steps_touch_their_own_model_only() -> None:
    nir.manual_seed(1)
    model = gan.Gan()
    sides = (
        (model.train_discriminator, model.discriminator, model.generator),
        (model.train_generator, model.generator, model.discriminator),
    )
    for step, own, other in sides:
        before = [[p.numpy().copy() for p in m.parameters()] for m in (own, other)]
        step()
        after = [[p.numpy() for p in m.parameters()] for m in (own, other)]
        assert all((a != b).any() for a, b in zip(before[0], after[0], strict=True))
        assert all((a == b).all() for a, b in zip(before[1], after[1], strict=True))


# ---- low-rank adaptation -------------------------------------------------------------------------


def test_lora_adapts_and_merges() -> None:
    pytest.importorskip("sklearn")
    r = lora.run(epochs=10, rank=4, seed=0)
    assert (r.parameters, r.trained) == (8970, 4 * (64 + 64 + 64 + 64 + 64 + 10))
    assert r.own_task > 0.9
    assert r.before < 0.2
    assert r.after > 0.85
    assert r.merged == r.after
    assert r.difference < 1e-4


def test_lora_leaves_frozen_weights_as_they_are() -> None:
    pytest.importorskip("sklearn")
    images, labels = digits.load()
    nir.manual_seed(0)
    base = digits.classifier()
    state = {name: t.numpy().copy() for name, t in base.state_dict().items()}
    before = digits.logits(base, images)
    model = lora.adapted(base, rank=2)
    np.testing.assert_array_equal(digits.logits(model, images), before)  # B is 0 at first
    digits.fit(model, images, labels, epochs=1, lr=1e-2, seed=0)
    for name, tensor in base.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), state[name])
    assert (digits.logits(model, images) != before).any()


# ---- the deep equilibrium ------------------------------------------------------------------------


def equilibrium_arguments() -> tuple[np.ndarray, ...]:
    """W, a contraction by its rows; u; and a direction to look at z from: all f64."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((6, 6))
    return (
        0.7 * w / abs(w).sum(1, keepdims=True),
        rng.standard_normal((4, 6)),
        rng.standard_normal((4, 6)),
    )


def test_implicit_gradient_equals_unrolled() -> None:
    """In f64: 100 steps leave 0.7^100 = 3e-16 of the start."""
    w, u, seen = map(nir.tensor, equilibrium_arguments())
    assert w.dtype == nir.float64
    solve = deep_equilibrium.equilibrium(tolerance=1e-14)

    def implicit(w: nir.Tensor, u: nir.Tensor) -> nir.Tensor:
        return (solve(w, u)[0] * seen).sum()

    def unrolled(w: nir.Tensor, u: nir.Tensor) -> nir.Tensor:
        z = nir.zeros_like(u)
        for _ in range(100):
            z = deep_equilibrium.f(z, w, u)
        return (z * seen).sum()

    pairs = [nir.value_and_grad(fn, (0, 1))(w, u) for fn in (implicit, unrolled)]
    (value, grads), (true_value, true_grads) = pairs
    np.testing.assert_allclose(value.numpy(), true_value.numpy(), rtol=1e-12)
    for got, true in zip(grads, true_grads, strict=True):
        assert abs(true.numpy()).max() > 0.1
        np.testing.assert_allclose(got.numpy(), true.numpy(), rtol=1e-10, atol=1e-12)


def test_implicit_gradient_equals_the_interpreters() -> None:
    """The compiled loops and the reference interpreter's, in f64."""
    w, u, seen = equilibrium_arguments()
    solve = deep_equilibrium.equilibrium(tolerance=1e-12)

    def loss(w: nir.Tensor, u: nir.Tensor, seen: nir.Tensor) -> nir.Tensor:
        return (solve(w, u)[0] * seen).sum()

    gradient = nir.grad(loss, (0, 1))
    graph = nir.trace(gradient, "f64[6,6]", "f64[4,6]", "f64[4,6]")
    compiled = nir.jit(gradient)(w, u, seen)
    for got, true in zip(compiled, run(graph, [w, u, seen]), strict=True):
        np.testing.assert_allclose(got.numpy(), true, rtol=1e-10)


def test_equilibrium_is_a_fixed_point() -> None:
    w, u, _ = map(nir.tensor, equilibrium_arguments())
    z, steps = deep_equilibrium.equilibrium(tolerance=1e-9)(w, u)
    np.testing.assert_allclose(deep_equilibrium.f(z, w, u).numpy(), z.numpy(), atol=1e-9)
    assert 5 < steps.item() < deep_equilibrium.MAX_STEPS


def test_deep_equilibrium_learns_digits() -> None:
    pytest.importorskip("sklearn")
    text = output_of("deep_equilibrium", "--epochs", "4")
    lines = re.findall(r"loss (\S+)  test accuracy (\S+)  (\S+) steps", text)
    losses, accuracies, steps = zip(*[map(float, line) for line in lines], strict=True)
    assert len(losses) == 4
    assert losses[-1] < losses[0] / 4
    assert accuracies[-1] > 0.9
    assert 3 < steps[-1] < deep_equilibrium.MAX_STEPS
