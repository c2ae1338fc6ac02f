"""Data sets in their published file formats; nothing is downloaded."""

from nir.needle.data.datasets.cifar10_dataset import *  # noqa: F403
from nir.needle.data.datasets.mnist_dataset import *  # noqa: F403
from nir.needle.data.datasets.ndarray_dataset import *  # noqa: F403
from nir.needle.data.datasets.ptb_dataset import *  # noqa: F403
