"""Readers of data sets in their published file formats; nothing is downloaded."""

from __future__ import annotations

import gzip
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nir.errors import NirError

Split = Literal["train", "test"]

_MNIST_FILES = {"train": "train", "test": "t10k"}
# The code in the third byte of an IDX file; all types are big-endian.
_IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
# All that a pickled CIFAR-10 batch refers to. A pickle is a program, so nothing else may be named.
_PICKLE_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


def read_file(path: str | Path) -> bytes:
    """The bytes of a file, unpacked if its name ends in .gz. NirError if it cannot be read."""
    path = Path(path)
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise NirError(f"{path}: expected a gzip file: {error}") from None
    except OSError as error:
        raise NirError(f"{path}: expected a file: {error.strerror}") from None


def read_idx(path: str | Path) -> np.ndarray:
    """The array in an IDX file, gzipped or not. Raises NirError if the file is not one."""
    data = read_file(path)
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _IDX_DTYPES:
        raise NirError(f"{path}: expected an IDX file, got one that starts with {data[:4]!r}")
    ndim = data[3]
    start = 4 + 4 * ndim
    if len(data) < start:
        raise NirError(f"{path}: expected {ndim} sizes after the IDX header, got {len(data)} bytes")
    shape = struct.unpack(f">{ndim}I", data[4:start])
    dtype = np.dtype(_IDX_DTYPES[data[2]])
    expected = start + int(np.prod(shape, dtype=object)) * dtype.itemsize
    if len(data) != expected:
        raise NirError(f"{path}: expected {expected} bytes for shape {shape}, got {len(data)}")
    array = np.frombuffer(data, dtype, offset=start).reshape(shape)
    return array.astype(dtype.newbyteorder("="))


def mnist(folder: str | Path, split: Split = "train") -> tuple[np.ndarray, np.ndarray]:
    """MNIST (or a set in its form) from ``folder``: images u8[N,1,28,28], labels i64[N].

    Reads train-*/t10k-* images-idx3-ubyte and labels-idx1-ubyte, each with or without .gz.
    """
    stem = _MNIST_FILES[split]
    images = read_idx(find_file(folder, f"{stem}-images-idx3-ubyte"))
    labels = read_idx(find_file(folder, f"{stem}-labels-idx1-ubyte"))
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise NirError(
            f"{folder}: expected images [N,H,W] and labels [N], "
            f"got {images.shape} and {labels.shape}"
        )
    return images[:, None], labels.astype(np.int64)


def cifar10(folder: str | Path, split: Split = "train") -> tuple[np.ndarray, np.ndarray]:
    """CIFAR-10 from a ``cifar-10-batches-py`` folder or its parent: u8[N,3,32,32], i64[N]."""
    folder = Path(folder)
    inner = folder / "cifar-10-batches-py"
    folder = inner if inner.is_dir() else folder
    names = ["test_batch"] if split == "test" else [f"data_batch_{i}" for i in range(1, 6)]
    images, labels = [], []
    for name in names:
        batch = _unpickle(find_file(folder, name))
        try:
            data, target = np.asarray(batch[b"data"]), np.asarray(batch[b"labels"], np.int64)
        except (KeyError, TypeError, ValueError):
            raise NirError(f"{folder / name}: expected a dict with b'data' and b'labels'") from None
        if data.dtype != np.uint8 or data.shape != (len(target), 3072):
            raise NirError(
                f"{folder / name}: expected u8[{len(target)},3072], got {data.dtype}{data.shape}"
            )
        images.append(data.reshape(-1, 3, 32, 32))
        labels.append(target)
    return np.concatenate(images), np.concatenate(labels)


def digits(split: Split = "train") -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's 1,797 handwritten digits, 8x8 enlarged to 32x32 and three equal channels.

    u8[N,3,32,32] and i64[N]; every fifth image is a test image. Needs scikit-learn.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # Bilinear, with pixel centres at (i + 0.5) / 4 - 0.5 of the small image; clamped at the edges.
    centre = (np.arange(32) + 0.5) / 4 - 0.5
    weights = np.maximum(0, 1 - abs(np.clip(centre, 0, 7)[:, None] - np.arange(8)))
    large = np.einsum("ip,npq,jq->nij", weights, bunch.images, weights)
    images = np.rint(large * (255 / 16)).astype(np.uint8)
    chosen = (np.arange(len(images)) % 5 == 4) == (split == "test")
    return (
        np.repeat(images[chosen, None], 3, axis=1),
        np.asarray(bunch.target[chosen], np.int64),
    )


class _BatchUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PICKLE_NAMES:
            raise pickle.UnpicklingError(f"the file refers to {module}.{name}")
        return super().find_class(module, name)


def _unpickle(path: Path) -> Any:
    with path.open("rb") as file:
        try:
            return _BatchUnpickler(file, encoding="bytes").load()
        except Exception as error:
            # A damaged pickle raises almost anything: EOFError, KeyError, UnicodeDecodeError, ...
            raise NirError(f"{path}: expected a pickled CIFAR-10 batch: {error}") from error


def find_file(folder: str | Path, *names: str) -> Path:
    """The first file of these ``names``, with or without .gz, in ``folder``; NirError for none."""
    wanted = [n for name in names for n in (name, name + ".gz")]
    for name in wanted:
        if Path(folder, name).is_file():
            return Path(folder, name)
    raise NirError(f"{folder}: expected a file {' or '.join(wanted)}, found none")
