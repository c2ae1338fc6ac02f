"""Runs generated kernels one at a time: maps their blobs, or compiles their C text with gcc."""

from __future__ import annotations

import ctypes
import functools
import itertools
import mmap
import pathlib
import struct
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from kernel_harness import Ctx

from nir.codegen import LoopKernel, compile_blob, lower_fused, print_c, print_llvm
from nir.frozen import replace
from nir.ir.dim import Dim, Poly, symbol, value
from nir.ir.graph import Builder
from nir.ir.interp import run
from nir.ir.types import TensorType, dtype
from nir.ops.expr import Expr
from nir.ops.fused import Fused

I64, PTR = ctypes.c_int64, ctypes.c_void_p
KERNEL = ctypes.CFUNCTYPE(ctypes.c_int32, PTR, PTR, PTR, I64, I64, I64, I64)
_CPU_FLAGS = {"plain": "sse2", "avx2": "avx2", "avx512": "avx512dq"}


def isa_levels() -> list[str]:
    """The levels that this CPU runs."""
    flags = pathlib.Path("/proc/cpuinfo").read_text()
    return [isa for isa, flag in _CPU_FLAGS.items() if flag in flags]


ISAS = isa_levels()
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (PTR, ctypes.c_size_t, ctypes.c_int)
_mapped: list[object] = []  # code stays mapped until the process ends


@functools.cache
def _map(blob: bytes) -> Callable[..., int]:
    size, entry = struct.unpack_from("<QQ", blob, 32)
    memory = mmap.mmap(-1, size)
    memory[:size] = blob[64 : 64 + size]
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    if _libc.mprotect(start, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE, 5):
        raise OSError(ctypes.get_errno(), "mprotect")
    _mapped.append(memory)
    return KERNEL(start + entry)


@functools.cache
def llvm_function(text: str, isa: str) -> Callable[..., int]:
    return _map(compile_blob(text, isa))


@functools.cache
def c_function(text: str) -> Callable[..., int]:
    """The kernel of a C text, with fused multiply-adds only where the text has them."""
    flags = "-std=c11 -O1 -ffp-contract=off -mavx2 -mfma -Wall -Wextra -Werror -fPIC -shared"
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "k.c").write_text(text)
        command = ["gcc", *flags.split(), "k.c", "-o", "k.so", "-lm"]
        subprocess.run(command, cwd=folder, check=True)
        library = ctypes.CDLL(f"{folder}/k.so")
    _mapped.append(library)
    return ctypes.cast(library.k, KERNEL)


def call(
    kernel: LoopKernel,
    function: Callable[..., int],
    operands: Sequence[np.ndarray],
    result_types: Sequence[TensorType],
    env: dict[str, int],
    pieces: Sequence[tuple[int, int, int, int]] | None = None,
    accumulator: np.ndarray | None = None,
    over: Mapping[int, int] | None = None,
) -> list[np.ndarray]:
    """Run a kernel over its whole space, or over ``pieces`` (r0, r1, c0, c1) of it.

    Result k is written over operand ``over[k]``.
    """

    def number(d: Dim) -> int:
        return value(d, env) if isinstance(d, Poly) else d

    shapes = [tuple(map(number, t.shape)) for t in result_types]
    guards = [guarded(s, t.dtype.numpy) for s, t in zip(shapes, result_types, strict=True)]
    results = [g[0] for g in guards]
    if accumulator is not None and kernel.accumulator is not None:
        results[kernel.accumulator][...] = accumulator
    held = [np.ascontiguousarray(x) for x in operands]
    for k, i in (over or {}).items():
        results[k].reshape(-1).view(np.uint8)[...] = held[i].reshape(-1).view(np.uint8)
        held[i] = results[k]
    buffers = []
    for b in kernel.buffers:
        array = held[b.index] if b.kind == "operand" else results[b.index]
        buffers.append(array.ctypes.data)
    ptrs = (PTR * len(buffers))(*buffers)
    dims = (I64 * (len(kernel.dims) + 1))(*map(number, kernel.dims))
    scratch = np.zeros(number(kernel.scratch) + 64, np.uint8)
    ctx = Ctx(scratch=scratch.ctypes.data)
    rows, cols = number(kernel.rows), number(kernel.cols)
    for r0, r1, c0, c1 in pieces or [(0, rows, 0, cols)]:
        assert function(ctypes.byref(ctx), ptrs, dims, r0, r1, c0, c1) == 0
    for (array, memory), t in zip(guards, result_types, strict=True):
        before, after = 64, memory.nbytes - 64 - array.nbytes
        assert (memory[:before] == 0xA5).all(), f"written before a result {t}"
        assert (memory[memory.nbytes - after :] == 0xA5).all(), f"written after a result {t}"
    return [r.copy() for r in results]


