"""Generated loops against the interpreter: every form, every ISA level, any split of the range.

`run_all` compares bits between the AVX levels, between a whole call and its pieces, and with the
C text; here the values are compared with the reference.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from codegen_harness import ISAS, call, fused, llvm_function, reference, run_all, same_bits

from nir.codegen import lower_fused, print_c, print_llvm
from nir.errors import CodegenError, UnsupportedError
from nir.ir.dim import symbol
from nir.ir.types import DTYPES, DType, bf16, f16, f32, f64
from nir.ops import Constant, Conv2d, Full, Iota, Matmul, ReducePartial
from nir.ops.expr import Expr
from nir.ops.fused import Fused

B, N = symbol("B"), symbol("N")
RNG = np.random.default_rng(7)


def normal(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return RNG.standard_normal(shape).astype(dtype)


def integers(*shape: int, dtype: Any = np.int32, low: int = -50, high: int = 50) -> np.ndarray:
    return RNG.integers(low, high, shape).astype(dtype)


def emit(like: Expr, op: Any) -> Expr:
    (v,) = like.builder.emit(op)
    return Expr(like.builder, v)


def full(like: Expr, value: Any, shape: tuple[Any, ...], dtype: Any = f32) -> Expr:
    return emit(like, Full(value, shape, dtype))


def iota(like: Expr, shape: tuple[Any, ...], axis: int, dtype: str) -> Expr:
    return emit(like, Iota(shape, axis, DTYPES[dtype]))


def partial(x: Expr, op: str, chunk: int, leading: int = 1) -> Expr:
    return emit(x, ReducePartial(x.value, op, chunk, leading))


def check(
    region: Fused,
    operands: Sequence[np.ndarray],
    env: dict[str, int] | None = None,
    rtol: float = 2e-6,
    atol: float = 2e-6,
    with_c: bool = False,
    accumulator: np.ndarray | None = None,
) -> None:
    expected = reference(region, operands, env)
    for isa, results in run_all(region, operands, env, with_c, accumulator).items():
        for got, want in zip(results, expected, strict=True):
            assert got.dtype == want.dtype and got.shape == want.shape
            if want.dtype.kind == "f":
                np.testing.assert_allclose(got, want, rtol, atol, err_msg=isa)
            else:
                np.testing.assert_array_equal(got, want, err_msg=isa)


def over_rows(x: Expr, small: Expr) -> Expr:
    """A value for each row, repeated over the columns."""
    return small.broadcast(x.shape, tuple(range(len(small.shape))))


def softmax(x: Expr) -> Expr:
    axis = (len(x.shape) - 1,)
    e = (x - over_rows(x, x.max(axis))).exp()
    return e / over_rows(x, e.sum(axis))


def layer_norm(x: Expr, w: Expr, b: Expr) -> tuple[Expr, Expr, Expr]:
    n = full(x, x.shape[1], (x.shape[0],))
    mean = x.sum((1,)) / n
    d = x - over_rows(x, mean)
    scale = ((d * d).sum((1,)) / n + 1e-5).rsqrt()
    y = d * over_rows(x, scale) * w.broadcast(x.shape, (1,)) + b.broadcast(x.shape, (1,))
    return y, mean, scale


# ---- map ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", range(1, 68))
def test_map_of_every_width(width: int) -> None:
    region = fused(
        "map",
        [f"f32[B,{width}]", f"f32[{width}]", "f32[B]"],
        lambda x, w, r: (x * w.broadcast(x.shape, (1,)) + over_rows(x, r)).tanh(),
    )
    check(region, [normal(5, width), normal(width), normal(5)], {"B": 5}, with_c=width % 16 == 3)


@pytest.mark.parametrize("size", [0, 2, 15, 16, 64, 100, 4096, 4097, 9000])
def test_map_of_one_axis_shares_one_text(size: int) -> None:
    region = fused("map", [f"f32[{size}]", f"f32[{size}]"], lambda x, y: (x - y, x * y + 1.0))
    check(region, [normal(size), normal(size)])
    other = fused("map", ["f32[77]", "f32[77]"], lambda x, y: (x - y, x * y + 1.0))
    assert print_llvm(lower_fused(region), "avx2") == print_llvm(lower_fused(other), "avx2")


def test_contiguous_axes_collapse() -> None:
    region = fused("map", ["f32[B,3,5]", "f32[B,3,5]"], lambda x, y: x * y)
    kernel = lower_fused(region)
    assert (kernel.row_sizes, kernel.rows, kernel.cols) == ((), 1, 15 * B)
    check(region, [normal(7, 3, 5), normal(7, 3, 5)], {"B": 7}, with_c=True)


def test_map_with_symbolic_columns() -> None:
    region = fused("map", ["f32[B,N]", "f32[N]"], lambda x, w: x * w.broadcast(x.shape, (1,)))
    assert lower_fused(region).col_grain
    for b, n in [(3, 5), (0, 4), (4, 0), (2, 5000), (1, 64)]:
        check(region, [normal(b, n), normal(n)], {"B": b, "N": n}, with_c=True)


def row_of(x: Expr, i: int) -> Expr:
    n = x.shape[1]
    return x.slice((i, 0), (1, n), (1, 1)).reshape((n,))


def spread(x: Expr, w: Expr) -> Expr:
    """x times a value for each column."""
    return x * w.broadcast(x.shape, (1,))


MOVEMENTS: dict[str, tuple[list[str], Callable[..., Any]]] = {
    "transpose": (["f32[B,4,6]", "f32[4,B,6]"], lambda x, y: x.transpose((1, 0, 2)) + y),
    "transpose inner": (["f32[6,B]", "f32[B,6]"], lambda x, y: x.transpose((1, 0)) + y),
    "flip outer": (["f32[B,6]"], lambda x: x.flip((0,)) * 2.0),
    "flip inner": (["f32[B,21]", "f32[B,21]"], lambda x, y: x.flip((1,)) + y),
    "slice": (["f32[B,40]"], lambda x: x.slice((0, 3), (B, 30), (1, 1)).exp()),
    "slice step": (["f32[B,40]"], lambda x: x.slice((0, 1), (B, 19), (1, 2)) * 3.0),
    "slice rows": (["f32[9,B]", "f32[B]"], lambda x, y: row_of(x, 2) + y),
    "broadcast inner": (["f32[B,3]"], lambda x: x.broadcast((B, 3, 17), (0, 1)) + 1.0),
    "broadcast middle": (["f32[B,5]"], lambda x: x.broadcast((B, 4, 5), (0, 2)) + 1.0),
    "broadcast outer": (["f32[5]"], lambda x: x.broadcast((B, 4, 5), (2,)).exp()),
    "unit axes": (["f32[B,1,5]", "f32[B,5]"], lambda x, y: x.reshape((B, 5)) + y),
    "split": (["f32[B,12]", "f32[B,3,4]"], lambda x, y: (x + 1.0).reshape((B, 3, 4)) * y),
    "merge": (["f32[B,3,4]", "f32[12]"], lambda x, y: spread((x + 1.0).reshape((B, 12)), y)),
    "merge broadcast": (["f32[B,4]"], lambda x: -x.broadcast((B, 3, 4), (0, 2)).reshape((B, 12))),
    "merge transpose": (["f32[B,3,4]"], lambda x: x.transpose((0, 2, 1)).reshape((B, 12)).exp()),
    "merge leading": (["f32[B,3,4]"], lambda x: x.flip((1,)).reshape((3 * B, 4)).exp()),
}  # fmt: skip


@pytest.mark.parametrize("name", MOVEMENTS)
@pytest.mark.parametrize("b", [0, 1, 7])
def test_map_follows_movement(name: str, b: int) -> None:
    types, make = MOVEMENTS[name]
    region = fused("map", types, make)
    env = {"B": b}
    operands = [
        normal(*(d if isinstance(d, int) else b for d in v.type.shape)) for v in region.inputs
    ]
    check(region, operands, env, with_c=b == 7)


def test_sources() -> None:
    def make(x: Expr) -> tuple[Expr, ...]:
        column = iota(x, (B, 20), 1, "i64")
        row = iota(x, (B, 20), 0, "f32")
        flipped = iota(x, (B, 20), 1, "i32").flip((1,))
        constant = emit(x, Constant(np.array(2.5, np.float32))).broadcast((B, 20), ())
        return column, row * constant, flipped, x / full(x, B, (B, 20))

    check(fused("map", ["f32[B,20]"], make), [normal(5, 20)], {"B": 5}, with_c=True)


def test_scalars_and_mixed_dtypes() -> None:
    def make(x: Expr, i: Expr, c: Expr, s: Expr) -> tuple[Expr, ...]:
        wide = x.cast(DTYPES["f64"]) * s.broadcast(x.shape, ())
        return wide, c.where(i.cast(f32), x), i.cast(DTYPES["u8"]), (x.gt(x.zeros_like()))

    region = fused("map", ["f32[B,19]", "i16[B,19]", "bool[B,19]", "f64[]"], make)
    operands = [normal(4, 19), integers(4, 19, dtype=np.int16), normal(4, 19) > 0, np.array(1.5)]
    check(region, operands, {"B": 4}, with_c=True)


def test_scalar_space() -> None:
    region = fused("map", ["f32[]", "f32[]"], lambda x, y: (x / y, x.lt(y)))
    check(region, [normal(), normal()], with_c=True)


def test_map_in_place() -> None:
    """A result may lie where an operand of its shape lies."""
    region = fused("map", ["f32[B,70]", "f32[70]"], lambda x, w: x * w.broadcast(x.shape, (1,)) + x)
    kernel = lower_fused(region)
    x, w = normal(6, 70), normal(70)
    want = reference(region, [x, w])[0]
    # The harness keeps buffers apart, so the result takes the operand's pointer here.
    ptrs = (ctypes.c_void_p * 3)(x.ctypes.data, w.ctypes.data, x.ctypes.data)
    dims = (ctypes.c_int64 * 1)()
    function = llvm_function(print_llvm(kernel, ISAS[-1]), ISAS[-1])
    assert function(None, ptrs, dims, 0, 6, 0, 70) == 0
    np.testing.assert_allclose(x, want, 1e-6)


# ---- row ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [*range(1, 68), 127, 128, 129, 300, 1000])
def test_softmax_of_every_width(width: int) -> None:
    region = fused("row", [f"f32[B,{width}]"], softmax)
    check(region, [normal(4, width) * 5], {"B": 4}, with_c=width in (1, 7, 33, 129, 1000))


@pytest.mark.parametrize("width", [1, 16, 40, 65, 200])
@pytest.mark.parametrize("symbolic", [False, True])
def test_layer_norm(width: int, symbolic: bool) -> None:
    n = "N" if symbolic else width
    region = fused("row", [f"f32[B,{n}]", f"f32[{n}]", f"f32[{n}]"], layer_norm)
    operands = [normal(5, width), normal(width), normal(width)]
    check(region, operands, {"B": 5, "N": width}, 1e-4, 1e-5, with_c=True)


def all_reductions(x: Expr) -> tuple[Expr, ...]:
    return x.sum((1,)), x.prod((1,)), x.max((1,)), x.min((1,))


def test_rows_without_columns() -> None:
    region = fused(
        "row", ["f32[B,N]"], lambda x: (x.sum((1,)), x.max((1,)), x.prod((1,)), x.min((1,)))
    )
    check(region, [normal(3, 0)], {"B": 3, "N": 0}, with_c=True)
    check(region, [normal(0, 4)], {"B": 0, "N": 4})


def test_row_over_several_column_axes() -> None:
    """Columns that do not collapse: a weight for each channel of [B, C, H, W]."""

    def make(x: Expr, w: Expr) -> tuple[Expr, Expr]:
        y = x * w.broadcast(x.shape, (1,))
        total = y.exp().sum((1, 2, 3))
        return y.exp() / over_rows(x, total), total

    for c, h in [(3, 5), (2, 40), (5, 1)]:
        region = fused("row", [f"f32[B,{c},{h},{h}]", f"f32[{c}]"], make)
        check(region, [normal(4, c, h, h), normal(c)], {"B": 4}, 1e-5, with_c=True)
    region = fused("row", ["f32[B,4,N]", "f32[4]"], lambda x, w: softmax_over(x, w))
    check(region, [normal(3, 4, 77), normal(4)], {"B": 3, "N": 77}, 1e-5, with_c=True)


def softmax_over(x: Expr, w: Expr) -> Expr:
    y = x * w.broadcast(x.shape, (1,))
    e = (y - over_rows(x, y.max((1, 2)))).exp()
    return e / over_rows(x, e.sum((1, 2)))


def test_row_axes_that_do_not_collapse() -> None:
    def make(x: Expr, m: Expr) -> Expr:
        return softmax(x + m.broadcast(x.shape, (0, 3)))

    region = fused("row", ["f32[B,3,4,21]", "f32[B,21]"], make)
    check(region, [normal(2, 3, 4, 21), normal(2, 21)], {"B": 2}, 1e-5, with_c=True)


def test_cross_entropy_rows() -> None:
    """Log-softmax, the loss of the target class, and the gradient, in one kernel."""

    def make(x: Expr, t: Expr) -> tuple[Expr, Expr]:
        d = x - over_rows(x, x.max((1,)))
        e = d.exp()
        total = e.sum((1,))
        hit = iota(x, x.shape, 1, "i64").eq(over_rows(x, t))
        loss = total.log() - hit.where(d, x.zeros_like()).sum((1,))
        return loss, e / over_rows(x, total) - hit.cast(f32)

    region = fused("row", ["f32[B,10]", "i64[B]"], make)
    target = integers(9, dtype=np.int64, low=0, high=10)
    check(region, [normal(9, 10) * 3, target], {"B": 9}, 1e-5, with_c=True)


def test_reductions_of_every_dtype() -> None:
    for name in ("f64", "i64", "i32", "i16", "i8", "u8"):
        region = fused(
            "row",
            [f"{name}[B,53]"],
            lambda x: (x.sum((1,)), x.prod((1,)), x.max((1,)), x.min((1,))),
        )
        numpy = DTYPES[name].numpy
        x = normal(4, 53) if name == "f64" else integers(4, 53, low=0 if name == "u8" else -50)
        check(region, [x.astype(numpy)], {"B": 4}, 1e-12, 1e-12, with_c=True)
    region = fused("row", ["bool[B,53]"], lambda x: (x.max((1,)), x.min((1,))))
    x = normal(6, 53) > 0
    x[0], x[1] = True, False
    check(region, [x], {"B": 6}, with_c=True)


def test_nan_and_infinity_in_reductions() -> None:
    region = fused("row", ["f32[B,70]"], lambda x: (x.max((1,)), x.min((1,)), x.sum((1,))))
    x = normal(6, 70)
    x[0, 3] = x[1, 69] = np.nan
    x[2, 5] = x[3, 64] = np.inf
    x[4, 0] = -np.inf
    check(region, [x], {"B": 6}, with_c=True)


def test_full_reduction() -> None:
    region = fused("row", ["f32[N]", "f32[N]"], lambda x, y: (x * y).sum((0,)))
    for n in (0, 1, 63, 1000):
        check(region, [normal(n), normal(n)], {"N": n}, 1e-4, 1e-4, with_c=True)


def test_row_values_stored_over_columns() -> None:
    region = fused("row", ["f32[B,30]"], lambda x: (over_rows(x, x.max((1,))), x.max((1,))))
    check(region, [normal(5, 30)], {"B": 5}, with_c=True)


# ---- column ------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [*range(1, 20), 31, 32, 33, 48, 64, 65, 100, 300])
def test_column_sums(width: int) -> None:
    region = fused("column", [f"f32[B,{width}]"], lambda x: ((x * 2.0).sum((0,)), x.max((0,))))
    for b in (0, 1, 5, 37):
        check(region, [normal(b, width)], {"B": b}, 1e-5, 1e-5, with_c=(b, width) == (37, 33))


@pytest.mark.parametrize("width", [1, 3, 10, 16, 32, 64, 100])
@pytest.mark.parametrize("chunk", [4, 16])
def test_partial_sums(width: int, chunk: int) -> None:
    def make(x: Expr, m: Expr) -> tuple[Expr, Expr]:
        distance = (x - m.broadcast(x.shape, (1,))).abs()
        return partial(distance, "sum", chunk), partial(x, "min", chunk)

    region = fused("column", [f"f32[B,{width}]", f"f32[{width}]"], make)
    for b in (0, 1, 16, 37):
        check(region, [normal(b, width), normal(width)], {"B": b}, 1e-5, with_c=b == 37)


def test_partial_sums_over_several_axes() -> None:
    def make(x: Expr, w: Expr, s: Expr) -> Expr:
        y = x * w.broadcast(x.shape, (1, 3)) + s.broadcast(x.shape, (0,))
        return partial(y, "sum", 16, 3)

    region = fused("column", ["f32[B,5,4,20]", "f32[5,20]", "f32[B]"], make)
    check(region, [normal(7, 5, 4, 20), normal(5, 20), normal(7)], {"B": 7}, 1e-5, with_c=True)


def test_column_with_several_kept_axes() -> None:
    def make(x: Expr, w: Expr) -> tuple[Expr, Expr]:
        y = x * w.broadcast(x.shape, (1,))
        return y.sum((0,)), y.max((0,))

    region = fused("column", ["f32[B,3,40]", "f32[3]"], make)
    check(region, [normal(9, 3, 40), normal(3)], {"B": 9}, 1e-5, with_c=True)
    chunked = fused(
        "column",
        ["f32[B,3,40]", "f32[3]"],
        lambda x, w: partial(x * w.broadcast(x.shape, (1,)), "sum", 4),
    )
    check(chunked, [normal(9, 3, 40), normal(3)], {"B": 9}, 1e-5, with_c=True)


def test_ops_after_a_column_reduction() -> None:
    def make(x: Expr, w: Expr) -> tuple[Expr, Expr]:
        total = x.sum((0,)) / full(x, B, (40,))
        return total, (total * w + 1.0).exp()

    region = fused("column", ["f32[B,40]", "f32[40]"], make)
    check(region, [normal(9, 40), normal(40)], {"B": 9}, 1e-5, with_c=True)


def test_column_of_transposed_rows() -> None:
    """Axes in the middle come to the front by a transpose, which the loop follows by strides."""
    region = fused("column", ["f32[B,7,20]"], lambda x: x.transpose((1, 0, 2)).sum((0,)))
    check(region, [normal(5, 7, 20)], {"B": 5}, 1e-5, with_c=True)


def test_column_with_symbolic_kept_axes() -> None:
    def make(x: Expr, w: Expr) -> tuple[Expr, Expr]:
        y = x * w.broadcast(x.shape, (2,))
        return partial(y, "sum", 4), partial(x, "max", 4)

    region = fused("column", ["f32[B,N,3,20]", "f32[3]"], make)
    check(region, [normal(9, 2, 3, 20), normal(3)], {"B": 9, "N": 2}, 1e-5, with_c=True)
    whole = fused("column", ["f32[B,N,3,20]", "f32[N]"], lambda x, w: spread_first(x, w).sum((0,)))
    check(whole, [normal(9, 2, 3, 20), normal(2)], {"B": 9, "N": 2}, 1e-5, with_c=True)


def spread_first(x: Expr, w: Expr) -> Expr:
    return x * w.broadcast(x.shape, (1,))


def test_wide_columns_split() -> None:
    region = fused("column", ["f32[B,500]"], lambda x: x.sum((0,)))
    assert lower_fused(region).col_grain == 64
    check(region, [normal(20, 500)], {"B": 20}, 1e-5)


# ---- epilogue ----------------------------------------------------------------------------------


def matmul_region(make: Callable[..., Any], k: int = 8) -> Fused:
    def body(a: Expr, b: Expr, *rest: Expr) -> Any:
        return make(emit(a, Matmul(a.value, b.value)), *rest)

    types = [f"f32[B,{k}]", f"f32[{k},70]", "f32[70]", "f32[B,70]"]
    return fused("epilogue", types, body)


def tiles(rows: int, cols: int) -> list[tuple[int, int, int, int]]:
    return [
        (r, min(r + 3, rows), c, min(c + 32, cols))
        for r in range(0, rows, 3)
        for c in range(0, cols, 32)
    ]


def check_epilogue(
    region: Fused, operands: Sequence[np.ndarray], env: dict[str, int], heavy: np.ndarray
) -> None:
    kernel = lower_fused(region)
    types = region.body.output_types
    expected = reference(region, operands, env)
    out = {}
    for isa in ISAS:
        function = llvm_function(print_llvm(kernel, isa), isa)
        whole = call(kernel, function, operands, types, env, None, heavy)
        rows, cols = heavy.size // heavy.shape[-1], heavy.shape[-1]
        parts = call(kernel, function, operands, types, env, tiles(rows, cols), heavy)
        same_bits(whole, parts, f"{isa} tiles")
        out[isa] = whole
        for got, want in zip(whole, expected, strict=True):
            np.testing.assert_allclose(got, want, 1e-5, 1e-5)
    same_bits(out["avx2"], out[ISAS[-1]], "ISA levels")


def test_epilogue_in_place() -> None:
    region = matmul_region(
        lambda y, bias, r: (y + bias.broadcast(y.shape, (1,)) + r).relu(),
    )
    kernel = lower_fused(region)
    assert [(b.kind, b.index) for b in kernel.buffers] == [
        ("operand", 2), ("operand", 3), ("accumulator", 0), ("result", 0),
    ]  # fmt: skip
    a, b, bias, r = normal(7, 8), normal(8, 70), normal(70), normal(7, 70)
    check_epilogue(region, [a, b, bias, r], {"B": 7}, a @ b)


def test_epilogue_that_keeps_the_product() -> None:
    region = matmul_region(lambda y, bias, r: (y.gt(r), y, y * 2.0))
    a, b, bias, r = normal(7, 8), normal(8, 70), normal(70), normal(7, 70)
    assert lower_fused(region).accumulator == 1
    check_epilogue(region, [a, b, bias, r], {"B": 7}, a @ b)


def test_epilogue_of_a_convolution() -> None:
    def body(x: Expr, w: Expr, scale: Expr, r: Expr) -> Expr:
        y = emit(x, Conv2d(x.value, w.value, padding=((1, 1), (1, 1))))
        return (y * scale.broadcast(y.shape, (3,)) + r.transpose((0, 2, 1, 3))).relu()

    region = fused("epilogue", ["f32[B,5,4,3]", "f32[3,3,3,20]", "f32[20]", "f32[B,4,5,20]"], body)
    x, w, scale, r = normal(2, 5, 4, 3), normal(3, 3, 3, 20), normal(20), normal(2, 4, 5, 20)
    heavy_body = fused(
        "map", ["f32[B,5,4,3]", "f32[3,3,3,20]"],
        lambda x, w: emit(x, Conv2d(x.value, w.value, padding=((1, 1), (1, 1)))),
    )  # fmt: skip
    (heavy,) = reference(heavy_body, [x, w])
    check_epilogue(region, [x, w, scale, r], {"B": 2}, heavy)


# ---- text and errors ---------------------------------------------------------------------------


def test_text_is_deterministic() -> None:
    first = fused("row", ["f32[B,N]"], softmax)
    second = fused("row", ["f32[B,N]"], softmax)
    for isa in ("plain", "avx2", "avx512"):
        assert print_llvm(lower_fused(first), isa) == print_llvm(lower_fused(second), isa)
    assert print_c(lower_fused(first)) == print_c(lower_fused(second))


def test_row_count_is_not_in_the_text() -> None:
    a = fused("row", ["f32[B,40]"], softmax)
    b = fused("row", ["f32[17,40]"], softmax)
    assert print_llvm(lower_fused(a), "avx512") == print_llvm(lower_fused(b), "avx512")


KEYED: list[tuple[str, Callable[[Expr], Expr]]] = [
    ("map", lambda x: x.exp() * 2.0),
    ("row", lambda x: x.sum((len(x.shape) - 1,))),
    ("column", lambda x: x.sum((0,))),
    ("column", lambda x: partial(x, "sum", 4)),
]


def test_equal_keys_print_equally(monkeypatch: pytest.MonkeyPatch) -> None:
    """The printer remembers texts: kernels with one key have one text, printed afresh."""
    rng = np.random.default_rng(1)
    seen: dict[object, str] = {}
    hits = 0
    for _ in range(300):
        sizes = rng.choice(["B", "N", "1", "2", "3", "16", "40"], rng.integers(1, 4))
        form, make = KEYED[rng.integers(len(KEYED))]
        kernel = lower_fused(fused(form, [f"f32[{','.join(sizes)}]"], make))
        monkeypatch.setattr("nir.codegen.llvm._texts", {})
        printed = print_llvm(kernel, "avx2")
        hits += kernel.text_key in seen
        assert seen.setdefault(kernel.text_key, printed) == printed
    assert hits > 30


@pytest.mark.parametrize("half", [f16, bf16], ids=str)
@pytest.mark.parametrize("width", [1, 16, 37, 100])
def test_half_types_are_converted_where_they_are_read_and_written(half: DType, width: int) -> None:
    region = fused(
        "map",
        [f"{half}[B,{width}]", f"{half}[{width}]"],
        lambda x, y: ((x.cast(f32) * y.broadcast(x.shape, (1,)).cast(f32)).cast(half), x.cast(f64)),
    )
    operands = [normal(5, width).astype(half.numpy), normal(width).astype(half.numpy)]
    check(region, operands, {"B": 5}, with_c=True)


def test_arithmetic_in_half_types_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="add: no generated code for bf16"):
        lower_fused(fused("map", ["bf16[4]"], lambda x: x + x))


def test_unknown_isa_level() -> None:
    kernel = lower_fused(fused("map", ["f32[4]"], lambda x: x + x))
    with pytest.raises((ValueError, CodegenError), match="plain, avx2, avx512"):
        print_llvm(kernel, "sse9")
