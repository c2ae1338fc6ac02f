"""Data sets, loaders and transforms."""

from nir.needle.data.data_basic import *  # noqa: F403
from nir.needle.data.data_transforms import *  # noqa: F403
from nir.needle.data.datasets import *  # noqa: F403
