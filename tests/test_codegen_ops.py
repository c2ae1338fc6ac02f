"""Every elementwise op in generated code: samples against the reference, and errors in ulp."""

from __future__ import annotations

import decimal
import math
from collections.abc import Callable

import numpy as np
import pytest
from codegen_harness import ISAS, call, fused, llvm_function, reference, run_all

from nir.codegen import lower_fused, print_llvm
from nir.codegen.expand import FORMULAS
from nir.codegen.transcendental import ULP
from nir.ir.graph import Builder
from nir.ir.op import OPS, Op, Sample
from nir.ir.types import TensorType, dtype
from nir.ops.fused import Fused

ELEMENTWISE = {name: cls for name, cls in OPS.items() if cls.kind == "elementwise"}
# 80-bit extended precision, where the platform has it.
Long = np.longdouble
EXTENDED = np.finfo(Long).nmant >= 63


def region_of(cls: type[Op], sample: Sample) -> Fused:
    b = Builder("map")
    values = [b.input(TensorType(dtype(o.dtype), o.shape)) for o in sample.operands]
    results = b.emit(cls(*values, **sample.attributes))
    return Fused(tuple(values), b.build(results), "map")


def test_every_elementwise_op_has_a_formula() -> None:
    assert set(ELEMENTWISE) == FORMULAS


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_samples(name: str) -> None:
    for k, sample in enumerate(ELEMENTWISE[name].samples()):
        region = region_of(ELEMENTWISE[name], sample)
        (want,) = reference(region, sample.operands)
        for isa, (got,) in run_all(region, sample.operands, with_c=True).items():
            where = f"{name} sample {k} on {isa}"
            if want.dtype.kind != "f":
                np.testing.assert_array_equal(got, want, where)
                continue
            np.testing.assert_allclose(got, want, 4 * np.finfo(want.dtype).eps, err_msg=where)
            zero = (want == 0) & (got == 0) & (name not in ("maximum", "minimum"))
            np.testing.assert_array_equal(np.signbit(got[zero]), np.signbit(want[zero]), where)


# ---- accuracy ----------------------------------------------------------------------------------


def _sigmoid(x: np.ndarray) -> np.ndarray:
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


def _erf_digits(x: float) -> decimal.Decimal:
    """erf by its power series, with digits to spare for its cancellation up to |x| = 6."""
    with decimal.localcontext() as context:
        context.prec = 60
        d = decimal.Decimal(x)
        term, total, n = d, d, 0
        while abs(term) > decimal.Decimal(10) ** -45 * abs(d):
            n += 1
            term = -term * d * d / n
            total += term / (2 * n + 1)
        pi = decimal.Decimal("3.14159265358979323846264338327950288419716939937510582097494459")
        return total * 2 / pi.sqrt()


def _erf(x: np.ndarray) -> np.ndarray:
    if x.dtype == np.float64:  # exact enough for results in f32
        return np.vectorize(math.erf)(x)
    return np.array([Long(str(_erf_digits(float(v)))) for v in x], Long)


EXACT: dict[str, Callable[..., np.ndarray]] = {
    "exp": np.exp, "expm1": np.expm1, "log": np.log, "log1p": np.log1p, "tanh": np.tanh,
    "sigmoid": _sigmoid, "erf": _erf, "sin": np.sin, "cos": np.cos, "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x), "pow": np.power,
}  # fmt: skip


