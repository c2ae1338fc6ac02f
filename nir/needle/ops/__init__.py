"""Needle's operations: classes, and the functions that apply them."""

from nir.needle.ops.ops_logarithmic import *  # noqa: F403
from nir.needle.ops.ops_mathematic import *  # noqa: F403
from nir.needle.ops.ops_tuple import *  # noqa: F403
