"""Programs and blobs made by hand, for the tests of the runtime."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from nir.ir.dim import Dim, ceildiv, symbol
from nir.ir.location import Location
from nir.ir.program import Buffer, Call, Donation, Program
from nir.ir.types import TensorType, f32, i64
from nir.runtime import Executable, Storage

ROOT = Path(__file__).resolve().parent.parent
LEVELS = {"plain": 0, "avx2": 1, "avx512": 2, "neon": 3}
_HEADER = struct.Struct("<8sIIIIQQQIIQ")

B = symbol("B")
needs_gcc = pytest.mark.skipif(
    not all(map(shutil.which, ("gcc", "ld", "nm"))), reason="needs gcc and binutils"
)


def make_blob(
    image: bytes, isa: str = "plain", entry: int = 0, text: int | None = None, arch: int = 1
) -> bytes:
    """``image`` behind a header as nir/runtime/blob.h has it."""
    head = _HEADER.pack(
        b"NIRBLOB\0", 1, arch, LEVELS[isa], 64,
        len(image) if text is None else text, len(image), entry, zlib.crc32(image), 0, 0,
    )  # fmt: skip
    return head[:52] + struct.pack("<I", zlib.crc32(head[:52])) + head[56:] + image


_PRELUDE = """
#include "nir_kernel.h"
#define KERNEL __attribute__((section(".text.k"))) int32_t k(nir_ctx *ctx, void *const *p, \
  const int64_t *d, int64_t r0, int64_t r1, int64_t c0, int64_t c1)
"""


@cache
def gcc_image(source: str) -> tuple[bytes, int]:
    """(image, entry) of a C function `KERNEL { ... }`, linked flat: position-independent."""
    with tempfile.TemporaryDirectory() as folder:
        c, o, elf, flat = (Path(folder, n) for n in ("k.c", "k.o", "k.elf", "k.bin"))
        c.write_text(_PRELUDE + source)
        flags = "-O2 -fPIC -ffreestanding -fcf-protection=none -fno-asynchronous-unwind-tables"
        include = ["-I", str(ROOT / "kernels" / "cpu")]
        subprocess.run(["gcc", *flags.split(), *include, "-c", c, "-o", o], check=True)
        link = ["ld", "-Ttext=0", "-e", "k", "--gc-sections", "-n"]
        subprocess.run([*link, o, "-o", elf], check=True)
        subprocess.run(
            ["objcopy", "-O", "binary", "-R", ".note*", "-R", ".comment", elf, flat], check=True
        )
        names = subprocess.run(["nm", elf], check=True, capture_output=True, text=True).stdout
        found = re.search(r"^([0-9a-f]+) T k$", names, re.MULTILINE)
        assert found is not None
        return flat.read_bytes(), int(found[1], 16)


def gcc_codes(sources: Mapping[str, str], *isas: str) -> dict[str, dict[str, bytes]]:
    """Blobs of C kernels, the same for every level: baseline code runs on all of them."""
    out = {}
    for name, source in sources.items():
        image, entry = gcc_image(source)
        out[name] = {
            isa: make_blob(image, isa, entry) for isa in isas or ("plain", "avx2", "avx512")
        }
    return out


# dims: columns. Float arithmetic on whole rows.
ADD = """KERNEL { (void)ctx;
  const float *a = p[0], *b = p[1]; float *o = p[2];
  for (int64_t r = r0; r < r1; ++r) for (int64_t c = c0; c < c1; ++c)
    o[r * d[0] + c] = a[r * d[0] + c] + b[r * d[0] + c];
  return 0; }"""
SCALE = """KERNEL { (void)ctx;
  const float *a = p[0], *s = p[1]; float *o = p[2];
  for (int64_t r = r0; r < r1; ++r) for (int64_t c = c0; c < c1; ++c)
    o[r * d[0] + c] = a[r * d[0] + c] * s[0];
  return 0; }"""
# dims: columns, rows of the table. Fails on an index outside the table.
GATHER = """KERNEL {
  const float *t = p[0]; const int64_t *x = p[1]; float *o = p[2];
  for (int64_t r = r0; r < r1; ++r) {
    if (x[r] < 0 || x[r] >= d[1]) {
      ctx->detail[0] = x[r]; ctx->detail[1] = d[1]; return NIR_INDEX_OUT_OF_RANGE; }
    for (int64_t c = c0; c < c1; ++c) o[r * d[0] + c] = t[x[r] * d[0] + c];
  }
  return 0; }"""

LINE = frozenset({Location("model.py", 16)})


def two_step(columns: int = 4, donate: bool = False, work: Dim = 0) -> Program:
    """out = (x + y) * s, with x + y in the arena; x, y: f32[B,columns], s a constant 2."""
    nbytes = 4 * columns * B
    t = TensorType(f32, (B, columns))
    return Program(
        "two_step",
        (t, t),
        (t,),
        (
            Buffer("input", 0, 0, nbytes),
            Buffer("input", 1, 0, nbytes),
            Buffer("arena", 0, 0, nbytes),
            Buffer("const", 0, 0, 4),
            Buffer("output", 0, 0, nbytes),
        ),
        (
            Call("t_add", (0, 1, 2), (columns,), B, columns, work=work, op="add", locs=LINE),
            Call("t_scale", (2, 3, 4), (columns,), B, columns, work=work, op="mul", locs=LINE),
        ),
        64 * ceildiv(nbytes, 64),
        constants=(np.float32(2).tobytes(),),
        codes=gcc_codes({"t_add": ADD, "t_scale": SCALE}),
        donations=(Donation(0, 0),) if donate else (),
        input_names=("x", "y"),
        output_names=("out",),
    )


def gather_program(columns: int = 4, work: Dim = 0) -> Program:
    """out[r] = table[index[r]]; table: f32[N,columns], index: i64[B]."""
    n = symbol("N")
    return Program(
        "gather",
        (TensorType(f32, (n, columns)), TensorType(i64, (B,))),
        (TensorType(f32, (B, columns)),),
        (
            Buffer("input", 0, 0, 4 * columns * n),
            Buffer("input", 1, 0, 8 * B),
            Buffer("output", 0, 0, 4 * columns * B),
        ),
        (
            Call(
                "t_gather", (0, 1, 2), (columns, n), B, columns,
                work=work, op="take", locs=frozenset({Location("model.py", 7)}),
            ),
        ),
        0,
        codes=gcc_codes({"t_gather": GATHER}),
        input_names=("table", "index"),
    )  # fmt: skip


def run(exe: Executable, *arrays: np.ndarray) -> list[np.ndarray]:
    """The outputs as arrays."""
    return [o.numpy() for o in exe.run([Storage.from_numpy(a) for a in arrays])]
