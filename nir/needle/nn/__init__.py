"""Needle's layers."""

from nir.needle.nn.nn_basic import *  # noqa: F403
from nir.needle.nn.nn_conv import *  # noqa: F403
from nir.needle.nn.nn_sequence import *  # noqa: F403
from nir.needle.nn.nn_transformer import *  # noqa: F403
