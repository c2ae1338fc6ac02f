"""The MNIST and language-model examples: what they compute, and that they learn from real data."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import nir
from examples import language_model, mnist_mlp_resnet
from examples.language_model import MODELS, WRITERS, Size

ROOT = Path(__file__).parent.parent
SHARED = Path(__file__).parents[2] / "shared" / "data"
SYMBOLS, SIZE = 11, Size(16, layers=2, drop=0.3, batch=2, steps=8, rate=1e-2, epochs=1)


def shared(name: str) -> str:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return str(path)


def arguments(unit: str) -> list[str]:
    source = {"words": ("--data", "ptb"), "characters": ("--text", "tinyshakespeare/input.txt")}
    flag, name = source[unit]
    return [flag, shared(name), "--short"]


def make(kind: str) -> nir.nn.Module:
    nir.manual_seed(0)
    return MODELS[kind](SYMBOLS, SIZE)


def tokens(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, SYMBOLS, shape)


# ---- MNIST ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", mnist_mlp_resnet.NORMS)
def test_mlp_resnet_learns_mnist(norm: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shared("mnist")
    history = mnist_mlp_resnet.main(["--data", folder, "--norm", norm, "--epochs", "2"])
    assert len(history) == 2
    assert history[-1].train_loss < history[0].train_loss / 2
    assert history[-1].test_error < 0.1  # guessing errs in 0.9
    text = capsys.readouterr().out
    assert "8,000 images to train on, 2,000 to test" in text
    assert f"epoch  2/2  train loss {history[-1].train_loss:.4f}" in text


# ---- the language models -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rnn", "lstm"])
def test_a_carried_state_stands_for_the_text_before(kind: str) -> None:
    model, x = make(kind).eval(), nir.tensor(tokens(7, 2))
    whole, end = model(x, model.start(2))
    first, state = model(x[:3], model.start(2))
    rest, after = model(x[3:], state)
    np.testing.assert_allclose(nir.cat([first, rest]).numpy(), whole.numpy(), atol=1e-5)
    for a, b in zip(after, end, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", ["rnn", "lstm"])
def test_training_carries_the_state_from_segment_to_segment(kind: str) -> None:
    """At rate 0 the losses of short segments are those of one long segment."""
    losses = []
    for steps in (5, 19):
        size = replace(SIZE, drop=0.0, rate=0.0, steps=steps)
        nir.manual_seed(0)
        model = MODELS[kind](SYMBOLS, size)
        batches = nir.data.SequenceBatches(tokens(40), size.batch, size.steps)
        (epoch,) = language_model.train(model, batches, batches, size)
        losses += [epoch.train_loss, epoch.test_loss]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)


def test_a_transformer_sees_nothing_that_comes_later() -> None:
    model, x = make("transformer").eval(), tokens(8, 2)
    other = x.copy()
    other[5:] = (other[5:] + 1) % SYMBOLS
    (a, _), (b, _) = (model(nir.tensor(t), ()) for t in (x, other))
    np.testing.assert_array_equal(a[:5].numpy(), b[:5].numpy())
    assert not np.allclose(a[5:].numpy(), b[5:].numpy())


@pytest.mark.parametrize("kind", MODELS)
def test_the_coldest_text_is_the_likeliest_symbol_after_all_before(kind: str) -> None:
    model, prompt = make(kind).eval(), tokens(3)
    written = WRITERS[kind](model, prompt, 12, 1e-6)
    text = [*prompt, *written]
    for i in range(len(prompt), len(text)):
        seen = text[:i] if kind != "transformer" else text[:i][-SIZE.steps :]
        logits, _ = model(nir.tensor(np.array(seen)[:, None]), model.start(1))
        assert logits[-1, 0].argmax(0).item() == text[i]


@pytest.mark.parametrize("kind", MODELS)
def test_a_seed_decides_what_is_written(kind: str) -> None:
    model = make(kind).eval()

    def write(seed: int) -> list[int]:
        nir.manual_seed(seed)
        return WRITERS[kind](model, tokens(3), 30, 1.0)

    first = write(1)
    assert write(1) == first
    assert write(2) != first
    assert all(0 <= symbol < SYMBOLS for symbol in first)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_symbols_are_drawn_by_their_probabilities(temperature: float) -> None:
    nir.manual_seed(0)
    logits, count = np.array([0.0, 1.0, -1.0, 0.5], np.float32), 3000
    draw = nir.jit(language_model.draw)
    drawn = [draw(logits, np.float32(temperature)).item() for _ in range(count)]
    expected = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
    # Four standard deviations of the share of the likeliest case, a half.
    np.testing.assert_allclose(np.bincount(drawn) / count, expected, atol=4 * 0.5 / count**0.5)


# ---- on real text --------------------------------------------------------------------------------


def unigram_loss(train: np.ndarray, test: np.ndarray, symbols: int) -> float:
    """The mean loss on ``test`` of a model that knows how often each symbol is in ``train``."""
    counts = np.bincount(train, minlength=symbols) + 1
    return float(-np.log(counts / counts.sum())[test].mean())


@pytest.mark.parametrize(
    ("unit", "kind", "gain"),
    [("words", "lstm", 0.3), ("words", "transformer", 0.2)]
    + [("characters", kind, 0.7) for kind in MODELS],
)
def test_models_learn_more_than_frequencies(
    unit: str, kind: str, gain: float, capsys: pytest.CaptureFixture[str]
) -> None:
    options = arguments(unit)
    load: Callable[[str], language_model.Text] = getattr(language_model, f"load_{unit}")
    history, shown = language_model.main([*options, "--model", kind])
    text, size = load(options[1]), language_model.SHORT[unit]
    train, test = text.train[-size.symbols :], text.test[: size.symbols // 4]
    symbols = len(text.vocabulary)
    assert history[-1].test_loss < unigram_loss(train, test, symbols) - gain
    if unit == "words":  # in the second epoch, below what frequencies alone can reach on that text
        assert history[-1].train_loss < unigram_loss(train, train, symbols)
    out = capsys.readouterr().out
    assert f"test perplexity {np.exp(history[-1].test_loss):.2f}" in out and shown in out
    length = len(shown.split()) if unit == "words" else len(shown)
    assert length > 50 and len(set(shown.split())) > 10


def test_the_command_is_reproducible() -> None:
    options = [*arguments("characters"), "--model", "rnn", "--seed", "3", "--prompt", "KING"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("NIR_")}

    def run() -> str:
        done = subprocess.run(
            [sys.executable, "-m", "examples.language_model", *options, "--length", "100"],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=environment,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return re.sub(r"  [\d.]+ s  .*", "", done.stdout)  # times and rates

    first = run()
    assert run() == first
    assert "train perplexity" in first
    assert len(first[first.index("KING") :].rstrip("\n")) <= 4 + 100
