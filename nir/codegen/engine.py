"""LLVM, through llvmlite: textual IR to machine code for an ISA level. Imported on use only.

Nine tenths of the time go into one call, `_emit`, which needs neither the interpreter's lock nor
llvmlite's: LLVM runs on many threads at once where each module has a context of its own and each
thread a target machine. `Compiler` makes objects on its own threads while Python goes on.
"""

from __future__ import annotations

import ctypes
import re
import threading
from collections import deque
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from nir.codegen.blob import link
from nir.errors import CodegenError

# Code is for named levels, never for the host's own features.
_CPU = {"plain": "x86-64", "avx2": "haswell", "avx512": "skylake-avx512"}
_TRIPLE = "x86_64-unknown-linux-gnu"


@cache
def _target() -> Any:
    import llvmlite.binding as llvm  # type: ignore[import-untyped]

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    return llvm.Target.from_triple(_TRIPLE)


def _machine(isa: str) -> Any:
    if isa not in _CPU:
        raise CodegenError(f"expected an ISA level of {', '.join(_CPU)}, got {isa!r}")
    return _target().create_target_machine(
        cpu=_CPU[isa], features="", opt=2, reloc="pic", codemodel="small"
    )


def _parse(text: str) -> Any:
    """The module of IR text, in a context of its own."""
    import llvmlite.binding as llvm

    try:
        module = llvm.parse_assembly(text, llvm.create_context())
        module.triple = _TRIPLE
        module.verify()
    except RuntimeError as error:
        raise CodegenError(f"LLVM refuses the generated code: {error}") from error
    return module


@cache
def _emit() -> Any:
    """llvmlite's function that makes objects, without the lock that llvmlite puts around it."""
    from llvmlite.binding import ffi

    own = ctypes.CDLL(ffi.lib._name).LLVMPY_TargetMachineEmitToMemory
    locked = ffi.lib.LLVMPY_TargetMachineEmitToMemory
    own.argtypes, own.restype = locked.argtypes, locked.restype
    return own


def compile_object(text: str, isa: str) -> bytes:
    """An ELF object for IR text. No IR pass runs: the text has its final form."""
    with Compiler(isa, 1) as compiler:
        return compiler.begin(text).object()


def assembly(text: str, isa: str) -> str:
    """The machine code as text, for people."""
    return str(_machine(isa).emit_assembly(_parse(text)))


def compile_blob(text: str, isa: str, entry: str = "k") -> bytes:
    """A position-independent blob (nir/codegen/blob.py) for IR text and an ISA level."""
    return link(compile_object(text, isa), isa, entry)


class Job:
    """A module that is being compiled, or waits for it."""

    def __init__(self, module: Any) -> None:
        from llvmlite.binding import ffi

        self.module, self.error = module, ffi.OutputString()
        self.buffer: Any = None
        self.done = threading.Event()

    def object(self) -> bytes:
        """The ELF object, once it is there; to be asked for once."""
        from llvmlite.binding import ffi

        self.done.wait()
        if not self.buffer:
            raise CodegenError(f"LLVM cannot compile the generated code: {self.error}")
        start = ffi.lib.LLVMPY_GetBufferStart(self.buffer)
        data = ctypes.string_at(start, ffi.lib.LLVMPY_GetBufferSize(self.buffer))
        ffi.lib.LLVMPY_DisposeMemoryBuffer(self.buffer)
        return data


class Compiler:
    """Makes objects for one ISA level on ``threads`` threads, which end with the `with` block."""

    def __init__(self, isa: str, threads: int) -> None:
        self.isa = isa
        self._limit = threads
        self._threads: list[threading.Thread] = []
        self._jobs: deque[Job] = deque()
        self._some = threading.Condition()
        self._closed = False

    def begin(self, text: str) -> Job:
        """Parse IR text, and have an object made of it. Raises CodegenError for a wrong text."""
        machine = _machine(self.isa) if len(self._threads) < self._limit else None
        job = Job(_parse(text))
        with self._some:
            self._jobs.append(job)
            self._some.notify()
        if machine is not None:
            thread = threading.Thread(target=self._work, args=(machine,), name="nir-llvm")
            self._threads.append(thread)
            thread.start()
        return job

    def _work(self, machine: Any) -> None:
        emit = _emit()
        while True:
            with self._some:
                while not self._jobs and not self._closed:
                    self._some.wait()
                if not self._jobs:
                    return
                job = self._jobs.popleft()
            try:
                job.buffer = emit(machine, job.module, 1, job.error)
            finally:
                job.done.set()

    def __enter__(self) -> Compiler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        with self._some:
            self._closed = True
            self._some.notify_all()
        for thread in self._threads:
            thread.join()


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
    if hasattr(libc, "malloc_trim"):  # glibc keeps what other threads have freed
        libc.malloc_trim(0)
    return given
