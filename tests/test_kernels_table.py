"""The CPU table: the kernel that it names for an op computes what the op's reference computes."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernel_harness import ISAS, LIB, call, guarded

from nir.frozen import replace
from nir.ir.dim import symbol, value
from nir.ir.op import OPS, Op, Sample, Value, construct
from nir.ir.types import TensorType, dtype, f32
from nir.ops import Conv2d, Conv2dInputGrad, Conv2dWeightGrad, Matmul, Pack, PackConv2d, Transpose
from nir.targets import cpu
from nir.targets.kernel_call import KernelCall

KERNEL_LIST = Path(__file__).parents[1] / "kernels" / "cpu" / "kernel_list.h"
_ids = itertools.count()


def made(op: Op) -> Any:
    """``op`` with results of its inferred types, as in a graph."""
    return replace(op, results=tuple(Value(next(_ids), t) for t in op.infer()))


def node(op_class: type[Op], sample: Sample, symbolic: tuple[int, ...] = ()) -> Any:
    """The sample's op; the operands numbered in ``symbolic`` have a first axis of size B."""
    values = []
    for i, a in enumerate(sample.operands):
        shape = (symbol("B"), *a.shape[1:]) if i in symbolic else a.shape
        values.append(Value(next(_ids), TensorType(dtype(a.dtype), shape)))
    return made(construct(op_class, values, sample.attributes))


