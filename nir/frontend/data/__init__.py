"""Data sets, loaders, transforms and readers.

train = nir.data.TensorDataset(images, labels, transform=nir.data.ToFloat())
for x, y in nir.data.DataLoader(train, batch_size=128, shuffle=True, seed=0):
    ...
"""

from nir.frontend.data.dataset import Dataset, TensorDataset
from nir.frontend.data.loader import DataLoader
from nir.frontend.data.readers import cifar10, digits, mnist, read_idx
from nir.frontend.data.text import PTB, CharText, SequenceBatches, Vocabulary
from nir.frontend.data.transforms import (
    Compose,
    Normalize,
    RandomCrop,
    RandomHorizontalFlip,
    ToFloat,
    Transform,
)

__all__ = [
    "PTB",
    "CharText",
    "Compose",
    "DataLoader",
    "Dataset",
    "Normalize",
    "RandomCrop",
    "RandomHorizontalFlip",
    "SequenceBatches",
    "TensorDataset",
    "ToFloat",
    "Transform",
    "Vocabulary",
    "cifar10",
    "digits",
    "mnist",
    "read_idx",
]