def arguments(name: str, kind: np.dtype) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    single = kind == np.float32
    count = 400 if name == "erf" and not single else 20000
    top = 87.0 if single else 707.0
    tiny, huge = (1e-37, 1e38) if single else (1e-300, 1e300)

    def uniform(a: float, b: float) -> np.ndarray:
        return rng.uniform(a, b, count)

    def spread(a: float, b: float) -> np.ndarray:
        return np.exp(rng.uniform(math.log(a), math.log(b), count))

    def signed(a: float, b: float) -> np.ndarray:
        return spread(a, b) * rng.choice([-1, 1], count)

    match name:
        case "exp":
            xs = [uniform(-top, top), signed(1e-6, 1)]
        case "expm1":
            xs = [uniform(-top, top), signed(1e-9, 1), uniform(-1, 1)]
        case "log":
            xs = [spread(tiny, huge), uniform(0.5, 2), 1 + signed(1e-6, 0.1)]
        case "log1p":
            xs = [signed(1e-9, 0.99), spread(1e-9, 1e9), uniform(-0.999, 3)]
        case "tanh":
            xs = [uniform(-12, 12), signed(1e-9, 1), uniform(-40, 40)]
        case "sigmoid":
            xs = [uniform(-80, 80), uniform(-5, 5)]
        case "erf":
            xs = [uniform(-6, 6), signed(1e-9, 1), uniform(-1.5, 1.5)]
        case "sin":
            xs = [uniform(-1e5, 1e5), uniform(-7, 7), signed(1e-6, 1)]
        case "cos":
            xs = [uniform(-1e5, 1e5), uniform(-7, 7)]
        case "pow":
            base = np.concatenate([spread(1e-17, 1e17), uniform(0.9, 1.1)]).astype(kind)
            base = base[base != 1]
            power = rng.uniform(-top, top, base.size) / np.log(base.astype(np.float64))
            return [base, power.astype(kind)]
        case _:
            xs = [spread(tiny, huge)]
    return [np.concatenate(xs).astype(kind)]


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("name", EXACT)
def test_ulp(name: str, kind: type) -> None:
    wide = np.float64 if kind == np.float32 else Long
    if wide is Long and not EXTENDED:
        pytest.skip("no extended precision here to measure f64 against")
    xs = arguments(name, np.dtype(kind))
    exact = EXACT[name](*(x.astype(wide) for x in xs))
    types = ["f32[N]" if kind == np.float32 else "f64[N]"] * len(xs)
    method = "__pow__" if name == "pow" else name
    region = fused("map", types, lambda *v: getattr(v[0], method)(*v[1:]))
    kernel = lower_fused(region)
    info = np.finfo(kind)
    bound = ULP[name][kind == np.float64]
    # Denormal results are flushed at run time, and count as zero here.
    sure = np.abs(exact) >= info.tiny
    for isa in ISAS:
        function = llvm_function(print_llvm(kernel, isa), isa)
        (got,) = call(kernel, function, xs, region.body.output_types, {"N": xs[0].size})
        assert np.isfinite(got[sure]).all()
        spacing = np.spacing(np.abs(exact[sure]).astype(kind)).astype(wide)
        error = np.abs(got[sure].astype(wide) - exact[sure]) / spacing
        worst = int(np.argmax(error))
        assert error[worst] <= bound, (
            f"{name} on {isa}: {float(error[worst]):.3f} ulp at {[x[sure][worst] for x in xs]}"
        )


def test_every_transcendental_has_a_bound() -> None:
    assert set(EXACT) == set(ULP)


