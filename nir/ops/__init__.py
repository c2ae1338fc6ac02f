"""Every op of nir, one class each (see `nir.ir.op.Op`); importing this fills the registry."""

from nir.ops.attention import Attention, AttentionGrad
from nir.ops.banded import Banded
from nir.ops.cast import Cast
from nir.ops.control import Cond, CustomVjp, HostCall
from nir.ops.conv import Conv2d, Conv2dInputGrad, Conv2dWeightGrad, PackConv2d
from nir.ops.elementwise import (
    Abs,
    Add,
    BitNot,
    Ceil,
    Cos,
    Div,
    Eq,
    Erf,
    Exp,
    Expm1,
    Floor,
    FloorDiv,
    Ge,
    Gt,
    IsNan,
    Le,
    Log,
    Log1p,
    LogicalNot,
    Lt,
    Maximum,
    Minimum,
    Mod,
    Mul,
    Ne,
    Neg,
    Pow,
    Relu,
    Round,
    Rsqrt,
    Sigmoid,
    Sign,
    Sin,
    Sqrt,
    Sub,
    Tanh,
    Trunc,
)
from nir.ops.fused import Fused, ReducePartial
from nir.ops.hold import Hold
from nir.ops.index import CheckIndex, Put, ScatterAdd, ScatterAddAlong, Take, TakeAlong
from nir.ops.linalg import Matmul, Pack
from nir.ops.loops import Scan, WhileLoop
from nir.ops.nn import (
    BatchNorm,
    BatchNormInference,
    CrossEntropy,
    LayerNorm,
    LogSoftmax,
    Softmax,
)
from nir.ops.pool import AvgPool2d, AvgPool2dGrad, MaxPool2d, MaxPool2dGrad, MaxPool2dSelect
from nir.ops.random import RandomBernoulli, RandomBits, RandomNormal, RandomUniform
from nir.ops.reduce import ArgMax, ArgMin, CumSum, LogSumExp, Max, Mean, Min, Prod, Sum
from nir.ops.select import (
    BitAnd,
    BitOr,
    BitXor,
    LogicalAnd,
    LogicalOr,
    LogicalXor,
    ShiftLeft,
    ShiftRight,
    ShiftRightLogical,
    Where,
)
from nir.ops.shape import Broadcast, Concat, Dilate, Flip, Pad, Reshape, Slice, Transpose
from nir.ops.sort import Sort, TopK
from nir.ops.source import Constant, Full, Iota

__all__ = [
    "Abs", "Add", "ArgMax", "ArgMin", "Attention", "AttentionGrad", "AvgPool2d", "AvgPool2dGrad",
    "Banded", "BatchNorm", "BatchNormInference", "BitAnd", "BitNot", "BitOr", "BitXor", "Broadcast",
    "Cast", "Ceil", "CheckIndex", "Concat", "Cond", "Constant", "Conv2d", "Conv2dInputGrad",
    "Conv2dWeightGrad", "Cos", "CrossEntropy", "CumSum", "CustomVjp", "Dilate", "Div", "Eq", "Erf",
    "Exp", "Expm1", "Flip", "Floor", "FloorDiv", "Full", "Fused", "Ge", "Gt", "Hold", "HostCall",
    "Iota", "IsNan", "LayerNorm", "Le", "Log", "Log1p", "LogSoftmax", "LogSumExp", "LogicalAnd",
    "LogicalNot", "LogicalOr", "LogicalXor", "Lt", "Matmul", "Max", "MaxPool2d", "MaxPool2dGrad",
    "MaxPool2dSelect", "Maximum", "Mean", "Min", "Minimum", "Mod", "Mul", "Ne", "Neg", "Pack",
    "PackConv2d", "Pad", "Pow", "Prod", "Put", "RandomBernoulli", "RandomBits", "RandomNormal",
    "RandomUniform", "ReducePartial", "Relu", "Reshape", "Round", "Rsqrt", "Scan", "ScatterAdd",
    "ScatterAddAlong", "ShiftLeft", "ShiftRight", "ShiftRightLogical", "Sigmoid", "Sign", "Sin",
    "Slice", "Softmax", "Sort", "Sqrt", "Sub", "Sum", "Take", "TakeAlong", "Tanh", "TopK",
    "Transpose", "Trunc", "Where", "WhileLoop",
]  # fmt: skip
