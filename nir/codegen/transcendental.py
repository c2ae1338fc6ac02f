"""Transcendental functions in primitives, for f32 and f64.

Each reduces its argument to a small interval and evaluates a polynomial there. The coefficients
are Chebyshev fits, computed with 60 digits and rounded. Bounds on the error, measured against
float64 (f32) and extended precision (f64), stand in ``ULP`` and are enforced by the tests. nan goes
through, and -0, inf and overflow come out as IEEE 754 recommends. sin and cos are within their
bounds for |x| <= 1e5 and lose digits beyond: the argument is reduced with 119 bits of pi / 2.
"""

from __future__ import annotations

import math
import struct

from nir.codegen.nodes import E, horner, select
from nir.frozen import Frozen

# Largest error in units in the last place, (f32, f64), on every ISA level.
ULP: dict[str, tuple[float, float]] = {
    "exp": (1.2, 1.2),
    "expm1": (1.6, 2.0),
    "log": (1.0, 1.0),
    "log1p": (1.6, 1.5),
    "tanh": (2.5, 2.75),
    "sigmoid": (2.5, 2.5),
    "erf": (1.4, 1.4),
    "sin": (0.6, 2.5),
    "cos": (0.6, 2.5),
    "pow": (0.6, 1.5),
    "sqrt": (0.5, 0.5),
    "rsqrt": (1.5, 1.5),
}


class _Format(Frozen):
    """What the formulas need to know of a floating-point format."""

    bits: str  # the integer of the same size
    mantissa: int
    bias: int
    magic: float  # adding it leaves the nearest integer in the low bits
    ln2: tuple[float, float]  # high part: few bits, so that its product with n is exact
    exp_range: tuple[float, float]  # beyond, exp is 0 or inf
    exp: tuple[float, ...]  # (exp(r) - 1 - r) / r^2 on |r| <= ln(2) / 2
    expm1_floor: float  # below, expm1 is -1
    tanh_one: float  # above, tanh is 1
    sqrt_half: int  # bits of sqrt(1/2)
    smallest_normal: float
    denormal_scale: int  # 2**this makes a denormal normal


