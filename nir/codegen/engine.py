"""LLVM, through llvmlite: textual IR to machine code for an ISA level. Imported on use only."""

from __future__ import annotations

import ctypes
import re
from functools import cache
from pathlib import Path
from typing import Any

from nir.codegen.blob import link
from nir.errors import CodegenError

# Code is for named levels, never for the host's own features.
_CPU = {"plain": "x86-64", "avx2": "haswell", "avx512": "skylake-avx512"}
_TRIPLE = "x86_64-unknown-linux-gnu"


@cache
def _machine(isa: str) -> Any:
    import llvmlite.binding as llvm  # type: ignore[import-untyped]

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple(_TRIPLE)
    return target.create_target_machine(
        cpu=_CPU[isa], features="", opt=2, reloc="pic", codemodel="small"
    )


def compile_object(text: str, isa: str) -> bytes:
    """An ELF object for IR text. No IR pass runs: the text has its final form."""
    import llvmlite.binding as llvm

    if isa not in _CPU:
        raise CodegenError(f"expected an ISA level of {', '.join(_CPU)}, got {isa!r}")
    machine = _machine(isa)
    try:
        module = llvm.parse_assembly(text)
        module.triple = _TRIPLE
        module.verify()
    except RuntimeError as error:
        raise CodegenError(f"LLVM refuses the generated code: {error}") from error
    return bytes(machine.emit_object(module))


def assembly(text: str, isa: str) -> str:
    """The machine code as text, for people."""
    import llvmlite.binding as llvm

    module = llvm.parse_assembly(text)
    module.triple = _TRIPLE
    return str(_machine(isa).emit_assembly(module))


def compile_blob(text: str, isa: str, entry: str = "k") -> bytes:
    """A position-independent blob (nir/codegen/blob.py) for IR text and an ISA level."""
    return link(compile_object(text, isa), isa, entry)


_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r-xp .*llvmlite.*\.so$")
_DONTNEED = 4  # MADV_DONTNEED of Linux


def rest() -> int:
    """Give back the memory in which LLVM's code lies, some 50 MB; the bytes that were mapped.

    A program that has compiled its kernels rarely compiles more. Pages of code are those of the
    library's file and never written: what is needed again is mapped again.
    """
    libc = ctypes.CDLL(None)
    given = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        if found := _MAPPING.match(line):
            start, end = (int(x, 16) for x in found.groups())
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _DONTNEED)
            given += end - start
    return given
