"""`DataLoader`: batches of a data set in an order that a seed alone determines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from nir.errors import NirError
from nir.frontend.data.dataset import Dataset
from nir.frontend.tensor import Tensor

_KEYS = ("seed", "epoch", "position")


class DataLoader:
    """Iterates over ``dataset`` in batches: tuples of Tensors with a first axis of ``batch_size``.

    The last batch is smaller unless ``drop_last``. Epoch e is shuffled by a counter-based
    generator of key (seed, e), and batch i of it draws from one of key (seed, e, i), so a position
    is two numbers: `state_dict` saves them, and after `load_state_dict` the next iteration goes on
    with the very next batch, in the same order and with the same random transforms.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int = 1,
        shuffle: bool = False,
        *,
        drop_last: bool = False,
        seed: int = 0,
    ) -> None:
        if batch_size < 1:
            raise NirError(f"DataLoader: expected a batch_size of at least 1, got {batch_size}")
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = seed
        self.epoch = 0  # epochs begun
        self.position = 0  # batches handed out in this epoch
        self._resumed = False

    def __len__(self) -> int:
        """Batches in an epoch."""
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + bool(rest and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for arrays in self.arrays():
            yield tuple(Tensor(a) for a in arrays)

    def arrays(self) -> Iterator[tuple[np.ndarray, ...]]:
        """The batches of one epoch as numpy arrays."""
        if not self._resumed:
            self.epoch, self.position = self.epoch + 1, 0
        self._resumed = False
        epoch = self.epoch
        order = self._order(epoch)
        for i in range(self.position, len(self)):
            batch = self.dataset.batch(
                order[i * self.batch_size : (i + 1) * self.batch_size],
                _rng(self.seed, epoch, i + 1),
            )
            self.position = i + 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Seed, epoch and position: what `load_state_dict` needs to go on from here."""
        return {key: getattr(self, key) for key in _KEYS}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the loader that gave ``state`` stood."""
        if set(state) != set(_KEYS):
            raise NirError(f"DataLoader: expected the keys {_KEYS}, got {tuple(state)}")
        self.seed, self.epoch, self.position = (int(state[key]) for key in _KEYS)
        # A finished epoch is not begun again.
        self._resumed = 0 < self.position < len(self)

    def _order(self, epoch: int) -> np.ndarray:
        count = len(self.dataset)
        return _rng(self.seed, epoch, 0).permutation(count) if self.shuffle else np.arange(count)


def _rng(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
