"""Calls the hand-written CPU kernels one at a time, through libnir_kernels.so and ctypes."""

from __future__ import annotations

import ctypes
import itertools
import pathlib
from collections.abc import Sequence

import numpy as np

LIBRARY = pathlib.Path(__file__).parents[1] / "build" / "libnir_kernels.so"

I64, PTR = ctypes.c_int64, ctypes.c_void_p
KERNEL = ctypes.CFUNCTYPE(ctypes.c_int32, PTR, PTR, PTR, I64, I64, I64, I64)


class Ctx(ctypes.Structure):
    """struct nir_ctx of kernels/cpu/nir_kernel.h."""

    _fields_ = (
        ("scratch", PTR),
        ("epilogue", PTR),
        ("epilogue_ptrs", PTR),
        ("epilogue_dims", PTR),
        ("detail", I64 * 2),
    )


def _open() -> ctypes.CDLL:
    lib = ctypes.CDLL(str(LIBRARY))
    lib.nir_find_kernel.restype = PTR
    lib.nir_find_kernel.argtypes = (ctypes.c_char_p, ctypes.c_char_p)
    lib.nir_best_isa.restype = ctypes.c_char_p
    lib.nir_isa_name.restype = ctypes.c_char_p
    lib.nir_has_isa.argtypes = (ctypes.c_char_p,)
    return lib


LIB = _open()
ISAS = [
    name.decode()
    for name in itertools.takewhile(bool, (LIB.nir_isa_name(i) for i in range(8)))
    if LIB.nir_has_isa(name)
]


class KernelError(Exception):
    """A kernel's status other than 0, with the context's detail."""


def guarded(shape: Sequence[int], dtype: object, fill: float = 77) -> tuple[np.ndarray, np.ndarray]:
    """An unaligned array and the whole memory round it, filled, to show writes out of bounds."""
    dtype = np.dtype(dtype)
    n = int(np.prod(shape))
    memory = np.full((n + 64) * dtype.itemsize, int(fill) & 0xFF, np.uint8)
    inner = memory[32 * dtype.itemsize - (dtype.itemsize // 2) :][: n * dtype.itemsize]
    return np.ndarray(shape, dtype, inner), memory


def pointer(a: np.ndarray) -> int:
    return a.ctypes.data


def call(
    name: str,
    isa: str,
    arrays: Sequence[np.ndarray],
    dims: Sequence[int],
    rows: int,
    cols: int = 1,
    *,
    row_cuts: Sequence[int] = (),
    col_cuts: Sequence[int] = (),
    scratch: int = 0,
    epilogue: object = None,
) -> None:
    """Runs kernel ``name`` over rows x cols, one call for each rectangle between the cuts."""
    address = LIB.nir_find_kernel(name.encode(), isa.encode())
    assert address, f"no kernel {name} for {isa}"
    fn = KERNEL(address)
    memory = np.full(scratch + 65536, 0xA5, np.uint8)
    start = -pointer(memory) % 64
    ctx = Ctx(scratch=pointer(memory) + start)
    hook = KERNEL(epilogue) if epilogue else None
    if hook:
        ctx.epilogue = ctypes.cast(hook, PTR)
    ptrs = (PTR * len(arrays))(*(pointer(a) for a in arrays))
    packed_dims = (I64 * len(dims))(*dims)
    for r0, r1 in itertools.pairwise([0, *row_cuts, rows]):
        for c0, c1 in itertools.pairwise([0, *col_cuts, cols]):
            status = fn(ctypes.byref(ctx), ptrs, packed_dims, r0, r1, c0, c1)
            if status:
                raise KernelError(status, tuple(ctx.detail))
    assert (memory[:start] == 0xA5).all() and (memory[start + scratch :] == 0xA5).all(), (
        f"{name} wrote outside its {scratch} bytes of scratch"
    )


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal byte for byte (every nan counts as equal to every nan)."""
    if a.dtype.kind == "f":
        a, b = np.where(np.isnan(a), np.nan, a), np.where(np.isnan(b), np.nan, b)
    return a.shape == b.shape and a.tobytes() == b.tobytes()


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def pack_b(b: np.ndarray, isa: str = "avx512") -> np.ndarray:
    """The packed panels of b[batch, K, N] (any strides), made by the kernel itself."""
    batch, k, n = b.shape
    out = np.full((batch, ceil_div(n, 16), k, 16), -1, b.dtype)
    sb, sk, sn = (s // b.itemsize for s in b.strides)
    suffix = {"float32": "f32", "float64": "f64", "int32": "i32", "int64": "i64"}[b.dtype.name]
    isa = isa if isa in ISAS else ISAS[0]
    call(
        f"nir_pack_b_{suffix}",
        isa,
        [b, out],
        [batch, 1, k, n, sb, 0, sk, sn],
        batch * ceil_div(n, 16),
    )
    return out
