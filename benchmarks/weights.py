"""Weights and batches that every peer is given alike, made by numpy from a seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def make(state: Mapping[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """New values for ``state`` (path -> anything with a shape), by PyTorch's default recipe.

    Matrices and kernels are uniform in +-1/sqrt(fan in); scales are 1, and all else 0.
    """
    rng = np.random.default_rng(seed)
    out: dict[str, np.ndarray] = {}
    for path in sorted(state):
        shape = tuple(int(n) for n in state[path].shape)
        if len(shape) > 1:
            bound = 1 / np.sqrt(np.prod(shape[1:]))
            out[path] = rng.uniform(-bound, bound, shape).astype(np.float32)
        elif path.endswith("num_batches_tracked"):
            out[path] = np.zeros(shape, np.int64)
        else:
            scale = path.endswith("running_var") or _is_scale(path, state)
            out[path] = np.full(shape, float(scale), np.float32)
    return out


def inference(state: Mapping[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """New values for ``state`` of a trained net's kind: every number counts, and none grows.

    Matrices and kernels are normal with variance 1 / fan in, statistics and scales vary about
    PyTorch's initial ones.
    """
    rng = np.random.default_rng(seed)
    out: dict[str, np.ndarray] = {}
    for path in sorted(state):
        shape = tuple(int(n) for n in state[path].shape)
        noise = rng.standard_normal(shape).astype(np.float32)
        if path.endswith("num_batches_tracked"):
            out[path] = np.zeros(shape, np.int64)
        elif path.endswith("running_var"):
            out[path] = 0.5 + noise * noise
        elif len(shape) > 1:
            out[path] = noise / np.float32(np.sqrt(np.prod(shape[1:])))
        else:
            out[path] = np.float32(_is_scale(path, state)) + np.float32(0.1) * noise
    return out


def _is_scale(path: str, state: Mapping[str, Any]) -> bool:
    return path.endswith(".weight") and len(state[path].shape) == 1


def images(batch: int, count: int, shape: tuple[int, ...], seed: int = 1) -> list[Any]:
    """``count`` batches of (f32[batch, *shape], i64[batch]), ten classes with unlike means."""
    rng = np.random.default_rng(seed)
    means = rng.standard_normal((10, *shape)).astype(np.float32)
    out = []
    for _ in range(count):
        labels = rng.integers(0, 10, batch)
        noise = rng.standard_normal((batch, *shape)).astype(np.float32)
        out.append((means[labels] * 0.5 + noise, labels))
    return out
