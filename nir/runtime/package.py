"""Writes packages: an executable in one file, `.nirp`.

docs/package.md describes the format; package.cc reads it.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import struct
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from nir.ir.graph import Graph
from nir.ir.program import Program
from nir.ir.text import print_graph
from nir.ir.types import dtype
from nir.runtime.encode import encode, kernel_names

MAGIC = b"\x89NIRP\r\n\x1a"
VERSION = 1
_ALIGN = 64
_HEADER = struct.Struct("<8sIIQI32x")  # and the CRC-32 of these 60 bytes
_ENTRY = struct.Struct("<IIIIQQ")
_PROGRAM, _METADATA, _TEXT, _CONSTANT, _CODE = range(1, 6)
_LEVELS = {"plain": 0, "avx2": 1, "avx512": 2, "neon": 3}

Section = tuple[int, int, int, bytes]


def write_package(
    path: str | os.PathLike[str],
    program: Program,
    graph: Graph | None,
    codes: Mapping[str, Mapping[str, bytes]],
    levels: Sequence[str],
) -> None:
    """Write ``program`` with its constants, and ``codes`` for ``levels``; whole or not at all."""
    arrays: dict[str, np.ndarray] = {}
    text = "" if graph is None else print_graph(graph, arrays)
    number_of = {data: i for i, data in enumerate(program.constants)}
    about = {
        "name": program.name,
        "inputs": _named(program.input_names, program.inputs, "input"),
        "outputs": _named(program.output_names, program.outputs, "output"),
        "isa": list(levels),
        "arena": str(program.arena),
        # The text names large arrays by a hash: here is where they lie.
        "constants": [
            [name, number_of[a.tobytes()], str(dtype(a.dtype)), list(a.shape)]
            for name, a in arrays.items()
        ],
    }
    encoded = encode(program)
    sections: list[Section] = [
        (_PROGRAM, 0, 0, encoded),
        (_METADATA, 0, 0, json.dumps(about).encode()),
        (_TEXT, 0, 0, text.encode()),
    ]
    for number, name in enumerate(kernel_names(encoded)):
        for level in levels if name in codes else ():
            sections.append((_CODE, number, _LEVELS[level], codes[name][level]))
    sections += [(_CONSTANT, i, 0, data) for i, data in enumerate(program.constants)]
    _write(Path(path), _layout(sections))


def _named(names: Sequence[str], types: Sequence[object], what: str) -> list[list[str]]:
    names = names or [f"{what}{i}" for i in range(len(types))]
    return [[name, str(t)] for name, t in zip(names, types, strict=True)]


def _layout(sections: Sequence[Section]) -> list[bytes]:
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
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder", str(path.parent))
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
