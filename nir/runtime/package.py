"""Packages: an executable in one file, `.nirp`, which runs without tracing and without a compiler.

docs/package.md describes the format; package.cc reads it. A package holds native code: load only
those that you would run as a program.
"""

from __future__ import annotations

import json
import os
import secrets
import struct
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from nir import flags
from nir.errors import PackageError, UnsupportedError
from nir.ir.graph import location_text
from nir.ir.text import print_graph
from nir.ir.types import dtype
from nir.runtime import _core
from nir.runtime.encode import kernel_names
from nir.runtime.executable import Executable, Loaded

MAGIC = b"\x89NIRP\r\n\x1a"
VERSION = 1
_ALIGN = 64
_HEADER = struct.Struct("<8sIIQI32x")  # and the CRC-32 of these 60 bytes
_ENTRY = struct.Struct("<IIIIQQ")
_PROGRAM, _METADATA, _TEXT, _CONSTANT, _CODE = range(1, 6)
_LEVELS = {"plain": 0, "avx2": 1, "avx512": 2, "neon": 3}


def save(
    executable: Executable, path: str | os.PathLike[str], levels: Sequence[str] | None = None
) -> None:
    """Write ``executable`` to ``path``, with code for ``levels`` (all that nir generates code for).

    The file appears whole or not at all. Raises UnsupportedError for a program that calls functions
    of this process, naming the line, and for a level that there is no code for.
    """
    if isinstance(executable, Loaded):
        raise UnsupportedError(f"{executable.program.name} was loaded from a package: copy the file")
    program = executable.program
    for call in program.calls:
        if call.kernel in executable.hosts:
            raise UnsupportedError(
                f"{call.op}: a package cannot call functions of this process",
                location_text(call.locs) or None,
            )
    levels = flags.ISA_LEVELS if levels is None else levels
    codes = executable.codes(levels)
    arrays: dict[str, np.ndarray] = {}
    text = "" if executable.graph is None else print_graph(executable.graph, arrays)
    number_of = {data: i for i, data in enumerate(program.constants)}
    about = {
        "name": program.name,
        "inputs": [[n, str(t)] for n, t in zip(program.input_names, program.inputs, strict=False)],
        "outputs": [
            [n, str(t)] for n, t in zip(program.output_names, program.outputs, strict=False)
        ],
        "isa": list(levels),
        "arena": str(program.arena),
        # The text names large arrays by a hash: here is where they lie.
        "constants": [
            [name, number_of[a.tobytes()], str(dtype(a.dtype)), list(a.shape)]
            for name, a in arrays.items()
        ],
    }
    sections: list[tuple[int, int, int, bytes]] = [
        (_PROGRAM, 0, 0, executable.encoded),
        (_METADATA, 0, 0, json.dumps(about).encode()),
        (_TEXT, 0, 0, text.encode()),
    ]
    for number, name in enumerate(kernel_names(executable.encoded)):
        for level in levels if name in codes else ():
            sections.append((_CODE, number, _LEVELS[level], codes[name][level]))
    sections += [(_CONSTANT, i, 0, data) for i, data in enumerate(program.constants)]
    _write(Path(path), _layout(sections))


def load(
    path: str | os.PathLike[str], *, verify: bool = False, isa: str | None = None
) -> Executable:
    """The executable in ``path``, in milliseconds: the file is mapped, not read.

    Checksums are checked; those of weights above 16 MiB only with ``verify=True``, since that reads
    all of them. ``isa`` forces a level. Raises PackageError for a file that is damaged, foreign or
    of another version, and UnsupportedError where this machine cannot run its code.
    """
    core, encoded, text, about = _core.load_package(os.fspath(path), verify, isa or "")
    try:
        return Loaded(core, encoded, text.decode(), json.loads(about))
    except ValueError as error:
        raise PackageError(f"{os.fspath(path)}: damaged: {error}") from None


def metadata(executable: Executable) -> dict[str, Any]:
    """What the package said of itself: name, inputs, outputs, ISA levels, arena."""
    if not isinstance(executable, Loaded):
        raise PackageError("expected an executable that was loaded from a package")
    return executable.metadata


def _layout(sections: Sequence[tuple[int, int, int, bytes]]) -> list[bytes]:
    """The file in pieces: header, table, and each section behind its padding."""
    end = 64 + _ENTRY.size * len(sections)
    entries, body = [], []
    for kind, a, b, data in sections:
        offset = -(-end // _ALIGN) * _ALIGN
        entries.append(_ENTRY.pack(kind, a, b, zlib.crc32(data), offset, len(data)))
        body += [bytes(offset - end), data]
        end = offset + len(data)
    table = b"".join(entries)
    head = _HEADER.pack(MAGIC, VERSION, len(sections), end, zlib.crc32(table))
    return [head, struct.pack("<I", zlib.crc32(head)), table, *body]


def _write(path: Path, pieces: Sequence[bytes]) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise
