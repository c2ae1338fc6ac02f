"""The demonstration end to end, and its training beside PyTorch's, loss by loss."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nir
from examples.resnet9 import ResNet9
from nir import data
from nir.nn import functional as F
from tests.peers import torch_or_skip

ROOT = Path(__file__).parent.parent
STEPS, BATCH = 50, 128


def test_parameter_count() -> None:
    assert sum(int(np.prod(p.shape)) for p in ResNet9().parameters()) == 431_946


def run_demo(out: Path, *arguments: str) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("NIR_")}
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo", "--out", str(out), *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_demo(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    text = run_demo(tmp_path, "--epochs", "3", "--seed", "1")
    assert "431,946 parameters, on digits: 1,438 + 359 images" in text
    assert "for 1 training and 1 evaluation program" in text
    history = json.loads((tmp_path / "history.json").read_text())
    assert len(history) == 3
    assert history[-1]["loss"] < history[0]["loss"] / 3
    assert history[-1]["test_accuracy"] > 0.9
    # The other process sees the same images through the package alone.
    shown = re.search(r"from the package .* accuracy (\d\.\d+)", text)
    assert shown is not None
    assert float(shown.group(1)) == pytest.approx(history[-1]["test_accuracy"], abs=0.005)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "ir").rglob("*.nir"))


def test_training_is_reproducible(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    losses = []
    for name in ("a", "b"):
        run_demo(tmp_path / name, "--epochs", "1", "--seed", "3")
        history = json.loads((tmp_path / name / "history.json").read_text())
        losses.append([epoch["loss"] for epoch in history])
    assert losses[0] == losses[1]


def nir_losses(weights: dict[str, np.ndarray], batches: list[Any]) -> list[float]:
    model = ResNet9()
    model.load_state_dict(weights)
    optimizer = nir.optim.Adam(model.parameters(), lr=5e-4, weight_decay=1e-3)

    @nir.jit(state=[model, optimizer], specs=("f32[B,3,32,32]", "i64[B]"))
    def step(x: nir.Tensor, y: nir.Tensor) -> nir.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return [step(x, y).item() for x, y in batches]


def torch_losses(weights: dict[str, np.ndarray], batches: list[Any]) -> list[float]:
    torch = torch_or_skip()
    from benchmarks import torch_twins

    model = torch_twins.load(torch_twins.ResNet9(), weights)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4, weight_decay=1e-3)
    losses = []
    for x, y in batches:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def compare_losses(images: np.ndarray, labels: np.ndarray) -> None:
    torch_or_skip()
    nir.manual_seed(0)
    weights = {name: t.numpy().copy() for name, t in ResNet9().state_dict().items()}
    loader = data.DataLoader(
        data.TensorDataset(images, labels, transform=data.ToFloat()), BATCH, shuffle=True
    )
    batches: list[Any] = []
    while len(batches) < STEPS:
        batches += loader.arrays()
    ours, theirs = nir_losses(weights, batches[:STEPS]), torch_losses(weights, batches[:STEPS])
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)
    assert ours[-1] < ours[0] / 1.2


def test_losses_equal_torch_on_digits() -> None:
    pytest.importorskip("sklearn")
    compare_losses(*data.digits("train"))


@pytest.mark.slow
def test_losses_equal_torch_on_cifar10() -> None:
    folder = os.environ.get("NIR_CIFAR10")
    if not folder:
        pytest.skip("NIR_CIFAR10 names no cifar-10-batches-py folder")
    compare_losses(*data.cifar10(folder))