_F32 = _Format(
    "i32", 23, 127, 12582912.0,
    (0.693359375, -0.00021219444005469057),
    (-104.0, 89.0),
    (0.00019891080463998843, 0.0013933730715792083, 0.008333310844647862, 0.04166646419740569,
     0.16666666681704215, 0.500000001353873),
    -30.0, 10.0, 0x3F3504F3, 2.0**-126, 23,
)  # fmt: skip
_F64 = _Format(
    "i64", 52, 1023, 6755399441055744.0,
    (0.6931471803691238, 1.9082149292705877e-10),
    (-746.0, 710.0),
    (2.090861119311475e-09, 2.5105312729622103e-08, 2.7557293814102314e-07, 2.755725517000089e-06,
     2.4801587301203094e-05, 0.0001984126987500228, 0.0013888888888896598, 0.008333333333326084,
     0.041666666666666644, 0.1666666666666667, 0.5),
    -60.0, 22.0, 0x3FE6A09E667F3BCD, 2.0**-1022, 54,
)  # fmt: skip
# exp itself needs one term less than expm1 in f32.
_EXP32 = (
    0.001392625083149798, 0.008363232883682618, 0.041666554212984146, 0.16666576666119928, 0.5,
)  # fmt: skip
# (log(1 + f) - f + f^2 / 2) / f^3 on sqrt(1/2) - 1 <= f <= sqrt(2) - 1
_LOG32 = (
    0.06971611471451178, -0.11479733846637635, 0.1168541992348674, -0.12425687331451106,
    0.1424905764569748, -0.16667802319501254, 0.200007157488921, -0.24999996957950882,
    0.33333331180030046,
)  # fmt: skip
# (log((1 + s) / (1 - s)) - 2 s) / s^3 in z = s^2
_LOG64 = (
    0.1310072138350349, 0.13267418596474884, 0.15386290534658992, 0.181817947008978,
    0.2222222240054776, 0.2857142857076445, 0.4000000000000094, 0.6666666666666666,
)  # fmt: skip
_TWO_THIRDS = (0.6666666666666666, 3.700743415417188e-17)
# erf(x) / x - 1 in x^2, for |x| <= 0.93 and |x| <= 1
_ERF32 = (
    8.334718615209905e-05, -0.0008134709332119057, 0.005200368586864961, -0.026859151472438985,
    0.11283691519733097, -0.3761263351714081, 0.12837916662064427,
)  # fmt: skip
_ERF64 = (
    5.957176147748911e-11, -1.1372848856791674e-09, 1.4659775274047436e-08,
    -1.6350312701054695e-07, 1.6461000484121368e-06, -1.4925595266831182e-05,
    0.0001205533111164271, -0.000854832698083379, 0.0052239776248180145, -0.026866170645076792,
    0.11283791670954879, -0.3761263890318375, 0.1283791670955126,
)  # fmt: skip
# -log(1 - erf(t)) on 0.93 <= t <= 4
_ERF32_TAIL = (
    -1.643487202838841e-06, 4.6178000155887284e-05, -0.0005977610694967334, 0.004763749466496191,
    -0.02643181433699436, 0.1100964943580993, 0.6318116363642311, 1.1302397910324637,
    -0.0003211113002138787,
)  # fmt: skip
# (1 - erf(t)) exp(t^2) in (t - 2) / (t + 2) on 1 <= t <= 6
_ERF64_TAIL = (
    3.917059299925389e-06, 1.820143195975009e-06, -1.4067532694582058e-05, -2.7647305443610053e-05,
    2.754312818566672e-05, 0.00017436697232946864, 4.3554202452705896e-05, -0.0009819773208131022,
    -0.0008471431980760424, 0.006997461747753573, 0.00373289240349224, -0.07897858101585253,
    0.24165819424246987, -0.4271858474139579, 0.25539567631050575,
)  # fmt: skip
# (sin(x) / x - 1) / x^2 and (cos(x) - 1 + x^2 / 2) / x^4 in x^2, for |x| <= pi / 4
_SIN = (
    1.591810123027412e-10, -2.5051131455427946e-08, 2.755731610068303e-06, -0.0001984126983675497,
    0.008333333333330946, -0.16666666666666666,
)  # fmt: skip
_COS = (
    -1.1382614868556325e-11, 2.0876146024689747e-09, -2.7557317270560326e-07,
    2.4801587298763433e-05, -0.0013888888888887395, 0.041666666666666664,
)  # fmt: skip
# pi / 2 in three parts; n times one of the first two is exact for |n| < 2^20.
_HALF_PI = (1.5707963267341256, 6.077100506303966e-11, 2.0222662487959506e-21)


def _format(x: E) -> _Format:
    return _F32 if x.dtype == "f32" else _F64


# ---- exponentials ------------------------------------------------------------------------------


def _clamp(x: E, low: float, high: float) -> E:
    """x within the bounds; nan stays nan."""
    x = select(x > high, high, x)
    return select(x < low, low, x)


def _reduce_exp(x: E) -> tuple[E, E]:
    """(n, r) with x = n ln(2) + r, |r| <= ln(2) / 2; n as an integer of x's size."""
    f = _format(x)
    shifted = x.fma(math.log2(math.e), f.magic)
    n = shifted - f.magic
    r = n.fma(-f.ln2[1], n.fma(-f.ln2[0], x))
    return shifted.bitcast(f.bits) - _bits_of(x, f.magic), r


def _bits_of(x: E, number: float) -> E:
    """The bits of a constant, as an integer of x's size."""
    f = _format(x)
    code, integer = ("<f", "<i") if x.dtype == "f32" else ("<d", "<q")
    (bits,) = struct.unpack(integer, struct.pack(code, number))
    return E(x.nodes, x.nodes.const(f.bits, bits))


def _pow2(n: E, like: E) -> E:
    """2**n, for n of a normal number."""
    f = _format(like)
    return (n + f.bias).shl(f.mantissa).bitcast(like.dtype)


def exp(x: E) -> E:
    """2**n (1 + r + r^2 P(r)), with x = n ln(2) + r."""
    f = _format(x)
    n, r = _reduce_exp(_clamp(x, *f.exp_range))
    p = horner(r, _EXP32 if x.dtype == "f32" else f.exp)
    return ((r * r).fma(p, r) + 1).op("ldexp", n)


def expm1(x: E) -> E:
    """2**n p + (2**n - 1) with p = expm1(r); in halves, so that 2**n does not overflow."""
    f = _format(x)
    n, r = _reduce_exp(_clamp(x, f.expm1_floor, f.exp_range[1]))
    p = (r * r).fma(horner(r, f.exp), r)
    half = _pow2(n - 1, x)
    y = p.fma(half, half - 0.5)
    return select(x.eq(0), x, y + y)