def test_extremes() -> None:
    """Overflow, underflow and the ends of the number line."""
    inf, nan = np.inf, np.nan
    table: dict[str, list[tuple[float, float]]] = {
        "exp": [(inf, inf), (-inf, 0), (nan, nan), (89, inf), (1e30, inf), (-1e30, 0), (0, 1)],
        "expm1": [(inf, inf), (-inf, -1), (nan, nan), (-0.0, -0.0), (89, inf), (-50, -1)],
        "log": [(inf, inf), (0, -inf), (-0.0, -inf), (-1, nan), (-inf, nan), (nan, nan), (1, 0)],
        "log1p": [(inf, inf), (-1, -inf), (-2, nan), (-inf, nan), (nan, nan), (-0.0, -0.0)],
        "tanh": [(inf, 1), (-inf, -1), (nan, nan), (-0.0, -0.0), (50, 1)],
        "sigmoid": [(inf, 1), (-inf, 0), (nan, nan), (0, 0.5)],
        "erf": [(inf, 1), (-inf, -1), (nan, nan), (-0.0, -0.0), (9, 1)],
        "sin": [(inf, nan), (-inf, nan), (nan, nan), (-0.0, -0.0)],
        "cos": [(inf, nan), (-inf, nan), (nan, nan), (0, 1)],
        "rsqrt": [(0, inf), (inf, 0), (-1, nan), (nan, nan)],
    }
    for name, pairs in table.items():
        for kind, t in ((np.float32, "f32"), (np.float64, "f64")):
            x, want = (np.array(column, kind) for column in zip(*pairs, strict=True))
            if kind == np.float64:  # 89 overflows f32 only
                want = np.where(x == 89, math.exp(89), want)
            region = fused("map", [f"{t}[{x.size}]"], lambda v, name=name: getattr(v, name)())
            for isa, (got,) in run_all(region, [x], with_c=True).items():
                np.testing.assert_allclose(got, want, 1e-15 if t == "f64" else 1e-6, 0, err_msg=isa)
                zero = want == 0
                np.testing.assert_array_equal(np.signbit(got[zero]), np.signbit(want[zero]))


def test_large_angles_stay_sines() -> None:
    x = np.array([1e10, -1e20, 3e38, 123456792.0], np.float32)
    region = fused("map", ["f32[4]"], lambda v: (v.sin(), v.cos()))
    for results in run_all(region, [x]).values():
        for got in results:
            assert (np.abs(got) <= 1).all()


def wrapped(value: int, info: np.iinfo) -> int:
    size = 1 << info.bits
    return (value - info.min) % size + info.min


def test_integer_division_never_traps() -> None:
    """By 0, and of the smallest number by -1, in every dtype and every lane."""
    for name in ("i8", "i16", "i32", "i64", "u8"):
        info = np.iinfo(dtype(name).numpy)
        edge = sorted({info.min, info.min + 1, max(info.min, -7), 0, 1, 7, info.max})
        below = sorted({max(info.min, -3), max(info.min, -1), 0, 1, 2, info.min, info.max})
        x, y = (g.ravel().astype(dtype(name).numpy) for g in np.meshgrid(edge, below))
        region = fused("map", [f"{name}[{x.size}]"] * 2, lambda a, b: (a.floor_div(b), a.mod(b)))
        pairs = [(int(p), int(q)) for p, q in zip(x, y, strict=True)]
        want = [
            [wrapped(p // q, info) if q else 0 for p, q in pairs],
            [wrapped(p % q, info) if q else 0 for p, q in pairs],
        ]
        for results in run_all(region, [x, y], with_c=True).values():
            for got, w in zip(results, want, strict=True):
                assert got.tolist() == w


@pytest.mark.parametrize("source", ["f64", "f32", "i64", "i32", "i16", "i8", "u8", "bool"])
def test_casts(source: str) -> None:
    """From each dtype to each other one, ends of the ranges included."""
    kind = dtype(source).numpy
    if kind.kind == "f":
        big = [2.0**p for p in (7, 8, 15, 16, 31, 32, 63, 64)]
        values = [0, -0.0, 0.9, -0.9, 127.5, -128.5, 255.9, np.nan, np.inf, -np.inf, 1e20]
        x = np.array([*values, *big, *(-b for b in big), *(b - 1 for b in big)], kind)
    elif kind.kind == "b":
        x = np.array([True, False])
    else:
        info = np.iinfo(kind)
        x = np.array([0, 1, info.max, info.min, info.max // 3], kind)

    names = ("f64", "f32", "i64", "i32", "i16", "i8", "u8", "bool")
    region = fused("map", [f"{source}[{x.size}]"], lambda v: tuple(v.cast(dtype(n)) for n in names))
    want = reference(region, [x])
    for isa, results in run_all(region, [x], with_c=True).items():
        for name, got, w in zip(names, results, want, strict=True):
            np.testing.assert_array_equal(got, w, f"{source} to {name} on {isa}")
