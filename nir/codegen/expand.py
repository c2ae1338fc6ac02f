"""The elementwise ops of the IR in primitives: one entry of a table for each op."""

from __future__ import annotations

import math
from collections.abc import Callable

from nir.codegen import transcendental
from nir.codegen.nodes import (
    COMPARISONS,
    FLOATS,
    HALVES,
    E,
    constant_value,
    int_bits,
    int_range,
    select,
)
from nir.errors import UnsupportedError
from nir.ir.op import Op

_DTYPES = ("f64", "f32", "i64", "i32", "i16", "i8", "u8", "bool")
_CAST_DTYPES = (*_DTYPES, *HALVES)


def expand(op: Op, args: list[E]) -> E:
    """The node for an elementwise ``op``. UnsupportedError names an op without a formula."""
    for v in (*op.operands, *op.results):
        if v.type.dtype.name not in (_CAST_DTYPES if op.name == "cast" else _DTYPES):
            raise UnsupportedError(f"{op.name}: no generated code for {v.type.dtype} ({v.type})")
    if op.name == "cast":
        return cast(args[0], op.results[0].type.dtype.name)
    formula = _FORMULAS.get(op.name)
    if formula is None:
        raise UnsupportedError(f"{op.name}: an elementwise op without a formula in generated code")
    return formula(*args)


# ---- arithmetic --------------------------------------------------------------------------------


def _primitive(name: str) -> Callable[..., E]:
    def formula(x: E, *others: E) -> E:
        return x.op(name, *others, dtype="bool" if name in COMPARISONS else "")

    return formula


def _abs(x: E) -> E:
    match x.dtype:
        case "f32" | "f64":
            return abs(x)
        case "u8":
            return x
        case _:
            return select(x < 0, -x, x)


def _sign(x: E) -> E:
    below = select(x < 0, x.of(-1), x.of(0)) if x.dtype != "u8" else x.of(0)
    out = select(x > 0, x.of(1), below)
    return select(x.is_nan(), x, out) if x.dtype in FLOATS else out


def _relu(x: E) -> E:
    return select(x <= 0, 0, x)


def _rsqrt(x: E) -> E:
    return 1.0 / x.op("sqrt")


def _floor_div(x: E, y: E) -> E:
    if x.dtype in FLOATS:
        return (x / y).op("floor")
    quotient, _, unsafe = _int_div(x, y)
    return select(unsafe, _divided_by_0_or_minus_1(x, y), quotient)


def _mod(x: E, y: E) -> E:
    if x.dtype in FLOATS:
        return x - (x / y).op("floor") * y
    _, remainder, unsafe = _int_div(x, y)
    return select(unsafe, 0, remainder)


def _divided_by_0_or_minus_1(x: E, y: E) -> E:
    return x.of(0) if x.dtype == "u8" else select(y.eq(0), 0, -x)


def _int_div(x: E, y: E) -> tuple[E, E, E]:
    """Floor quotient and remainder, and where they do not hold: a divisor of 0, or of -1.

    The hardware traps on x / 0 and on the minimum / -1, so those lanes divide by 1.
    """
    unsafe = y.eq(0) if x.dtype == "u8" else y.eq(0) | y.eq(-1)
    safe = select(unsafe, 1, y)
    q, r = x.op("div", safe), x.op("rem", safe)
    if x.dtype == "u8":
        return q, r, unsafe
    # C truncates; Python's floor is one less where the signs of remainder and divisor differ.
    off = r.ne(0) & (r < 0).ne(y < 0)
    return select(off, q - 1, q), select(off, r + safe, r), unsafe


def _maximum(x: E, y: E) -> E:
    if x.dtype == "bool":
        return x.op("or", y)
    return select(x <= y, y, x) if _is_number(y) else x.op("max", y)


def _minimum(x: E, y: E) -> E:
    if x.dtype == "bool":
        return x.op("and", y)
    return select(x >= y, y, x) if _is_number(y) else x.op("min", y)


def _is_number(x: E) -> bool:
    """A float that is known, and no nan: then one select is enough, and a nan passes it."""
    node = x.nodes[x.n]
    return node.op == "const" and x.dtype in FLOATS and not math.isnan(constant_value(node))


# ---- bits --------------------------------------------------------------------------------------