def tanh(x: E) -> E:
    """t / (t + 2) with t = expm1(2 |x|), and x's sign."""
    f = _format(x)
    a = abs(x)
    a = select(a > f.tanh_one, f.tanh_one, a)
    n, r = _reduce_exp(a + a)
    p = (r * r).fma(horner(r, f.exp), r)
    scale = _pow2(n, x)
    t = p.fma(scale, scale - 1)
    return (t / (t + 2)).op("copysign", x)


def sigmoid(x: E) -> E:
    """1 / (1 + e) for x >= 0, else e / (1 + e), with e = exp(-|x|)."""
    e = exp(-abs(x))
    return select(x < 0, e, x.of(1)) / (e + 1)


# ---- logarithms --------------------------------------------------------------------------------


def _split(x: E) -> tuple[E, E]:
    """(k, m) with x = 2**k m and sqrt(1/2) <= m < sqrt(2), for x > 0; k as a float."""
    f = _format(x)
    small = x < f.smallest_normal
    x = select(small, x * 2.0**f.denormal_scale, x)
    shifted = x.bitcast(f.bits) - f.sqrt_half
    k = shifted.shr(f.mantissa).convert(x.dtype)
    m = ((shifted & ((1 << f.mantissa) - 1)) + f.sqrt_half).bitcast(x.dtype)
    return select(small, k - float(f.denormal_scale), k), m


def _log_of_positive(x: E) -> E:
    f = _format(x)
    k, m = _split(x)
    v = m - 1
    if x.dtype == "f32":
        square = v * v
        tail = square * v * horner(v, _LOG32)
        tail = k.fma(f.ln2[1], tail)
        tail = square.fma(-0.5, tail)
        return k.fma(f.ln2[0], v + tail)
    # log(1 + v) = 2 s + s^3 P(s^2) with s = v / (2 + v); 2 s = v - s v, v being exact.
    s = v / (v + 2)
    z = s * s
    half = v * v * 0.5
    inner = s * (half + z * horner(z, _LOG64))
    return k.fma(f.ln2[0], v - (half - (inner + k * f.ln2[1])))


def log(x: E) -> E:
    """k ln(2) + log(m) with x = 2**k m."""
    y = _log_of_positive(x)
    y = select(x.eq(0), -math.inf, y)
    y = select(x < 0, math.nan, y)
    # inf and nan are themselves.
    return select(x < math.inf, y, x)


def log1p(x: E) -> E:
    """log(u) + (x - (u - 1)) / u with u = 1 + x: the second term gives back what u lost."""
    u = x + 1
    lost = select(x > 1, (u - x) - 1, (u - 1) - x)
    y = _log_of_positive(u) - lost / u
    y = select(x.eq(-1), -math.inf, y)
    y = select(x < -1, math.nan, y)
    y = select(x.eq(0), x, y)
    return select(x < math.inf, y, x)


# ---- error function ----------------------------------------------------------------------------


def erf(x: E) -> E:
    """x (1 + P(x^2)) near 0; else 1 - erfc(|x|) with x's sign."""
    a = abs(x)
    if x.dtype == "f32":
        inside = x.fma(horner(x * x, _ERF32), x)
        t = select(a > 4.0, 4.0, a)
        outside = 1.0 - exp(-horner(t, _ERF32_TAIL))
        return select(a <= 0.93, inside, outside.op("copysign", x))
    inside = x.fma(horner(x * x, _ERF64), x)
    t = select(a > 6.0, 6.0, a)
    outside = 1.0 - exp(-(t * t)) * horner((t - 2) / (t + 2), _ERF64_TAIL)
    return select(a <= 1.0, inside, outside.op("copysign", x))


# ---- trigonometry ------------------------------------------------------------------------------


def sin(x: E) -> E:
    return _sin_cos(x, 0)


def cos(x: E) -> E:
    return _sin_cos(x, 1)


