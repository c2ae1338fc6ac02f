"""The Needle face of nir: code written for Needle, the library of CMU 10-414/714, runs on nir.

The names are Needle's. Values are computed by nir's compiled programs and gradients come from nir's
autodiff. `import nir` does not import this package.
"""

from nir.needle import data as data
from nir.needle import init as init
from nir.needle import lowering as lowering
from nir.needle import nn as nn
from nir.needle import ops as ops
from nir.needle import optim as optim
from nir.needle.autograd import Op as Op
from nir.needle.autograd import Tensor as Tensor
from nir.needle.autograd import TensorOp as TensorOp
from nir.needle.autograd import TensorTuple as TensorTuple
from nir.needle.autograd import TensorTupleOp as TensorTupleOp
from nir.needle.autograd import Value as Value
from nir.needle.autograd import all_devices as all_devices
from nir.needle.autograd import cpu as cpu
from nir.needle.backend_selection import *  # noqa: F403
from nir.needle.init import ones as ones
from nir.needle.init import ones_like as ones_like
from nir.needle.init import zeros as zeros
from nir.needle.init import zeros_like as zeros_like
from nir.needle.ops import *  # noqa: F403
