"""The safetensors format, and checkpoints from which training goes on bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import nir
from nir import nn
from nir.errors import NirError
from nir.frontend import safetensors
from nir.nn import functional as F

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b.c": np.array([True, False]),
    "scalar": np.array(3, np.int64),
    "empty": np.zeros((0, 4), np.float64),
    "half": np.array([1.5, -2], np.float16),
    "brain": np.array([1.5, -2], ml_dtypes.bfloat16),
    "byte": np.array([255], np.uint8),
}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape
        assert a[name].tobytes() == b[name].tobytes()


def test_round_trip(tmp_path: Path) -> None:
    safetensors.save_file(ARRAYS, tmp_path / "x", {"k": "v"})
    arrays, metadata = safetensors.load_file(tmp_path / "x")
    same(arrays, ARRAYS)
    assert metadata == {"k": "v"}
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_other_implementation_reads_and_writes_the_same(tmp_path: Path) -> None:
    theirs = pytest.importorskip("safetensors.numpy")
    plain = {k: v for k, v in ARRAYS.items() if k != "brain"}
    safetensors.save_file(plain, tmp_path / "ours")
    same(theirs.load_file(tmp_path / "ours"), plain)
    theirs.save_file(plain, tmp_path / "theirs")
    same(safetensors.load_file(tmp_path / "theirs")[0], plain)


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "x"
    safetensors.save_file(ARRAYS, path, {"k": "v"})
    good = path.read_bytes()
    size = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + size])
    bad = [b"", good[:7], good[:-1], good[: 8 + size // 2], b"\xff" * 64, b"\2" + bytes(7) + b"[]"]
    for change in (
        {"shape": [2, 4]},
        {"shape": [-2, -3]},
        {"shape": "no"},
        {"dtype": "F31"},
        {"data_offsets": [-8, 16]},
        {"data_offsets": [0, 1 << 40]},
        {"data_offsets": 3},
    ):
        text = json.dumps({**header, "a": {**header["a"], **change}}).encode()
        bad.append(len(text).to_bytes(8, "little") + text + good[8 + size :])
    for content in bad:
        path.write_bytes(content)
        with pytest.raises(NirError, match="safetensors"):
            safetensors.load_file(path)


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    safetensors.save_file(ARRAYS, path)
    before = path.read_bytes()

    def full_disk(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(safetensors.os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        safetensors.save_file({"a": np.zeros(9)}, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


class Run:
    """A small training run with everything that a checkpoint must hold."""

    def __init__(self, seed: int) -> None:
        nir.manual_seed(seed)
        self.generator = nir.Generator(seed)
        self.model = nn.Sequential(
            nn.Linear(6, 8),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.Dropout(0.3, self.generator),
            nn.Linear(8, 3),
        )
        self.optimizer = nir.optim.Adam(self.model.parameters(), lr=0.01, weight_decay=1e-3)
        self.schedule = nir.optim.StepLR(self.optimizer, 2, 0.5)
        rng = np.random.default_rng(0)
        xs, ys = rng.standard_normal((20, 6)).astype(np.float32), rng.integers(0, 3, 20)
        self.loader = nir.data.DataLoader(
            nir.data.TensorDataset(xs, ys), 8, shuffle=True, seed=seed
        )

        @nir.jit(state=[self.model, self.optimizer, self.generator])
        def step(x: nir.Tensor, y: nir.Tensor) -> nir.Tensor:
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(x), y)
            loss.backward()
            self.optimizer.step()
            return loss.detach()

        self.step = step

    @property
    def parts(self) -> dict[str, object]:
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "loader": self.loader,
            "generator": self.generator,
        }

    def train(self) -> Iterator[float]:
        while True:
            for x, y in self.loader:
                yield self.step(x, y).item()
            self.schedule.step()


def test_training_resumes_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    run = Run(seed=1)
    losses = run.train()
    list(islice(losses, 5))  # an epoch of three batches, and two of the next
    nir.save_checkpoint(path, **run.parts)
    expected = list(islice(losses, 7))

    resumed = Run(seed=2)
    list(islice(resumed.train(), 2))  # leaves traces that loading must remove
    nir.load_checkpoint(path, **resumed.parts)
    assert list(islice(resumed.train(), 7)) == expected
    assert run.schedule.last_epoch == resumed.schedule.last_epoch == 3
    for name, value in run.model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), resumed.model.state_dict()[name].numpy())


def test_checkpoint_refuses_other_objects(tmp_path: Path) -> None:
    path = tmp_path / "x"
    model = nn.Linear(2, 2)
    nir.save_checkpoint(path, model=model)
    with pytest.raises(NirError, match=r"holds \['model'\], asked for \['net'\]"):
        nir.load_checkpoint(path, net=model)
    with pytest.raises(NirError, match="state_dict and load_state_dict, got int"):
        nir.save_checkpoint(path, model=3)
    safetensors.save_file({}, path)
    with pytest.raises(NirError, match="expected a 'nir checkpoint 1'"):
        nir.load_checkpoint(path, model=model)