def _shift(name: str) -> Callable[[E, E], E]:
    def formula(x: E, n: E) -> E:
        bits = int_bits(x.dtype)
        inside = (n < bits) if x.dtype == "u8" else (n >= 0) & (n < bits)
        if name == "shr":
            return x.op("lshr" if x.dtype == "u8" else "shr", select(inside, n, bits - 1))
        return select(inside, x.op(name, select(inside, n, 0)), 0)

    return formula


# ---- casts -------------------------------------------------------------------------------------


def cast(x: E, dtype: str) -> E:
    """x in another dtype, as nir.ops.Cast says: saturating from float to integer, nan to 0."""
    if dtype == x.dtype:
        return x
    if x.dtype in HALVES:
        return cast(_widened(x), dtype)
    if dtype in HALVES:
        return _narrowed(x, dtype)
    if dtype == "bool":
        return x.ne(0)
    if x.dtype in FLOATS and dtype not in FLOATS:
        return _saturate(x, dtype)
    return x.convert(dtype)


def _widened(x: E) -> E:
    """A half type as f32: bf16 is its upper half."""
    if x.dtype == "f16":
        return x.convert("f32")
    return x.bitcast("u16").convert("i32").shl(16).bitcast("f32")


def _narrowed(x: E, dtype: str) -> E:
    """A number rounded to nearest even in a half type; integers go through f32, as numpy's do."""
    x = _rounded_to_odd(x) if x.dtype == "f64" and dtype == "f16" else x.convert("f32")
    if dtype == "f16":
        return x.convert("f16")
    bits = x.bitcast("i32")
    rounded = bits + 0x7FFF + (bits.op("lshr", 16) & 1)
    kept = select(x.is_nan(), bits | 0x400000, rounded)  # a nan stays one, whatever its bits
    return kept.op("lshr", 16).convert("u16").bitcast(dtype)


def _rounded_to_odd(x: E) -> E:
    """f64 in f32, the last bit set where that is not exact: to round once more is then harmless."""
    near = x.convert("f32")
    back = near.convert("f64")
    bits = near.bitcast("i32")
    inside = select(abs(back) > abs(x), bits - 1, bits)  # towards 0
    return select(back.eq(x) | x.is_nan(), bits, inside | 1).bitcast("f32")


def _saturate(x: E, dtype: str) -> E:
    low, high = int_range(dtype)
    number = select(x.is_nan(), 0, x)
    if int_bits(dtype) < (32 if x.dtype == "f32" else 64) and dtype != "i64":
        # Both ends are floats: clamp, convert to a wide integer, then narrow.
        inside = select(number > high, float(high), number)
        inside = select(inside < low, float(low), inside)
        return inside.convert("i32").convert(dtype)
    # `high` is not a float, but high + 1 is; from there on the largest integer.
    above, below = number >= float(high + 1), number < float(low)
    inside = select(above | below, 0, number).convert(dtype)
    return select(above, high, select(below, low, inside))


_FORMULAS: dict[str, Callable[..., E]] = {
    **{n: _primitive(n) for n in ("neg", "add", "sub", "mul", "div", "sqrt", *COMPARISONS)},
    **{n: _primitive(n) for n in ("floor", "ceil", "trunc")},
    "round": _primitive("rint"),
    "abs": _abs,
    "sign": _sign,
    "relu": _relu,
    "rsqrt": _rsqrt,
    "floor_div": _floor_div,
    "mod": _mod,
    "maximum": _maximum,
    "minimum": _minimum,
    "is_nan": lambda x: x.is_nan(),
    "where": select,
    "logical_and": _primitive("and"),
    "logical_or": _primitive("or"),
    "logical_xor": _primitive("xor"),
    "logical_not": _primitive("not"),
    "bit_and": _primitive("and"),
    "bit_or": _primitive("or"),
    "bit_xor": _primitive("xor"),
    "bit_not": _primitive("not"),
    "shift_left": _shift("shl"),
    "shift_right": _shift("shr"),
    "shift_right_logical": _shift("lshr"),
    **{
        n: getattr(transcendental, n)
        for n in ("exp", "expm1", "log", "log1p", "tanh", "sigmoid", "erf", "sin", "cos", "pow")
    },
}
FORMULAS = frozenset(_FORMULAS) | {"cast"}
