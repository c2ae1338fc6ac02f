"""`Dataset` and `DataLoader`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from nir.needle.autograd import Tensor


class Dataset:
    """Base of data sets: `__getitem__` of an index (or an array of them), and `__len__`."""

    def __init__(self, transforms: Sequence[Callable[[Any], Any]] | None = None) -> None:
        self.transforms = transforms

    def __getitem__(self, index: Any) -> Any:
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def apply_transforms(self, x: Any) -> Any:
        """``x`` after all transforms, in order."""
        for transform in self.transforms or ():
            x = transform(x)
        return x


class DataLoader:
    """Batches of a data set, as lists of Tensors; ``shuffle`` draws a new order each time.

    The last batch may be smaller. ``ordering`` holds the indices of each batch.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 1,
        shuffle: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        self.dataset, self.batch_size, self.shuffle = dataset, batch_size, shuffle
        self.device, self.dtype = device, dtype
        self.ordering = self._batches(np.arange(len(dataset)))
        self.at = 0

    def _batches(self, order: np.ndarray) -> list[np.ndarray]:
        return np.array_split(order, range(self.batch_size, len(order), self.batch_size))

    def __len__(self) -> int:
        return len(self.ordering)

    def __iter__(self) -> Iterator[Any]:
        if self.shuffle:
            self.ordering = self._batches(np.random.permutation(len(self.dataset)))
        self.at = 0
        return self

    def __next__(self) -> Any:
        if self.at >= len(self.ordering):
            raise StopIteration
        found = self.dataset[self.ordering[self.at]]
        self.at += 1
        return [Tensor(x, device=self.device, dtype=self.dtype) for x in found]