def guarded(shape: Sequence[int], dtype_: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """An array that lies at an odd place in a filled memory, and that memory."""
    size = int(np.prod(shape)) * dtype_.itemsize
    memory = np.full(size + 129, 0xA5, np.uint8)
    return np.ndarray(shape, dtype_, memory[64 : 64 + size]), memory


def fused(form: str, types: Sequence[str], make: Callable[..., object]) -> Fused:
    """A region: ``make`` takes and returns Exprs; types are written "f32[B,4]"."""
    b = Builder(form)
    inputs = [b.input(parse_type(t)) for t in types]
    out = make(*(Expr(b, v) for v in inputs))
    outputs = out if isinstance(out, (tuple, list)) else (out,)
    body = b.build([o.value for o in outputs])
    return Fused(tuple(inputs), body, form)


def parse_type(text: str) -> TensorType:
    name, _, rest = text.partition("[")
    parts = [p for p in rest.rstrip("]").split(",") if p]
    shape = tuple(int(p) if p.isdigit() else symbol(p) for p in parts)
    return TensorType(dtype(name), shape)


def splits(kernel: LoopKernel, env: dict[str, int]) -> list[tuple[int, int, int, int]]:
    """The space cut at random rows and, where they may be cut, at multiples of the column grain."""
    rng = np.random.default_rng(0)
    rows = value(kernel.rows, env) if isinstance(kernel.rows, Poly) else kernel.rows
    cols = value(kernel.cols, env) if isinstance(kernel.cols, Poly) else kernel.cols
    cuts = sorted({0, rows, *(int(x) for x in rng.integers(0, rows + 1, 3))})
    edges = [0, cols]
    if kernel.col_grain:
        edges = sorted({0, cols, *range(kernel.col_grain, cols, kernel.col_grain)})
    return [
        (r0, r1, c0, c1)
        for r0, r1 in itertools.pairwise(cuts)
        for c0, c1 in itertools.pairwise(edges)
    ]


def run_all(
    region: Fused,
    operands: Sequence[np.ndarray],
    env: dict[str, int] | None = None,
    with_c: bool = False,
    accumulator: np.ndarray | None = None,
) -> dict[str, list[np.ndarray]]:
    """Results on every ISA level, whole and in pieces, and of the C text; bits compared here.

    The AVX levels agree bit for bit with each other, with every split and with the C text. So do
    runs that write results over the operands that the region says they may be written over.
    """
    kernel, env = lower_fused(region), env or {}
    types = region.body.output_types
    out: dict[str, list[np.ndarray]] = {}
    for isa in ISAS:
        function = llvm_function(print_llvm(kernel, isa), isa)
        out[isa] = call(kernel, function, operands, types, env, None, accumulator)
        parts = call(kernel, function, operands, types, env, splits(kernel, env), accumulator)
        same_bits(out[isa], parts, f"{isa} split")
        for over in takeovers(region):
            pieces = splits(kernel, env)
            again = call(kernel, function, operands, types, env, pieces, accumulator, over)
            same_bits(out[isa], again, f"{isa} with results over operands {over}")
    if "avx512" in out:
        same_bits(out["avx512"], out["avx2"], "avx512 and avx2")
    if with_c:
        c = call(kernel, c_function(print_c(kernel)), operands, types, env, None, accumulator)
        same_bits(out["avx2"], c, "avx2 and C")
        for over in takeovers(region):
            c = call(
                kernel, c_function(print_c(kernel)), operands, types, env, None, accumulator, over
            )
            same_bits(out["avx2"], c, f"C with results over operands {over}")
    return out


def takeovers(region: Fused) -> list[dict[int, int]]:
    """Results by number with the operands they take over: each pair, and as many as can at once."""
    region = replace(region, results=region.body.outputs)
    pairs = [(region.inputs.index(x), region.results.index(r)) for x, r in region.takes_over()]
    together: dict[int, int] = {}
    for i, k in pairs:
        if k not in together and i not in together.values():
            together[k] = i
    each = [{k: i} for i, k in pairs]
    return each + [together] * (len(together) > 1)


def same_bits(a: Sequence[np.ndarray], b: Sequence[np.ndarray], what: str) -> None:
    for x, y in zip(a, b, strict=True):
        if x.dtype.kind == "f":  # any nan equals any other
            assert np.array_equal(np.isnan(x), np.isnan(y)), what
            x, y = np.where(np.isnan(x), 0, x), np.where(np.isnan(y), 0, y)
        assert x.tobytes() == y.tobytes(), what


def reference(
    region: Fused, operands: Sequence[np.ndarray], env: dict[str, int] | None = None
) -> list[np.ndarray]:
    """The interpreter's results on these operands."""
    return run(region.body, operands, env)
