"""CIFAR-10."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nir.frontend.data import cifar10
from nir.needle.data.data_basic import Dataset


class CIFAR10Dataset(Dataset):
    """Images (3, 32, 32) in [0, 1] and labels from a ``cifar-10-batches-py`` folder."""

    def __init__(
        self,
        base_folder: str,
        train: bool,
        p: float | None = 0.5,
        transforms: Sequence[Callable[[Any], Any]] | None = None,
    ) -> None:
        super().__init__(transforms)
        images, self.y = cifar10(base_folder, "train" if train else "test")
        self.X = images.astype(np.float32) / np.float32(255)

    def __getitem__(self, index: Any) -> Any:
        images, labels = self.X[index], self.y[index]
        if self.transforms is None:
            return images, labels
        if images.ndim == 3:
            return self._changed(images), labels
        return np.stack([self._changed(x) for x in images]), labels

    def _changed(self, image: np.ndarray) -> np.ndarray:
        # Transforms take (H, W, C).
        changed: np.ndarray = self.apply_transforms(image.transpose(1, 2, 0))
        return changed.transpose(2, 0, 1)

    def __len__(self) -> int:
        return len(self.X)
