"""The examples of generative and implicit models, in their short form, on real digits."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nir
from examples import dcgan, deep_equilibrium, diffusion, digits, gan, lora
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


# ---- pictures ------------------------------------------------------------------------------------


def verdicts(
    images: np.ndarray, labels: np.ndarray, samples: np.ndarray
) -> tuple[digits.Verdict, digits.Verdict]:
    """On ``samples`` and on noise whose pixels have the mean and deviation of those of digits."""
    judge = digits.Judge(images, labels, seed=0)
    real = judge(digits.load("test")[0])
    assert real.confidence > 0.95
    assert real.classes == 10
    return judge(samples), judge(digits.noise_like(images[:500], seed=0))


def test_noise_has_the_pixels_statistics_and_is_far_from_digits() -> None:
    pytest.importorskip("sklearn")
    images, _ = digits.load()
    noise = digits.noise_like(images, seed=0)
    # Clipping at -1 and 1 moves both a little.
    np.testing.assert_allclose(noise.mean(0), images.mean(0), atol=0.1)
    np.testing.assert_allclose(noise.std(0), images.std(0), atol=0.2)
    near, far = (digits.distance(x, images) for x in (digits.load("test")[0], noise))
    assert near < far / 2
    assert digits.distance(images[:20], images) < 1e-6


def test_dcgan_draws_digits(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    images, labels = digits.load()
    nir.manual_seed(0)
    gan = dcgan.DCGan()
    untrained = gan.samples(200, seed=0)
    for epoch in range(20):
        gan.epoch(images, [0, epoch])
    assert gan.train_discriminator.compiles == gan.train_generator.compiles == 1
    samples = gan.samples(200, seed=0)
    assert samples.shape == (200, 1, 8, 8)
    assert abs(samples).max() <= 1
    drawn, noise = verdicts(images, labels, samples)
    # Test digits are at 0.175, noise is at 0.378; and not the same few digits over and over.
    assert drawn.distance < 0.8 * noise.distance < 0.8 * digits.distance(untrained, images)
    assert drawn.confidence > noise.confidence
    assert drawn.classes >= 7
    pytest.importorskip("matplotlib")
    digits.save_grid(samples[:20], tmp_path / "grid.png")
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")


def test_diffusion_draws_digits() -> None:
    pytest.importorskip("sklearn")
    images, labels = digits.load()
    nir.manual_seed(0)
    model = diffusion.Diffusion(steps=50)
    losses = [model.epoch(images.reshape(-1, diffusion.PIXELS), [0, e]) for e in range(20)]
    # Noise that is guessed as 0 has a mean square of 1.
    assert losses[-1] < losses[0] / 2 < 0.5
    drawn, noise = verdicts(images, labels, model.samples(200, seed=0))
    assert drawn.distance < 0.8 * noise.distance
    assert drawn.classes >= 7


def test_diffusion_samples_equal_steps_in_numpy() -> None:
    """The compiled scan beside its formulas, one step after the other."""
    nir.manual_seed(0)
    steps, count = 6, 5
    model = diffusion.Diffusion(steps)
    g = nir.Generator(3)
    x = nir.randn(count, diffusion.PIXELS, generator=g).numpy()
    noise = nir.randn(steps, count, diffusion.PIXELS, generator=g).numpy()
    level = diffusion.schedule(steps).astype(np.float64)
    guess = nir.jit(model.model)
    for t in reversed(range(steps)):
        a, before = level[t], level[t - 1] if t else 1.0
        moment = np.full(count, t / steps, np.float32)
        e = np.asarray(guess(x.astype(np.float32), moment))
        image = np.clip((x - np.sqrt(1 - a) * e) / np.sqrt(a), -1, 1)
        keep = a / before  # 1 - beta
        mean = np.sqrt(before) * (1 - keep) * image + np.sqrt(keep) * (1 - before) * x
        x = mean / (1 - a) + np.sqrt((1 - keep) * (1 - before) / (1 - a)) * noise[t]
    samples = model.samples(count, seed=3)
    np.testing.assert_allclose(samples.reshape(count, -1), x, rtol=1e-3, atol=1e-3)


def test_the_program_of_a_sampler_does_not_grow_with_its_steps() -> None:
    def ops_of(steps: int) -> int:
        draw = diffusion.Diffusion(steps).draw
        return len(nir.trace(draw, "f32[4,64]", f"f32[{steps},4,64]", state=[draw]).nodes)

    assert ops_of(10) == ops_of(200)