def launch(kc: KernelCall, arrays, results: list[TensorType], isa: str) -> list[np.ndarray]:
    """The results of a KernelCall of static sizes."""
    outs = []
    for t in results:
        *batch, k, n = t.shape if t.layout else (0, 0)
        shape = (*batch, -(-n // 16), k, 16) if t.layout else t.shape
        outs.append(guarded(shape, t.dtype.numpy)[0])
    arrays = [np.ascontiguousarray(a) for a in arrays]
    call(kc.kernel, isa, [*arrays, *outs], kc.dims, kc.rows, kc.cols, scratch=kc.scratch)
    return [out.copy() for out in outs]


def packed_first(op: Any, arrays: list[np.ndarray], isa: str) -> tuple[Any, list[np.ndarray]]:
    """The op and its arrays after the packing that the table asks for."""
    entry = cpu.KERNELS[op.name](op)
    if entry is None or entry.pack is None:
        return op, arrays
    w = op.operands[entry.pack]
    if isinstance(op, Matmul):
        pack = made(Pack(w, op.transpose_rhs))
        op = replace(op, rhs=pack.result, transpose_rhs=False)
    else:
        back, image = isinstance(op, Conv2dInputGrad), getattr(op, "x_layout", "NHWC")
        pack = made(PackConv2d(w, op.weight_layout, op.groups, back, image))
        size = w.type.shape[2:] if op.weight_layout == "OIHW" else w.type.shape[:2]
        op = replace(op, w=pack.result, weight_layout="packed", kernel_size=size)
    kc = cpu.KERNELS[pack.name](pack)
    (panels,) = launch(kc, [arrays[entry.pack]], [pack.result.type], isa)
    return op, [panels if i == entry.pack else a for i, a in enumerate(arrays)]


# Ops that have a kernel for f32 only, and are decomposed otherwise.
SINGLE = {"attention", "attention_grad"}


def has_kernel(name: str, sample: Sample) -> bool:
    return name not in SINGLE or sample.operands[0].dtype == np.float32


CASES = [
    pytest.param(OPS[name], sample, id=f"{name}-{i}")
    for name in cpu.KERNELS
    if name not in ("pack", "pack_conv2d")  # their results have a layout: seen through their users
    for i, sample in enumerate(OPS[name].samples())
    if has_kernel(name, sample)
]


def check(op: Any, arrays: list[np.ndarray], wanted: list[np.ndarray], isa: str) -> None:
    op, arrays = packed_first(op, arrays, isa)
    entry = cpu.KERNELS[op.name](op)
    assert entry is not None, f"no kernel for {op.name} of {[v.type for v in op.operands]}"
    assert entry.pack is None
    got = launch(entry, arrays, [v.type for v in op.results], isa)
    for mine, want in zip(got, wanted, strict=True):
        tolerance = np.finfo(want.dtype).eps * 64 if want.dtype.kind == "f" else 0
        np.testing.assert_allclose(mine, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("op_class", "sample"), CASES)
def test_agrees_with_the_reference(op_class: type[Op], sample: Sample, isa: str) -> None:
    wanted = list(node(op_class, sample).ref(*sample.operands))
    check(node(op_class, sample), list(sample.operands), wanted, isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["conv2d", "conv2d_input_grad", "conv2d_weight_grad"])
def test_weights_stored_as_oihw(name: str, isa: str) -> None:
    for sample in OPS[name].samples():
        op = node(OPS[name], sample)
        (want,) = op.ref(*sample.operands)
        arrays = list(sample.operands)
        oihw = (3, 2, 0, 1)
        if name == "conv2d_weight_grad":
            op, want = made(replace(op, weight_layout="OIHW")), want.transpose(oihw)
        else:
            arrays[1] = arrays[1].transpose(oihw)
            w = made(Transpose(op.w, oihw)).result
            op = made(replace(op, w=w, weight_layout="OIHW"))
        check(op, arrays, [want], isa)


# (N, H, W, C, O), padding: odd and even images, tails of channels and columns, several blocks.
WINDOWS = [
    ((2, 5, 6, 3, 4), ((1, 1), (1, 1))),
    ((1, 8, 8, 40, 100), ((1, 1), (1, 1))),
    ((3, 7, 9, 17, 33), ((0, 0), (2, 1))),
    ((1, 4, 3, 70, 16), ((1, 0), (0, 2))),
    ((5, 13, 13, 16, 64), ((1, 1), (1, 1))),
    ((0, 6, 6, 8, 8), ((1, 1), (1, 1))),
    ((1, 3, 3, 2, 5), ((0, 0), (0, 0))),
]


def dtype_of(a: np.ndarray) -> Any:
    return dtype(a.dtype)


def windows(case: Any, dtype: type, back: bool) -> tuple[Any, Any, list[np.ndarray]]:
    """pack_conv2d and conv2d or its image gradient by Winograd's algorithm, and their arrays."""
    (n, h, w, c, o), padding = case
    rng = np.random.default_rng(0)
    size = [k + sum(p) - 2 for k, p in zip((h, w), padding, strict=True)]
    image = (n, *size, o) if back else (n, h, w, c)
    arrays = [rng.standard_normal(s).astype(dtype) for s in (image, (o, c, 3, 3))]
    values = [Value(next(_ids), TensorType(dtype_of(a), a.shape)) for a in arrays]
    pack = made(PackConv2d(values[1], "OIHW", 1, back, winograd=True))
    attributes = {"padding": padding, "weight_layout": "winograd", "kernel_size": (3, 3)}
    if back:
        op = made(Conv2dInputGrad(values[0], pack.result, input_size=(h, w), **attributes))
    else:
        op = made(Conv2d(values[0], pack.result, **attributes))
    return pack, op, arrays


@pytest.mark.parametrize("back", [False, True], ids=["forward", "image"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", WINDOWS, ids=str)
def test_winograd(case: Any, dtype: type, back: bool) -> None:
    pack, op, arrays = windows(case, dtype, back)
    plain = replace(op, w=pack.w, weight_layout="OIHW", kernel_size=())
    (want,) = plain.ref(*(a.astype(np.float64) for a in arrays))
    found = []
    for isa in ISAS:
        (u,) = launch(cpu.KERNELS["pack_conv2d"](pack), arrays[1:], [pack.result.type], isa)
        found.append(launch(cpu.KERNELS[op.name](op), [arrays[0], u], [op.result.type], isa)[0])
    bound = 12 * np.finfo(dtype).eps * np.sqrt(9 * arrays[0].shape[3])
    np.testing.assert_allclose(found[0], want, rtol=0, atol=bound * 3)
    for isa, other in zip(ISAS, found, strict=True):
        assert found[0].tobytes() == other.tobytes(), f"{isa} differs from {ISAS[0]}"
    (by_rule,) = op.ref(arrays[0], *pack.ref(arrays[1]))
    np.testing.assert_allclose(by_rule, want, rtol=0, atol=bound * 3)


def summed_windows(case: Any, dtype: type, layout: str) -> tuple[Any, list[np.ndarray]]:
    """conv2d_weight_grad by Winograd's algorithm, and its arrays."""
    (n, h, w, c, o), padding = case
    rng = np.random.default_rng(0)
    size = [k + sum(p) - 2 for k, p in zip((h, w), padding, strict=True)]
    arrays = [rng.standard_normal(s).astype(dtype) for s in ((n, h, w, c), (n, *size, o))]
    values = [Value(next(_ids), TensorType(dtype_of(a), a.shape)) for a in arrays]
    attributes = {"kernel_size": (3, 3), "padding": padding, "weight_layout": layout}
    return made(Conv2dWeightGrad(*values, **attributes, winograd=True)), arrays


@pytest.mark.parametrize("layout", ["HWIO", "OIHW"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", [*WINDOWS, ((9, 16, 15, 20, 24), ((1, 1), (1, 1)))], ids=str)
def test_winograd_of_weights(case: Any, dtype: type, layout: str) -> None:
    op, arrays = summed_windows(case, dtype, layout)
    (want,) = op.ref(*(a.astype(np.float64) for a in arrays))
    kc, t = cpu.KERNELS[op.name](op), op.result.type
    assert "winograd" in kc.kernel
    found = [launch(kc, arrays, [t], isa)[0] for isa in ISAS]
    bound = 64 * np.finfo(dtype).eps * np.abs(want).max(initial=1)
    np.testing.assert_allclose(found[0], want, rtol=0, atol=bound)
    for isa, other in zip(ISAS, found, strict=True):
        assert found[0].tobytes() == other.tobytes(), f"{isa} differs from {ISAS[0]}"
    out, _ = guarded(t.shape, t.dtype.numpy)
    cuts = {"row_cuts": [kc.rows // 2], "col_cuts": [16] if kc.cols > 16 else []}
    call(kc.kernel, ISAS[0], [*arrays, out], kc.dims, kc.rows, kc.cols, scratch=kc.scratch, **cuts)
    assert out.tobytes() == found[0].tobytes()


@pytest.mark.parametrize("isa", ISAS)
def test_winograd_in_pieces_with_an_epilogue(isa: str) -> None:
    pack, op, (x, w) = windows(WINDOWS[4], np.float32, False)
    (u,) = launch(cpu.KERNELS["pack_conv2d"](pack), [w], [pack.result.type], isa)
    kc, t = cpu.KERNELS["conv2d"](op), op.result.type
    (whole,) = launch(kc, [x, u], [t], isa)
    seen = np.zeros((kc.rows, kc.cols), int)

    def epilogue(_ctx: Any, _ptrs: Any, _dims: Any, r0: int, r1: int, c0: int, c1: int) -> int:
        seen[r0:r1, c0:c1] += 1
        return 0

    out, _ = guarded(t.shape, t.dtype.numpy)
    cuts = {"row_cuts": [1, 200, 338, kc.rows - 1], "col_cuts": [16, 48], "epilogue": epilogue}
    call(kc.kernel, isa, [x, u, out], kc.dims, kc.rows, kc.cols, scratch=kc.scratch, **cuts)
    assert out.tobytes() == whole.tobytes()
    assert (seen == 1).all()


# Operands whose first axis may be symbolic.
SYMBOLIC = {
    "matmul": (0,), "conv2d": (0,), "conv2d_input_grad": (0,), "conv2d_weight_grad": (0, 1),
    "max_pool2d": (0,), "max_pool2d_grad": (0, 1), "max_pool2d_select": (0, 1), "avg_pool2d": (0,),
    "avg_pool2d_grad": (0,), "cum_sum": (0,), "arg_max": (0,), "arg_min": (0,), "transpose": (0,),
    "flip": (0,), "pad": (0,), "dilate": (0,), "sort": (0,), "top_k": (0,),
}  # fmt: skip


@pytest.mark.parametrize("name", SYMBOLIC)
def test_symbolic_batch_gives_the_same_call(name: str) -> None:
    checked = 0
    for sample in OPS[name].samples():
        arrays = sample.operands
        if not arrays[0].ndim or sample.attributes.get("transpose_lhs"):
            continue
        if (name == "matmul" and arrays[0].ndim > 2) or arrays[0].shape[0] < 2:
            continue  # a batch axis is shared with rhs; axes of size 1 merge away
        static = cpu.KERNELS[name](node(OPS[name], sample))
        open_ = cpu.KERNELS[name](node(OPS[name], sample, SYMBOLIC[name]))
        env = {"B": arrays[0].shape[0]}
        for field in KernelCall.frozen_fields:
            want, got = getattr(static, field), getattr(open_, field)
            if field in ("row_grain", "work"):
                continue  # estimates: floors of sums need not agree
            if isinstance(got, tuple):
                assert tuple(value(d, env) for d in got) == want, field
            else:
                assert got == want or value(got, env) == want, field
        checked += 1
    assert checked


def test_every_kernel_named_is_built_and_every_kernel_built_is_listed() -> None:
    named = set()
    for name, entry in cpu.KERNELS.items():
        shown = [s for s in OPS[name].samples() if has_kernel(name, s)]
        nodes = [node(OPS[name], sample) for sample in shown]
        nodes += [windows(WINDOWS[0], np.float32, False)[1]] if name == "conv2d" else []
        if name == "conv2d_weight_grad":
            nodes.append(summed_windows(WINDOWS[0], np.float32, "OIHW")[0])
        for op in nodes:
            kc = entry(op)
            named.add(kc.kernel)
            for isa in ISAS:
                assert LIB.nir_find_kernel(kc.kernel.encode(), isa.encode()), kc.kernel
    families = {
        re.sub(r"(_(b?f16|f32|f64|i8|i16|i32|i64|u8|b\d+|packed|rows|cols))+$", "", k)
        for k in named
    }
    # `NIR_MATMUL(X, f32)` names a dtype, and makes the kernels of one op.
    text = KERNEL_LIST.read_text().split("#define NIR_KERNELS(X)")[1]
    text = re.sub(r"NIR_MATMUL\(X, [a-z0-9]+\)", "X(matmul)", text)
    listed = {f"nir_{re.sub('_(f32|f64|i32|i64|u8)', '', n)}"
              for n in re.findall(r"X,? ?\(?([a-z_0-9]+)\)", text)}  # fmt: skip
    # `fill` serves lowering, which has no op of its own for it.
    assert listed - families == {"nir_fill"}
    assert families <= listed


def test_epilogues_belong_to_kernels() -> None:
    assert cpu.KERNELS.keys() >= cpu.EPILOGUES


def test_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NIR_ISA", raising=False)
    assert cpu.target().isa == cpu.host_isa() == LIB.nir_best_isa().decode()
    monkeypatch.setenv("NIR_ISA", "plain")
    assert cpu.target().isa == "plain"
    assert cpu.target("avx2").isa == "avx2"


def test_dtypes_without_a_kernel_are_refused() -> None:
    half = Sample((np.ones((2, 3), np.float16), np.ones((3, 2), np.float16)))
    assert cpu.KERNELS["matmul"](node(Matmul, half)) is None
    assert (
        cpu.KERNELS["cum_sum"](node(OPS["cum_sum"], Sample(half.operands[:1], {"axis": 0}))) is None
    )


@pytest.mark.parametrize(
    ("m", "n", "transpose", "rows", "cols"),
    [
        (10, 100, True, 8, 32),  # less than a tile
        (100, 784, False, 100, 32),  # columns are cut, so that each is brought into panels once
        (100, 300, False, 13, 32),  # eight tiles of at most 13 rows
        (50, 100, True, 13, 32),
        (512, 1024, False, 28, 32),  # two full tiles
        (512, 1024, True, 512, 64),  # columns are cut, so that each is turned once
        (1024, 512, True, 28, 32),
        (symbol("B"), 1024, True, 8, 32),
    ],
)
def test_how_products_are_cut(m: Any, n: int, transpose: bool, rows: int, cols: int) -> None:
    k = 30
    a = Value(next(_ids), TensorType(f32, (m, k)))
    b = Value(next(_ids), TensorType(f32, (n, k) if transpose else (k, n)))
    call = cpu.KERNELS["matmul"](made(Matmul(a, b, False, transpose)))
    assert call is not None
    assert (call.row_grain, call.col_grain, call.even) == (rows, cols, False)


@pytest.mark.parametrize(("m", "n", "rows"), [(64, 512, 64), (512, 64, 28), (200, 64, 13)])
def test_a_large_operand_is_brought_into_panels_by_as_few_pieces_as_threads(
    m: int, n: int, rows: int
) -> None:
    k = 1 << 16
    a = Value(next(_ids), TensorType(f32, (k, m)))
    b = Value(next(_ids), TensorType(f32, (k, n)))
    call = cpu.KERNELS["matmul"](made(Matmul(a, b, True, False)))
    assert call is not None
    assert (call.row_grain, call.col_grain, call.even) == (rows, 32, m < 512)
