"""Every op of nir, one class each: see `nir.ir.op.Op`. Importing this module fills the registry."""

from nir.ops.control import Cond, CustomVjp, HostCall, Scan
from nir.ops.conv import Conv2d, Conv2dInputGrad, Conv2dWeightGrad, PackConv2d
from nir.ops.elementwise import (
    Abs, Add, Cast, Ceil, Cos, Div, Eq, Erf, Exp, Expm1, Floor, FloorDiv, Ge, Gt, IsNan, Le, Log,
    Log1p, LogicalNot, BitNot, Lt, Maximum, Minimum, Mod, Mul, Ne, Neg, Pow, Relu, Round, Rsqrt,
    Sigmoid, Sign, Sin, Sqrt, Sub, Tanh, Trunc,
)  # fmt: skip
from nir.ops.fused import Fused, ReducePartial
from nir.ops.index import ScatterAdd, ScatterAddAlong, Take, TakeAlong
from nir.ops.linalg import Matmul, Pack
from nir.ops.nn import (
    Attention, BatchNorm, BatchNormInference, CrossEntropy, LayerNorm, LogSoftmax, Softmax,
)  # fmt: skip
from nir.ops.pool import AvgPool2d, AvgPool2dGrad, MaxPool2d, MaxPool2dGrad, MaxPool2dSelect
from nir.ops.random import RandomBernoulli, RandomBits, RandomNormal, RandomUniform
from nir.ops.reduce import ArgMax, ArgMin, CumSum, LogSumExp, Max, Mean, Min, Prod, Sum
from nir.ops.select import (
    BitAnd, BitOr, BitXor, LogicalAnd, LogicalOr, LogicalXor, ShiftLeft, ShiftRight,
    ShiftRightLogical, Where,
)  # fmt: skip
from nir.ops.shape import Broadcast, Concat, Dilate, Flip, Pad, Reshape, Slice, Transpose
from nir.ops.source import Constant, Full, Iota

__all__ = [name for name in dir() if name[0].isupper()]
