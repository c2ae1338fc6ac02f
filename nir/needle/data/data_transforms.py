"""Augmentation of images (H, W, C), by numpy's global generator."""

from __future__ import annotations

from typing import Any

import numpy as np


class Transform:
    """Base of transforms."""

    def __call__(self, x: Any) -> Any:
        raise NotImplementedError


class RandomFlipHorizontal(Transform):
    """The image mirrored left to right with probability ``p``."""

    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, img: Any) -> Any:
        return img[:, ::-1, :] if np.random.rand() < self.p else img


class RandomCrop(Transform):
    """The image shifted by up to ``padding`` along both axes, zeros where nothing is left."""

    def __init__(self, padding: int = 3) -> None:
        self.padding = padding

    def __call__(self, img: Any) -> Any:
        p = self.padding
        down, right = np.random.randint(low=-p, high=p + 1, size=2)
        high, wide, _ = img.shape
        padded = np.pad(img, ((p, p), (p, p), (0, 0)))
        return padded[p + down : p + down + high, p + right : p + right + wide]
