"""ResNet-9 in Needle's own words learns real images, and runs without Needle afterwards."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples import needle_resnet9

ARCHIVE = Path(__file__).parents[2] / "shared" / "data" / "cifar10" / "cifar10-jpeg.tar.xz"
CLASSES = ["airplane", "automobile", "bird", "cat", "deer",
           "dog", "frog", "horse", "ship", "truck"]  # fmt: skip
ALONE = """
import sys, numpy as np, nir
x = np.load(sys.argv[2])
np.save(sys.argv[3], np.asarray(nir.load(sys.argv[1])(x)))
print("nir.needle" in sys.modules, "llvmlite" in sys.modules)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every 60th image, in the form of the original distribution."""
    if not ARCHIVE.exists():
        pytest.skip("no CIFAR-10 here")
    found: dict[str, list[tuple[np.ndarray, int]]] = {"train": [], "test": []}
    with tarfile.open(ARCHIVE, "r|xz") as archive:
        files = (m for m in archive if m.isfile())
        for i, member in enumerate(files):
            if i % 60:
                continue
            split, name, _ = member.name.split("/")
            file = archive.extractfile(member)
            assert file is not None
            pixels = np.asarray(Image.open(io.BytesIO(file.read())))
            found[split].append((pixels.transpose(2, 0, 1).reshape(-1), CLASSES.index(name)))
    out = tmp_path_factory.mktemp("cifar-10-batches-py")
    order = np.random.default_rng(0).permutation(len(found["train"]))
    parts = [[found["train"][i] for i in part] for part in np.array_split(order, 5)]
    names = [f"data_batch_{k}" for k in range(1, 6)]
    for name, rows in [*zip(names, parts, strict=True), ("test_batch", found["test"])]:
        images, labels = zip(*rows, strict=True)
        content = {b"data": np.stack(images), b"labels": list(map(int, labels))}
        (out / name).write_bytes(pickle.dumps(content))
    return out


def test_it_learns_and_runs_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(folder), "--epochs", "12", "--batch", "50", "--out", str(tmp_path)]
    accuracy = needle_resnet9.main(arguments)
    lines = capsys.readouterr().out.splitlines()
    losses = [float(line.split()[3]) for line in lines if line.startswith("epoch")]
    assert len(losses) == 12
    assert losses[-1] < 0.7 * losses[0]
    assert accuracy > 0.2  # chance is 0.1
    assert "logits differ from Needle's by at most" in lines[-1]
    assert float(lines[-1].split()[-1]) < 1e-4

    x, y = tmp_path / "x.npy", tmp_path / "y.npy"
    np.save(x, np.random.default_rng(1).random((3, 3, 32, 32), np.float32))
    package = tmp_path / "needle_resnet9.nirp"
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(package), str(x), str(y)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["False", "False"]
    assert np.load(y).shape == (3, 10)
