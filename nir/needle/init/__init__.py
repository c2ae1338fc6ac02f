"""Tensors to start from."""

from nir.needle.init.init_basic import *  # noqa: F403
from nir.needle.init.init_initializers import *  # noqa: F403
