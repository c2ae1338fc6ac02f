"""Transforms of whole batches of images, NCHW: ``transform(batch, rng) -> batch``, in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from nir.errors import ShapeError


class Transform(Protocol):
    """A function of a batch [N, ...] and of the batch's own random generator."""

    def __call__(self, batch: np.ndarray, rng: np.random.Generator) -> np.ndarray: ...


class Compose:
    """The transforms one after the other."""

    def __init__(self, *transforms: Transform) -> None:
        self.transforms = transforms

    def __call__(self, batch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        for transform in self.transforms:
            batch = transform(batch, rng)
        return batch


class ToFloat:
    """u8 0..255 -> f32 0..1."""

    def __call__(self, batch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return batch.astype(np.float32) * np.float32(1 / 255)


class Normalize:
    """(x - mean[c]) / std[c] for each channel c of f32[N,C,H,W]."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = np.asarray(mean, np.float32).reshape(1, -1, 1, 1)
        self.std = np.asarray(std, np.float32).reshape(1, -1, 1, 1)

    def __call__(self, batch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        _expect_images("Normalize", batch)
        if batch.shape[1] != self.mean.shape[1]:
            channels = self.mean.shape[1]
            raise ShapeError(f"Normalize: expected {channels} channels, got {batch.shape[1]}")
        return (batch - self.mean) / self.std


class RandomHorizontalFlip:
    """Mirrors each image left to right with probability ``p``."""

    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, batch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        _expect_images("RandomHorizontalFlip", batch)
        mirrored = rng.random(len(batch)) < self.p
        out = batch.copy()
        out[mirrored] = batch[mirrored, :, :, ::-1]
        return out


class RandomCrop:
    """A random ``size`` x ``size`` window of each image, after ``padding`` zeros on every side."""

    def __init__(self, size: int, padding: int = 0) -> None:
        self.size, self.padding = size, padding

    def __call__(self, batch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        _expect_images("RandomCrop", batch)
        p, size = self.padding, self.size
        padded = np.pad(batch, ((0, 0), (0, 0), (p, p), (p, p)))
        high = np.array(padded.shape[2:]) - size + 1
        if (high < 1).any():
            raise ShapeError(f"RandomCrop: expected at least {size}x{size}, got {padded.shape[2:]}")
        corners = rng.integers(0, high, (len(batch), 2))
        # A view of all windows; one gather picks each image's own.
        windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(2, 3))
        return np.ascontiguousarray(windows[np.arange(len(batch)), :, corners[:, 0], corners[:, 1]])


def _expect_images(name: str, batch: np.ndarray) -> None:
    if batch.ndim != 4:
        raise ShapeError(f"{name}: expected images [N,C,H,W], got shape {batch.shape}")
