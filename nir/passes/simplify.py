"""Algebraic simplification: rules that never change a value, nan, inf and -0 included.

Arithmetic rules are exact for every input (``x + 0`` stays, since -0 + 0 is +0; ``x - 0`` and
``x * 1`` go). Movement rules compose and cancel transposes, reshapes, broadcasts, slices and the
like; they live in `nir.passes.movement`. Reductions of reductions join: the order in which an op
sums is its own affair.

requires: nothing.  ensures: no rule of this file or of movement.py applies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from nir.ir.graph import Graph
from nir.ir.op import OPS, Op, Value
from nir.ir.program import Target
from nir.ir.types import DType
from nir.ops import (
    Abs,
    Add,
    BitAnd,
    BitOr,
    BitXor,
    Broadcast,
    Cast,
    CustomVjp,
    Div,
    Eq,
    Ge,
    Gt,
    Le,
    LogicalAnd,
    LogicalNot,
    LogicalOr,
    LogicalXor,
    Lt,
    Max,
    Maximum,
    Min,
    Minimum,
    Mul,
    Ne,
    Neg,
    Pow,
    Prod,
    Relu,
    Reshape,
    Sub,
    Sum,
    Where,
)
from nir.ops.expr import Expr
from nir.passes.cse import COMMUTATIVE
from nir.passes.movement import MOVEMENT
from nir.passes.rewrite import Context, Rule, Rules, everywhere, merge_rules, rewrite

Out = Sequence[Expr | Value] | None


def simplify(graph: Graph, target: Target) -> Graph:
    """``graph`` with every rule applied to a fixpoint, in its regions too."""
    return everywhere(graph, lambda g: rewrite(g, RULES))


def forward_only(ctx: Context, op: CustomVjp) -> Out:
    """Differentiation is over: a function with a gradient of its own is the function."""
    found: Out = op.decompose(ctx.exprs(op.operands))
    return found


def _is(x: Any, number: float) -> bool:
    """x is exactly ``number``: 0.0 is not -0.0."""
    if x is None or not isinstance(x, (bool, int, float)):
        return False
    return x == number and math.copysign(1, x) == math.copysign(1, number)


def _is_int(op: Op) -> bool:
    return op.operands[0].type.dtype.is_integer


def constant_right(ctx: Context, op: Any) -> Out:
    """Constants stand on the right of a commutative op."""
    if ctx.scalar(op.lhs) is None or ctx.scalar(op.rhs) is not None:
        return None
    return [ctx.emit(type(op)(lhs=op.rhs, rhs=op.lhs))]


# ---- arithmetic --------------------------------------------------------------------------------


def add(ctx: Context, op: Add) -> Out:
    c = ctx.scalar(op.rhs)
    if _is(c, -0.0) or (_is_int(op) and _is(c, 0)):
        return [op.lhs]
    match ctx.producer(op.lhs), ctx.producer(op.rhs):
        case _, Neg(x=b):
            return [ctx.emit(Sub(op.lhs, b))]
        case Neg(x=a), _:
            return [ctx.emit(Sub(op.rhs, a))]
        case Add(lhs=x, rhs=k), _ if _is_int(op) and c is not None and ctx.scalar(k) is not None:
            return [ctx.emit(Add(x, ctx.emit(Add(k, op.rhs))))]
    return None


def sub(ctx: Context, op: Sub) -> Out:
    c = ctx.scalar(op.rhs)
    if _is(c, 0) or (_is_int(op) and c == 0):
        return [op.lhs]
    if op.lhs is op.rhs and _is_int(op):
        return [ctx.full(0, op.result.type)]
    if _is(ctx.scalar(op.lhs), -0.0) or (_is_int(op) and _is(ctx.scalar(op.lhs), 0)):
        return [ctx.emit(Neg(op.rhs))]
    match ctx.producer(op.rhs):
        case Neg(x=b):
            return [ctx.emit(Add(op.lhs, b))]
    return None


def mul(ctx: Context, op: Mul) -> Out:
    c = ctx.scalar(op.rhs)
    if _is(c, 1):
        return [op.lhs]
    if _is(c, -1):
        return [ctx.emit(Neg(op.lhs))]
    if _is_int(op) and c is not None and c == 0:
        return [ctx.full(0, op.result.type)]
    match ctx.producer(op.lhs), ctx.producer(op.rhs):
        case Neg(x=a), Neg(x=b):
            return [ctx.emit(Mul(a, b))]
        case Neg(x=a), _ if isinstance(c, (int, float)) and op.rhs.type.dtype.is_float:
            return [ctx.emit(Mul(a, ctx.full(-float(c), op.rhs.type)))]
        case Mul(lhs=x, rhs=k), _ if _is_int(op) and c is not None and ctx.scalar(k) is not None:
            return [ctx.emit(Mul(x, ctx.emit(Mul(k, op.rhs))))]
    return None


def div(ctx: Context, op: Div) -> Out:
    c = ctx.scalar(op.rhs)
    if _is(c, 1):
        return [op.lhs]
    if _is(c, -1):
        return [ctx.emit(Neg(op.lhs))]
    if isinstance(c, (int, float)) and _exact_inverse(float(c)):
        return [ctx.emit(Mul(op.lhs, ctx.full(1.0 / c, op.rhs.type)))]
    match ctx.producer(op.lhs), ctx.producer(op.rhs):
        case Neg(x=a), Neg(x=b):
            return [ctx.emit(Div(a, b))]
    return None


def _exact_inverse(c: float) -> bool:
    """1/c is exact: a power of two whose inverse every float type of the IR represents."""
    return (
        bool(c) and math.isfinite(c) and abs(math.frexp(c)[0]) == 0.5 and 2**-14 <= abs(c) <= 2**14
    )


def neg(ctx: Context, op: Neg) -> Out:
    match ctx.producer(op.x):
        case Neg(x=x):
            return [x]
        case Sub(lhs=a, rhs=b) if _is_int(op):
            return [ctx.emit(Sub(b, a))]
        case Mul(lhs=a, rhs=k) if not _is_int(op) and ctx.uses(op.x) == 1:
            if isinstance(c := ctx.scalar(k), (int, float)):
                return [ctx.emit(Mul(a, ctx.full(-float(c), k.type)))]
    return None


def power(ctx: Context, op: Pow) -> Out:
    """x**c for c in 0, 1, 2, 3, -1: one product or quotient, the same at nan, inf and -0."""
    c = ctx.scalar(op.rhs)
    if not isinstance(c, (int, float)):
        return None
    x = ctx.expr(op.lhs)
    match float(c):
        case 0.0:
            return [ctx.full(1, op.result.type)]
        case 1.0:
            return [op.lhs]
        case 2.0:
            return [x * x]
        case 3.0:
            return [x * x * x]
        case -1.0 if op.lhs.type.dtype.is_float:
            return [ctx.emit(Div(ctx.full(1, op.lhs.type), op.lhs))]
    return None


def absolute(ctx: Context, op: Abs) -> Out:
    match ctx.producer(op.x):
        case Neg(x=x):
            return [ctx.emit(Abs(x))]
    return None


def idempotent(ctx: Context, op: Any) -> Out:
    """f(f(x)) is f(x)."""
    x: Value = op.x
    return [x] if isinstance(ctx.producer(x), type(op)) else None


def same_operands(ctx: Context, op: Any) -> Out:
    """f(x, x) is x."""
    return [op.lhs] if op.lhs is op.rhs else None


# ---- logic, comparison, choice -----------------------------------------------------------------


def logical_not(ctx: Context, op: LogicalNot) -> Out:
    match ctx.producer(op.x):
        case LogicalNot(x=x):
            return [x]
        case Eq(lhs=a, rhs=b):
            return [ctx.emit(Ne(a, b))]
        case Ne(lhs=a, rhs=b):
            return [ctx.emit(Eq(a, b))]
        # not (a < b) is a >= b only where there is no nan.
        case Lt(lhs=a, rhs=b) if not a.type.dtype.is_float:
            return [ctx.emit(Ge(a, b))]
        case Ge(lhs=a, rhs=b) if not a.type.dtype.is_float:
            return [ctx.emit(Lt(a, b))]
        case Gt(lhs=a, rhs=b) if not a.type.dtype.is_float:
            return [ctx.emit(Le(a, b))]
        case Le(lhs=a, rhs=b) if not a.type.dtype.is_float:
            return [ctx.emit(Gt(a, b))]
    return None


def logical_and(ctx: Context, op: LogicalAnd) -> Out:
    match ctx.scalar(op.rhs):
        case True:
            return [op.lhs]
        case False:
            return [op.rhs]
    return None


def logical_or(ctx: Context, op: LogicalOr) -> Out:
    match ctx.scalar(op.rhs):
        case True:
            return [op.rhs]
        case False:
            return [op.lhs]
    return None


def logical_xor(ctx: Context, op: LogicalXor) -> Out:
    match ctx.scalar(op.rhs):
        case True:
            return [ctx.emit(LogicalNot(op.lhs))]
        case False:
            return [op.lhs]
    return [ctx.full(False, op.result.type)] if op.lhs is op.rhs else None


def bitwise(ctx: Context, op: Any) -> Out:
    """x & 0, x | 0, x ^ 0, x & -1."""
    c = ctx.scalar(op.rhs)
    if not isinstance(c, int):
        return None
    ones = c == -1 or (
        op.rhs.type.dtype.kind == "uint" and c == 2 ** (8 * op.rhs.type.dtype.itemsize) - 1
    )
    match op:
        case BitAnd() if c == 0:
            return [op.rhs]
        case BitAnd() if ones:
            return [op.lhs]
        case BitOr() | BitXor() if c == 0:
            return [op.lhs]
    return None


def compare_same(ctx: Context, op: Any) -> Out:
    """x < x is false, and without nan x == x is true."""
    if op.lhs is not op.rhs:
        return None
    if isinstance(op, (Lt, Gt)):
        return [ctx.full(False, op.result.type)]
    if op.lhs.type.dtype.is_float:
        return None
    return [ctx.full(not isinstance(op, Ne), op.result.type)]


def where(ctx: Context, op: Where) -> Out:
    if op.x is op.y:
        return [op.x]
    match ctx.scalar(op.condition):
        case True:
            return [op.x]
        case False:
            return [op.y]
    match ctx.producer(op.condition):
        case LogicalNot(x=c):
            return [ctx.emit(Where(c, op.y, op.x))]
    match ctx.producer(op.y), ctx.producer(op.x):
        case Where(condition=c, y=y), _ if c is op.condition:
            return [ctx.emit(Where(c, op.x, y))]
        case _, Where(condition=c, x=x) if c is op.condition:
            return [ctx.emit(Where(c, x, op.y))]
    if op.result.type.dtype.kind == "bool":
        match ctx.scalar(op.x), ctx.scalar(op.y):
            case True, False:
                return [op.condition]
            case False, True:
                return [ctx.emit(LogicalNot(op.condition))]
    return None


def cast(ctx: Context, op: Cast) -> Out:
    if op.x.type.dtype == op.dtype:
        return [op.x]
    match ctx.producer(op.x):
        case Cast(x=x) if _lossless(x.type.dtype, op.x.type.dtype) and _direct(
            x.type.dtype, op.x.type.dtype, op.dtype
        ):
            return [x] if x.type.dtype == op.dtype else [ctx.emit(Cast(x, op.dtype))]
    return None


_SIGNIFICAND = {"f64": 53, "f32": 24, "f16": 11, "bf16": 8}
_EXPONENT = {"f64": 11, "f32": 8, "f16": 5, "bf16": 8}


def _lossless(a: DType, b: DType) -> bool:
    """Every value of ``a`` is one of ``b``."""
    match a.kind, b.kind:
        case "bool", _:
            return True
        case "float", "float":
            wide = _SIGNIFICAND[a.name] <= _SIGNIFICAND[b.name]
            return wide and _EXPONENT[a.name] <= _EXPONENT[b.name]
        case (("int" | "uint"), "float"):
            return 8 * a.itemsize <= _SIGNIFICAND[b.name] and b.name != "f16"
        case ("int", "int") | ("uint", "uint"):
            return a.itemsize <= b.itemsize
        case "uint", "int":
            return a.itemsize < b.itemsize
    return False


def _direct(a: DType, b: DType, c: DType) -> bool:
    """After the lossless a -> b, converting b -> c does what a -> c does."""
    # An integer saturates on its way through a float to a smaller integer; directly it wraps.
    return not (a.is_integer and b.is_float and c.is_integer and not _lossless(a, c))


# ---- reductions --------------------------------------------------------------------------------


def reduce_nothing(ctx: Context, op: Any) -> Out:
    """A reduction over no axes, or over axes of size 1."""
    if not op.axes:
        return [_summed(ctx, op, op.x)]
    ones = tuple(a for a in op.axes if op.x.type.shape[a] == 1)
    if not ones:
        return None
    shape = tuple(d for a, d in enumerate(op.x.type.shape) if a not in ones)
    squeezed = ctx.emit(Reshape(op.x, shape))
    left = tuple(a - sum(o < a for o in ones) for a in op.axes if a not in ones)
    return [ctx.emit(type(op)(squeezed, left)) if left else _summed(ctx, op, squeezed)]


def _summed(ctx: Context, op: Any, x: Value) -> Value:
    """``x`` as a sum gives it: a sum starts from +0, which turns -0 into +0."""
    if isinstance(op, Sum) and x.type.dtype.is_float:
        return ctx.emit(Add(x, ctx.full(0.0, x.type)))
    return x


def reduce_reduced(ctx: Context, op: Any) -> Out:
    """sum(sum(x)) over all axes at once."""
    inner: Any = ctx.producer(op.x)
    if type(inner) is not type(op) or ctx.uses(op.x) > 1:
        return None
    kept = [a for a in range(inner.x.type.ndim) if a not in inner.axes]
    axes = tuple(sorted((*inner.axes, *(kept[a] for a in op.axes))))
    return [ctx.emit(type(op)(inner.x, axes))]


def reduce_broadcast(ctx: Context, op: Any) -> Out:
    """Along an axis that a broadcast added all elements are one."""
    match ctx.producer(op.x):
        case Broadcast(x=x, axes=axes):
            pass
        case _:
            return None
    shape = op.x.type.shape
    new = [a for a in op.axes if a not in axes]
    # Over an axis of size 0 a reduction is its identity, whatever x is.
    counts = [shape[a] for a in new]
    if not new or not all(isinstance(n, int) and n > 0 for n in counts):
        return None
    times = math.prod(n for n in counts if isinstance(n, int))
    kept = [a for a in range(len(shape)) if a not in new]
    y = ctx.emit(Broadcast(x, tuple(shape[a] for a in kept), tuple(kept.index(a) for a in axes)))
    left = tuple(kept.index(a) for a in op.axes if a in kept)
    match op:
        # Larger counts are not numbers of f32.
        case Sum() if times <= 2**24 or y.type.dtype.is_integer:
            y = ctx.emit(Mul(y, ctx.full(times, y.type)))
        case Sum() | Prod():
            return None
    return [ctx.emit(type(op)(y, left)) if left else _summed(ctx, op, y)]


_REDUCE: tuple[Rule, ...] = (reduce_nothing, reduce_reduced, reduce_broadcast)

_ARITHMETIC: dict[type[Op], tuple[Rule, ...]] = {
    Add: (add,),
    Sub: (sub,),
    Mul: (mul,),
    Div: (div,),
    Neg: (neg,),
    Pow: (power,),
    Abs: (absolute, idempotent),
    Relu: (idempotent,),
    Maximum: (same_operands,),
    Minimum: (same_operands,),
    LogicalNot: (logical_not,),
    LogicalAnd: (same_operands, logical_and),
    LogicalOr: (same_operands, logical_or),
    LogicalXor: (logical_xor,),
    BitAnd: (same_operands, bitwise),
    BitOr: (same_operands, bitwise),
    BitXor: (bitwise,),
    Eq: (compare_same,),
    Ne: (compare_same,),
    Lt: (compare_same,),
    Le: (compare_same,),
    Gt: (compare_same,),
    Ge: (compare_same,),
    Where: (where,),
    Cast: (cast,),
    Sum: _REDUCE,
    Prod: _REDUCE,
    Max: _REDUCE,
    Min: _REDUCE,
}


RULES: Rules = merge_rules(
    {OPS[name]: (constant_right,) for name in COMMUTATIVE if name in OPS},
    _ARITHMETIC,
    MOVEMENT,
    {CustomVjp: (forward_only,)},
)
