"""Blobs: the linker's closed list, the header, and code that depends on nothing outside itself."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib

import pytest
from codegen_harness import fused

from nir.codegen import compile_blob, compile_object, link, lower_fused, print_llvm
from nir.codegen.blob import _sections, _symbols
from nir.errors import CodegenError

HEADER = struct.Struct("<8sIIIIQQQIIQ")


def text(isa: str = "avx2") -> str:
    region = fused("map", ["f32[B,40]"], lambda x: x.exp() * 3.0)
    return print_llvm(lower_fused(region), isa)


@pytest.mark.parametrize("isa", ["plain", "avx2", "avx512"])
def test_header(isa: str) -> None:
    blob = compile_blob(text(isa), isa)
    magic, version, arch, level, header, size, image, entry, crc, head_crc, zero = HEADER.unpack(
        blob[:64]
    )
    assert (magic, version, arch, header, zero) == (b"NIRBLOB\0", 1, 1, 64, 0)
    assert level == {"plain": 0, "avx2": 1, "avx512": 2}[isa]
    assert 0 < size <= image == len(blob) - 64 and entry < size
    assert crc == zlib.crc32(blob[64:])
    assert head_crc == zlib.crc32(blob[:52])


def test_blobs_are_deterministic() -> None:
    assert compile_blob(text(), "avx2") == compile_blob(text(), "avx2")


def test_code_is_for_named_levels() -> None:
    blobs = {isa: compile_blob(text(isa), isa) for isa in ("plain", "avx2", "avx512")}
    assert len(set(blobs.values())) == 3


def test_undefined_symbol_is_refused_by_name() -> None:
    ir = """
declare float @expf(float)
define i32 @k(ptr %p) nounwind {
  %x = load float, ptr %p
  %y = call float @expf(float %x)
  store float %y, ptr %p
  ret i32 0
}
"""
    with pytest.raises(CodegenError, match="undefined symbol 'expf'"):
        compile_blob(ir, "avx2")


def test_writable_data_is_refused() -> None:
    ir = """
@state = internal global i32 7
define i32 @k(ptr %p) nounwind {
  %x = load volatile i32, ptr @state
  store volatile i32 %x, ptr @state
  ret i32 %x
}
"""
    with pytest.raises(CodegenError, match="writable data"):
        compile_blob(ir, "avx2")


def test_unwind_tables_are_refused() -> None:
    ir = "define i32 @k(ptr %p) uwtable {\n  ret i32 0\n}\n"
    with pytest.raises(CodegenError, match="unwind"):
        compile_blob(ir, "avx2")


def test_missing_entry() -> None:
    with pytest.raises(CodegenError, match="'other'"):
        link(compile_object(text(), "avx2"), "avx2", "other")


def test_broken_ir_is_an_error() -> None:
    with pytest.raises(CodegenError, match="LLVM refuses"):
        compile_blob("define i32 @k( {", "avx2")


def test_unknown_level() -> None:
    with pytest.raises(CodegenError, match="plain, avx2, avx512"):
        compile_blob(text(), "sse9")


def test_foreign_object() -> None:
    with pytest.raises(CodegenError, match="not a 64-bit"):
        link(b"MZ" + bytes(100), "avx2", "k")
    obj = bytearray(compile_object(text(), "avx2"))
    struct.pack_into("<H", obj, 18, 183)
    with pytest.raises(CodegenError, match="machine 183"):
        link(bytes(obj), "avx2", "k")


def relocations(obj: bytes) -> list[tuple[int, int]]:
    """(offset in the file, type) of each relocation of the text."""
    (table,) = struct.unpack_from("<Q", obj, 40)
    size, count, _ = struct.unpack_from("<HHH", obj, 58)
    out = []
    for i in range(count):
        _, kind, _, _, at, length = struct.unpack_from("<IIQQQQ", obj, table + i * size)
        if kind == 4:
            out += [
                (at + j, struct.unpack_from("<I", obj, at + j + 8)[0]) for j in range(0, length, 24)
            ]
    return out


def test_unknown_relocations_are_refused() -> None:
    """Each relocation of a real object, changed to each type that the list lacks."""
    obj = compile_object(text(), "avx2")
    found = relocations(obj)
    assert {kind for _, kind in found} <= {2, 4} and found
    for at, _ in found[:4]:
        for kind in (1, 3, 9, 10, 11, 24, 41, 42, 99):
            changed = bytearray(obj)
            struct.pack_into("<I", changed, at + 8, kind)
            with pytest.raises(CodegenError, match=f"relocation of type {kind} "):
                link(bytes(changed), "avx2", "k")


def test_relocation_outside_its_section_is_refused() -> None:
    obj = bytearray(compile_object(text(), "avx2"))
    at, _ = relocations(bytes(obj))[0]
    struct.pack_into("<Q", obj, at, 1 << 40)
    with pytest.raises(CodegenError, match="beyond the end"):
        link(bytes(obj), "avx2", "k")


def test_no_level_needs_a_library() -> None:
    """All formulas at once: no call of libm or memcpy is left on any level."""
    names = ("exp", "expm1", "log", "log1p", "tanh", "sigmoid", "erf", "sin", "cos", "sqrt",
             "rsqrt", "floor", "ceil", "trunc", "round")  # fmt: skip
    for dtype in ("f32", "f64"):
        for name in names:
            region = fused("map", [f"{dtype}[B]"], lambda x, name=name: getattr(x, name)())
            for isa in ("plain", "avx2", "avx512"):
                obj = compile_object(print_llvm(lower_fused(region), isa), isa)
                undefined = [s.name for s in _symbols(_sections(obj)) if s.name and not s.section]
                assert not undefined, f"{name} of {dtype} on {isa}: {undefined}"


def test_import_does_not_import_llvmlite() -> None:
    code = "import nir.codegen, sys; sys.exit('llvmlite' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
