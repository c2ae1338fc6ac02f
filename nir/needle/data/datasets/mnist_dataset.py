"""MNIST."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nir.frontend.data import read_idx
from nir.needle.data.data_basic import Dataset


def parse_mnist(image_filename: str, label_filename: str) -> tuple[np.ndarray, np.ndarray]:
    """(images (N, 784) float32 in [0, 1], labels (N,) uint8) of gzipped IDX files."""
    images, labels = read_idx(image_filename), read_idx(label_filename)
    flat = images.reshape(len(images), -1).astype(np.float32) / np.float32(255)
    return flat, labels.astype(np.uint8)


class MNISTDataset(Dataset):
    """Images as rows of 784 floats in [0, 1], with transforms as (28, 28, 1); and labels."""

    def __init__(
        self,
        image_filename: str,
        label_filename: str,
        transforms: Sequence[Callable[[Any], Any]] | None = None,
    ) -> None:
        super().__init__(transforms)
        self.X, self.y = parse_mnist(image_filename, label_filename)

    def __getitem__(self, index: Any) -> Any:
        images, labels = self.X[index], self.y[index]
        if self.transforms is None:
            return images, labels
        shaped = images.reshape(-1, 28, 28, 1)
        changed = np.stack([self.apply_transforms(x) for x in shaped])
        return changed.reshape(*images.shape[:-1], 28, 28, 1), labels

    def __len__(self) -> int:
        return len(self.X)
