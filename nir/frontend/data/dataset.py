"""`Dataset`: indexed samples; `TensorDataset`: samples that lie in arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from nir.errors import ShapeError
from nir.frontend.data.transforms import Transform


class Dataset:
    """Samples by number: subclasses define ``__len__`` and ``__getitem__(i)``, a tuple of arrays.

    A subclass whose samples lie together overrides `batch`, which the loader calls.
    """

    def __len__(self) -> int:
        raise NotImplementedError(f"{type(self).__name__} must define __len__")

    def __getitem__(self, index: int) -> Any:
        raise NotImplementedError(f"{type(self).__name__} must define __getitem__")

    def batch(self, indices: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        """The samples ``indices`` (i64[N]), stacked: one array [N, ...] per field.

        ``rng`` belongs to this batch alone, so that random transforms do not depend on how many
        batches came before.
        """
        samples = [self[int(i)] for i in indices]
        rows = [s if isinstance(s, tuple) else (s,) for s in samples]
        return tuple(np.stack([np.asarray(x) for x in field]) for field in zip(*rows, strict=True))


class TensorDataset(Dataset):
    """Samples that are the rows of ``arrays``, which have one length.

    ``transform`` works on whole batches of the first array. Raises ShapeError where the lengths
    differ.
    """

    def __init__(self, *arrays: Any, transform: Transform | None = None) -> None:
        self.arrays = tuple(np.asarray(a) for a in arrays)
        self.transform = transform
        if not self.arrays or any(a.ndim == 0 for a in self.arrays):
            raise ShapeError("TensorDataset: expected at least one array, each with a first axis")
        lengths = [len(a) for a in self.arrays]
        if len(set(lengths)) > 1:
            raise ShapeError(f"TensorDataset: expected arrays of one length, got {lengths}")

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        """One sample, untransformed."""
        return tuple(a[index] for a in self.arrays)

    def batch(self, indices: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        first, *rest = (a.take(indices, axis=0) for a in self.arrays)
        if self.transform is not None:
            first = self.transform(first, rng)
        return (first, *rest)
