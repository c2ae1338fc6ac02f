"""Arrays as a data set."""

from __future__ import annotations

from typing import Any

from nir.needle.data.data_basic import Dataset


class NDArrayDataset(Dataset):
    """Element i is the tuple of the i-th rows of all arrays."""

    def __init__(self, *arrays: Any) -> None:
        super().__init__()
        self.arrays = arrays

    def __len__(self) -> int:
        return int(self.arrays[0].shape[0])

    def __getitem__(self, index: Any) -> Any:
        return tuple(a[index] for a in self.arrays)
