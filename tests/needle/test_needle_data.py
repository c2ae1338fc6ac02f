"""Data sets, loaders, transforms, and the real data where it is there."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nir.needle as ndl
from nir.needle import data

SHARED = Path(__file__).parents[3] / "shared" / "data"


def shared(name: str) -> Path:
    if not (SHARED / name).is_dir():
        pytest.skip(f"{name} is not there")
    return SHARED / name


def counting(n: int = 10) -> data.NDArrayDataset:
    return data.NDArrayDataset(np.arange(n), np.arange(n) * 2)


def batches(loader: Any) -> list[list[float]]:
    return [x.numpy().tolist() for x, _ in loader]


def test_loader_keeps_the_partial_batch_and_starts_anew() -> None:
    loader = data.DataLoader(counting(), 4)
    expected = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert batches(loader) == expected and batches(loader) == expected
    assert [o.tolist() for o in loader.ordering] == expected
    x, y = next(iter(loader))
    assert isinstance(x, ndl.Tensor) and y.numpy().tolist() == [0, 2, 4, 6]


def test_loader_shuffles_by_one_draw() -> None:
    loader = data.DataLoader(counting(), 4, shuffle=True)
    np.random.seed(3)
    found = batches(loader)
    np.random.seed(3)
    order = np.random.permutation(10)
    assert found == [order[:4].tolist(), order[4:8].tolist(), order[8:].tolist()]
    assert batches(loader) != found


def test_loader_takes_a_device() -> None:
    x, _ = next(iter(data.DataLoader(counting(), 4, device=ndl.cpu(), dtype="float32")))
    assert x.device == ndl.cpu() and str(x.dtype) == "float32"


def test_transforms_apply_in_order() -> None:
    class Set(data.Dataset):
        def __getitem__(self, index: Any) -> Any:
            return self.apply_transforms(index)

    assert Set([lambda x: x + 1, lambda x: x * 10])[2] == 30
    assert Set()[2] == 2


def test_random_flip() -> None:
    image = np.arange(12.0).reshape(2, 3, 2)
    np.testing.assert_array_equal(data.RandomFlipHorizontal(1.0)(image), image[:, ::-1])
    np.testing.assert_array_equal(data.RandomFlipHorizontal(0.0)(image), image)


def test_random_crop_shifts_with_zeros() -> None:
    image = np.arange(1.0, 33.0).reshape(4, 4, 2)
    for seed in range(8):
        np.random.seed(seed)
        out = data.RandomCrop(3)(image)
        np.random.seed(seed)
        down, right = np.random.randint(-3, 4, size=2)
        expected = np.zeros_like(image)
        for i in range(4):
            for j in range(4):
                if 0 <= i + down < 4 and 0 <= j + right < 4:
                    expected[i, j] = image[i + down, j + right]
        np.testing.assert_array_equal(out, expected)


def write_mnist(folder: Path, images: np.ndarray, labels: np.ndarray) -> tuple[str, str]:
    head = struct.pack(">IIII", 0x803, *images.shape)
    names = str(folder / "images.gz"), str(folder / "labels.gz")
    Path(names[0]).write_bytes(gzip.compress(head + images.tobytes()))
    Path(names[1]).write_bytes(
        gzip.compress(struct.pack(">II", 0x801, len(labels)) + labels.tobytes())
    )
    return names


def test_mnist_files(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)
    labels = np.arange(5, dtype=np.uint8)
    names = write_mnist(tmp_path, images, labels)
    plain = data.MNISTDataset(*names)
    x, y = plain[2]
    assert len(plain) == 5 and x.shape == (784,) and x.dtype == np.float32 and y == 2
    np.testing.assert_allclose(x, images[2].reshape(-1) / 255, 1e-6)
    assert plain[1:4][0].shape == (3, 784) and plain[np.array([4, 0])][1].tolist() == [4, 0]
    changed = data.MNISTDataset(*names, transforms=[data.RandomFlipHorizontal(1.0)])
    assert changed[0][0].shape == (28, 28, 1)
    flipped = changed[np.array([0, 1])][0]
    np.testing.assert_allclose(flipped[1, :, :, 0], images[1, :, ::-1] / 255, 1e-6)


def test_cifar_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        pixels, labels = rng.integers(0, 256, (4, 3072), np.uint8), [3, 1, 2, 0]
        (tmp_path / name).write_bytes(pickle.dumps({b"data": pixels, b"labels": labels}))
    train = data.CIFAR10Dataset(str(tmp_path), train=True)
    test = data.CIFAR10Dataset(str(tmp_path), train=False)
    assert len(train) == 20 and len(test) == 4
    assert test.X.shape == (4, 3, 32, 32) and test.X.max() <= 1
    np.testing.assert_allclose(test.X[0].reshape(-1), pixels[0] / 255, 1e-6)
    x, y = test[1]
    assert x.shape == (3, 32, 32) and y == 1 and test[np.array([0, 2])][0].shape == (2, 3, 32, 32)
    flipped = data.CIFAR10Dataset(str(tmp_path), False, transforms=[data.RandomFlipHorizontal(1.0)])
    np.testing.assert_array_equal(flipped[1][0], x[:, :, ::-1])


def test_words_and_batches(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a b a\nc b\n", encoding="utf-8")
    (tmp_path / "test.txt").write_text("d a\n", encoding="utf-8")
    corpus = data.Corpus(str(tmp_path))
    assert corpus.dictionary.idx2word == ["a", "b", "<eos>", "c", "d"]
    assert corpus.train == [0, 1, 0, 2, 3, 1, 2] and corpus.test == [4, 0, 2]
    assert data.Corpus(str(tmp_path), max_lines=1).train == [0, 1, 0, 2]
    assert len(corpus.dictionary) == 5 and corpus.dictionary.add_word("b") == 1
    columns = data.batchify(list(range(11)), 2, device=None, dtype="float32")
    np.testing.assert_array_equal(columns, [[0, 5], [1, 6], [2, 7], [3, 8], [4, 9]])
    x, y = data.get_batch(columns, 1, 2)
    np.testing.assert_array_equal(x.numpy(), [[1, 6], [2, 7]])
    np.testing.assert_array_equal(y.numpy(), [2, 7, 3, 8])
    x, y = data.get_batch(columns, 3, 40)
    assert x.shape == (1, 2) and y.numpy().tolist() == [4, 9]


def test_the_treebank(tmp_path: Path) -> None:
    folder = shared("ptb")
    (tmp_path / "train.txt").symlink_to(folder / "valid.txt")
    (tmp_path / "test.txt").symlink_to(folder / "test.txt")
    corpus = data.Corpus(str(tmp_path))
    assert len(corpus.train) == 70390 + 3370 and len(corpus.test) == 78669 + 3761
    assert corpus.dictionary.idx2word[corpus.train[0]] == "consumers"
