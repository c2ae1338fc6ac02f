"""Data sets, loaders, transforms and readers."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from nir import data
from nir.errors import NirError, ShapeError


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def write_idx(path: Path, array: np.ndarray, code: int) -> None:
    header = struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape)
    raw = header + array.astype(array.dtype.newbyteorder(">")).tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


# ---- loader --------------------------------------------------------------------------------------


def counting_set(count: int = 10) -> data.TensorDataset:
    return data.TensorDataset(np.arange(count), np.arange(count) * 2)


def rows(loader: data.DataLoader) -> list[list[int]]:
    return [x.tolist() for x, _ in loader.arrays()]


def test_loader_in_order_with_partial_batch() -> None:
    loader = data.DataLoader(counting_set(), 4)
    assert rows(loader) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(loader) == 3
    loader = data.DataLoader(counting_set(), 4, drop_last=True)
    assert rows(loader) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert len(loader) == 2


def test_loader_gives_tensors() -> None:
    x, y = next(iter(data.DataLoader(counting_set(), 4)))
    assert x.numpy().tolist() == [0, 1, 2, 3]
    assert y.numpy().tolist() == [0, 2, 4, 6]


def test_loader_shuffles_by_seed_and_epoch() -> None:
    loader = data.DataLoader(counting_set(100), 100, shuffle=True, seed=3)
    first, second = rows(loader)[0], rows(loader)[0]
    assert sorted(first) == sorted(second) == list(range(100))
    assert first != second
    again = data.DataLoader(counting_set(100), 100, shuffle=True, seed=3)
    assert [rows(again)[0], rows(again)[0]] == [first, second]
    other = data.DataLoader(counting_set(100), 100, shuffle=True, seed=4)
    assert rows(other)[0] != first


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_loader_resumes_at_the_next_batch(stop: int) -> None:
    images = rng().integers(0, 255, (12, 1, 6, 6)).astype(np.uint8)
    augment = data.Compose(data.ToFloat(), data.RandomCrop(6, 2), data.RandomHorizontalFlip())

    def make() -> data.DataLoader:
        return data.DataLoader(
            data.TensorDataset(images, transform=augment), 4, shuffle=True, seed=1
        )

    loader = make()
    expected = [x for _ in range(2) for (x,) in loader.arrays()]
    loader = make()
    batches = loader.arrays()
    got = [next(batches)[0] for _ in range(stop)]
    resumed = make()
    resumed.load_state_dict(loader.state_dict())
    got += [x for (x,) in resumed.arrays()]
    if stop < 3:  # stop 3 had finished the first epoch: the next one is the second
        got += [x for (x,) in resumed.arrays()]
    assert len(got) == 6
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_loader_refuses() -> None:
    with pytest.raises(NirError, match="batch_size of at least 1, got 0"):
        data.DataLoader(counting_set(), 0)
    with pytest.raises(NirError, match="expected the keys"):
        data.DataLoader(counting_set()).load_state_dict({"seed": 1})


def test_plain_dataset_is_stacked() -> None:
    class Squares(data.Dataset):
        def __len__(self) -> int:
            return 5

        def __getitem__(self, index: int) -> tuple[float, np.ndarray]:
            return float(index), np.full(3, index * index)

    batches = list(data.DataLoader(Squares(), 3).arrays())
    assert batches[0][0].tolist() == [0, 1, 2]
    assert batches[1][1].tolist() == [[9] * 3, [16] * 3]


def test_tensor_dataset_refuses_unequal_lengths() -> None:
    with pytest.raises(ShapeError, match=r"one length, got \[3, 4\]"):
        data.TensorDataset(np.zeros(3), np.zeros(4))


# ---- transforms ----------------------------------------------------------------------------------


def test_normalize() -> None:
    x = rng().random((5, 2, 3, 3), np.float32)
    y = data.Normalize([0.5, 1.0], [2.0, 4.0])(x, rng())
    np.testing.assert_allclose(y[:, 1], (x[:, 1] - 1) / 4, rtol=1e-6)
    assert y.dtype == np.float32
    with pytest.raises(ShapeError, match="expected 2 channels, got 3"):
        data.Normalize([0.5, 1.0], [2.0, 4.0])(np.zeros((1, 3, 2, 2)), rng())


def test_flip_mirrors_whole_images() -> None:
    x = rng().random((64, 1, 2, 3), np.float32)
    y = data.RandomHorizontalFlip(0.5)(x, rng())
    mirrored = (y == x[..., ::-1]).all((1, 2, 3))
    kept = (y == x).all((1, 2, 3))
    assert (mirrored ^ kept).all() and 10 < mirrored.sum() < 54


def test_crop_takes_windows_of_the_padded_image() -> None:
    x = np.arange(1, 17, dtype=np.float32).reshape(1, 1, 4, 4).repeat(50, 0)
    y = data.RandomCrop(4, padding=1)(x, rng())
    padded = np.pad(x[0, 0], 1)
    windows = {padded[i : i + 4, j : j + 4].tobytes() for i in range(3) for j in range(3)}
    assert {np.ascontiguousarray(image[0]).tobytes() for image in y} == windows
    with pytest.raises(ShapeError, match="at least 7x7"):
        data.RandomCrop(7, padding=1)(x, rng())


# ---- readers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist(tmp_path: Path, suffix: str) -> None:
    images = rng().integers(0, 255, (7, 28, 28)).astype(np.uint8)
    labels = rng().integers(0, 10, 7).astype(np.uint8)
    write_idx(tmp_path / f"train-images-idx3-ubyte{suffix}", images, 0x08)
    write_idx(tmp_path / f"train-labels-idx1-ubyte{suffix}", labels, 0x08)
    x, y = data.mnist(tmp_path)
    np.testing.assert_array_equal(x[:, 0], images)
    np.testing.assert_array_equal(y, labels)
    assert y.dtype == np.int64
    with pytest.raises(NirError, match="expected a file t10k-images-idx3-ubyte"):
        data.mnist(tmp_path, "test")


def test_idx_dtypes(tmp_path: Path) -> None:
    for code, dtype in ((0x0B, np.int16), (0x0D, np.float32), (0x0E, np.float64)):
        array = (rng().random((2, 3)) * 100).astype(dtype)
        write_idx(tmp_path / "a", array, code)
        np.testing.assert_array_equal(data.read_idx(tmp_path / "a"), array)


def test_damaged_idx(tmp_path: Path) -> None:
    good = struct.pack(">HBB1I", 0, 8, 1, 5) + bytes(5)
    path = tmp_path / "a"
    for bad in (good[:-1], good + b"x", b"", b"PK\3\4", good[:6]):
        path.write_bytes(bad)
        with pytest.raises(NirError, match="expected"):
            data.read_idx(path)
    (tmp_path / "b.gz").write_bytes(good)
    with pytest.raises(NirError, match="gzip"):
        data.read_idx(tmp_path / "b.gz")


def write_cifar(folder: Path, name: str, content: object) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(pickle.dumps(content))


def test_cifar10(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    pixels = rng().integers(0, 255, (10, 3072)).astype(np.uint8)
    for i in range(5):
        batch = {b"data": pixels[2 * i : 2 * i + 2], b"labels": [i, i + 1]}
        write_cifar(folder, f"data_batch_{i + 1}", batch)
    for given in (tmp_path, folder):
        x, y = data.cifar10(given)
        np.testing.assert_array_equal(x.reshape(10, 3072), pixels)
        assert y.tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code that a data file must not run",)


@pytest.mark.parametrize(
    "content",
    [
        {b"data": np.zeros((2, 3072), np.uint8)},
        {b"data": np.zeros((2, 3071), np.uint8), b"labels": [0, 1]},
        {b"data": Evil(), b"labels": [0, 1]},
        [1, 2],
    ],
)
def test_foreign_cifar10(
    tmp_path: Path, content: object, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cifar(tmp_path, "test_batch", content)
    with pytest.raises(NirError, match="expected"):
        data.cifar10(tmp_path, "test")
    assert capsys.readouterr().out == ""


def test_digits_are_enlarged() -> None:
    pytest.importorskip("sklearn")
    x, y = data.digits("train")
    xt, yt = data.digits("test")
    assert x.shape == (1438, 3, 32, 32) and xt.shape == (359, 3, 32, 32) and x.dtype == np.uint8
    assert len(y) == 1438 and set(yt.tolist()) == set(range(10))
    from sklearn.datasets import load_digits

    small = load_digits().images[4]  # the first test image
    # Away from the border, the mean of an enlarged 4x4 block weighs its neighbours evenly.
    blocks = xt[0, 0].astype(float).reshape(8, 4, 8, 4).mean((1, 3)) * 16 / 255
    assert np.corrcoef(blocks.ravel(), small.ravel())[0, 1] > 0.97
