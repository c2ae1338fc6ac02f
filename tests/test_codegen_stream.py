"""Results that no cache holds are written past it: the same bits, where they may be."""

from __future__ import annotations

import codegen_harness
import numpy as np
import pytest
from codegen_harness import ISAS, fused, llvm_function, reference, run_all

from nir.codegen import lower, lower_fused, print_llvm
from nir.codegen.loop import LoopKernel
from nir.ops.expr import Expr
from nir.ops.fused import Fused


def _softmax(x: Expr) -> Expr:
    e = (x - x.max((1,)).broadcast(x.shape, (0,))).exp()
    return e / e.sum((1,)).broadcast(x.shape, (0,))


def _norm(x: Expr) -> tuple[Expr, Expr]:
    """What is stored in an early stage is read back in a later one."""
    e = (x - x.sum((1,)).broadcast(x.shape, (0,)) * 0.003125).exp()
    return e, e * e.sum((1,)).broadcast(x.shape, (0,))


CASES = {
    "flat": fused("map", ["f32[9000]", "f32[9000]"], lambda x, y: x + y * 0.5),
    "rows": fused("map", ["f32[7,48]", "f32[48]"], lambda x, y: x * y.broadcast((7, 48), (1,))),
    "softmax": fused("row", ["f32[5,320]"], _softmax),
    "norm": fused("row", ["f32[5,320]"], _norm),
}


@pytest.fixture(autouse=True)
def _everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lower, "_STREAM_BYTES", 0)
    monkeypatch.setattr(lower, "_kernels", {})


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.full(size + 256, 0xA5, np.uint8)
    memory = memory[-memory.ctypes.data % 64 :][: size + 129]
    return np.ndarray(shape, dtype, memory[64 : 64 + size]), memory


def _operands(region: Fused) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.standard_normal(v.type.shape).astype(np.float32) for v in region.body.inputs]


@pytest.mark.parametrize("name", CASES)
def test_the_same_bits_wherever_results_lie(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    region, operands = CASES[name], _operands(CASES[name])
    unaligned = run_all(region, operands)
    monkeypatch.setattr(codegen_harness, "guarded", _aligned)
    aligned = run_all(region, operands)
    for isa in ISAS:
        codegen_harness.same_bits(unaligned[isa], aligned[isa], isa)
    for mine, want in zip(aligned[ISAS[0]], reference(region, operands), strict=True):
        np.testing.assert_allclose(mine, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("isa", ISAS)
def test_a_result_in_an_operands_place(isa: str) -> None:
    region = CASES["flat"]
    kernel: LoopKernel = lower_fused(region)
    x, y = (_aligned((9000,), np.dtype("f4"))[0] for _ in range(2))
    x[:], y[:] = _operands(region)
    want = x + y * np.float32(0.5)
    pointers = (codegen_harness.PTR * 3)(x.ctypes.data, y.ctypes.data, x.ctypes.data)
    assert not llvm_function(print_llvm(kernel, isa), isa)(None, pointers, None, 0, 1, 0, 9000)
    np.testing.assert_array_equal(x, want)


def test_what_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, region in CASES.items():
        kernel = lower_fused(region)
        text = print_llvm(kernel, ISAS[0])
        # What an early stage stores and a later one reads is not.
        assert len(kernel.streams) == 1, name
        assert text.count("!nontemporal !0") and "fence seq_cst" in text
    for shape in ("[5,321]", "[B,320]"):  # rows that are not aligned, or of unknown size
        region = fused("row", [f"f32{shape}"], _softmax)
        assert lower_fused(region).streams == ()
    monkeypatch.setattr(lower, "_STREAM_BYTES", 1 << 25)
    monkeypatch.setattr(lower, "_kernels", {})
    small = lower_fused(CASES["flat"])
    assert small.streams == () and "nontemporal" not in print_llvm(small, ISAS[0])