def _sin_cos(x: E, quadrant: int) -> E:
    """sin(x + quadrant pi / 2). f32 is computed in f64: the reduced argument is exact enough."""
    if x.dtype == "f32":
        return _sin_cos(x.convert("f64"), quadrant).convert("f32")
    shifted = x.fma(2 / math.pi, _F64.magic)
    n = shifted - _F64.magic
    r = x
    for part in _HALF_PI:
        r = n.fma(-part, r)
    z = r * r
    s = (z * r).fma(horner(z, _SIN), r)
    c = (z * z).fma(horner(z, _COS), z.fma(-0.5, 1.0))
    turn = shifted.bitcast("i64") + quadrant
    y = select((turn & 1).eq(0), s, c)
    y = select((turn & 2).eq(0), y, -y)
    # Where the reduction has lost all digits the result is arbitrary, but a sine. nan stays.
    y = _clamp(y, -1.0, 1.0)
    if not quadrant:
        y = select(x.eq(0), x, y)
    return select(abs(x) < math.inf, y, x - x)


# ---- power -------------------------------------------------------------------------------------


def _two_sum(a: E, b: E) -> tuple[E, E]:
    """a + b as a rounded sum and the exact rest (Knuth)."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def _two_product(a: E, b: E) -> tuple[E, E]:
    """a * b as a rounded product and the exact rest (Dekker: needs no fused multiply-add)."""

    def halves(v: E) -> tuple[E, E]:
        t = v * 134217729.0  # 2^27 + 1
        high = t - (t - v)
        return high, v - high

    p = a * b
    (ah, al), (bh, bl) = halves(a), halves(b)
    return p, ((ah * bh - p) + ah * bl + al * bh) + al * bl


def _log_pair(x: E) -> tuple[E, E]:
    """log(x) of a positive f64 as a sum of two, good to some 2^-60."""
    k, m = _split(x)
    v = m - 1
    d = v + 2
    d_rest = v - (d - 2)
    s = v / d
    p, p_rest = _two_product(s, d)
    s_rest = (((v - p) - p_rest) - s * d_rest) / d
    # The term (2 / 3) s^3 needs extra digits too; the terms after it do not.
    z, z_rest = _two_product(s, s)
    z_rest = z_rest + (s + s) * s_rest
    t, t_rest = _two_product(z, s)
    t_rest = t_rest + (z_rest * s + z * s_rest)
    u, u_rest = _two_product(t, s.of(_TWO_THIRDS[0]))
    u_rest = u_rest + (t_rest * _TWO_THIRDS[0] + t * _TWO_THIRDS[1])
    tail = z * t * horner(z, _LOG64[:-1])
    high, rest = _two_sum(k * _F64.ln2[0], s + s)
    high, more = _two_sum(high, u)
    low = (rest + more) + (tail + (s_rest + s_rest) + u_rest + k * _F64.ln2[1])
    total = high + low
    return total, low - (total - high)


def _exp_pair(high: E, low: E) -> E:
    """exp(high + low), for |high| <= 800."""
    n, r = _reduce_exp(high)
    r = r + low
    p = horner(r, _F64.exp)
    return ((r * r).fma(p, r) + 1).op("ldexp", n)


def pow(x: E, y: E) -> E:
    """exp(y log |x|) with IEEE 754's special cases; the logarithm carries extra digits."""
    if x.dtype == "f32":
        return _special_powers(_power32(x, y), x, y)
    high, low = _log_pair(abs(x))
    p = y * high
    inside = abs(p) < 800.0
    safe = select(inside, y, 0.0)
    q, rest = _two_product(safe, high)
    limit = _clamp(p, -800.0, 800.0)
    power = _exp_pair(select(inside, q, limit), select(inside, rest + safe * low, 0.0))
    return _special_powers(power, x, y)


def _power32(x: E, y: E) -> E:
    """|x|**y in f64, whose 29 further bits make up for the exponential's growth."""
    logarithm = _log_of_positive(abs(x).convert("f64"))
    return exp(y.convert("f64") * logarithm).convert("f32")


def _special_powers(power: E, x: E, y: E) -> E:
    a = abs(x)
    grows = select(a > 1, y > 0, y < 0)
    extreme = a.eq(0) | a.eq(math.inf) | abs(y).eq(math.inf)
    power = select(extreme, select(grows, math.inf, x.of(0)), power)
    power = select(a.eq(1), x.of(1), power)
    whole = y.op("trunc").eq(y)
    half = y * 0.5
    odd = whole & half.op("trunc").ne(half)
    negative = x.of(1).op("copysign", x) < 0
    power = select(negative & odd, -power, power)
    root = (x < 0) & (a < math.inf) & ~whole
    power = select(root, math.nan, power)
    power = select(x.is_nan() | y.is_nan(), math.nan, power)
    return select(y.eq(0) | x.eq(1), x.of(1), power)
