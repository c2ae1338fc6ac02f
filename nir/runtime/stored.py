"""Compiled programs on disk: what an entry of the cache holds, and the executable made of it.

    entry   size of meta u32, meta (JSON), encoded program, constants, code of each generated kernel
    meta    {"isa": level, "program": size, "constants": [size], "codes": [[name, size]],
             "locations": [[file, line, backward]]}

Programs are found by structure, so that a line added above a model does not compile it again:
``locations`` are those of the graph that was compiled, in a canonical order, and an entry that is
used for other lines gets them in the place of its own.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from nir.frozen import Frozen, replace
from nir.ir.graph import Graph
from nir.ir.location import Location, Locations
from nir.ir.program import Call, Program
from nir.ir.text import print_graph
from nir.runtime import _core
from nir.runtime.encode import decode, encode
from nir.runtime.executable import Emit, Executable, constant_storage

_SIZE = struct.Struct("<I")


class Entry(Frozen):
    """A compiled program: its encoded form, constants, code for one ISA level, and locations."""

    isa: str
    encoded: bytes
    constants: tuple[bytes, ...]
    codes: Mapping[str, bytes]
    locations: tuple[Location, ...]

    def pack(self) -> bytes:
        """The bytes of the entry."""
        meta = json.dumps(
            {
                "isa": self.isa,
                "program": len(self.encoded),
                "constants": [len(c) for c in self.constants],
                "codes": [[name, len(code)] for name, code in self.codes.items()],
                "locations": [[loc.file, loc.line, loc.backward] for loc in self.locations],
            }
        ).encode()
        parts = [_SIZE.pack(len(meta)), meta, self.encoded, *self.constants, *self.codes.values()]
        return b"".join(parts)

    @staticmethod
    def unpack(data: bytes) -> Entry:
        """The entry in ``data``, which the cache has checked."""
        (size,) = _SIZE.unpack_from(data)
        at = _SIZE.size + size
        meta = json.loads(data[_SIZE.size : at])

        def take(count: int) -> bytes:
            nonlocal at
            at += count
            return data[at - count : at]

        return Entry(
            meta["isa"],
            take(meta["program"]),
            tuple([take(n) for n in meta["constants"]]),
            {name: take(n) for name, n in meta["codes"]},
            tuple(Location(*loc) for loc in meta["locations"]),
        )

    def at(self, locations: Sequence[Location]) -> Entry:
        """The entry for a graph of the same structure with other ``locations``."""
        if self.locations == tuple(locations):
            return self
        moved = dict(zip(self.locations, locations, strict=True))
        program = replace(
            decode(self.encoded, self.constants), codes={name: {} for name in self.codes}
        )
        calls = tuple(_moved(c, moved) for c in program.calls)
        return replace(
            self, encoded=encode(replace(program, calls=calls)), locations=tuple(locations)
        )


def entry_of(executable: Executable, isa: str, locations: Iterable[Location]) -> Entry:
    """What to store of ``executable``, which has code for ``isa`` and calls no host functions."""
    program = executable.program
    codes = {name: levels[isa] for name, levels in program.codes.items()}
    return Entry(isa, executable.encoded, program.constants, codes, tuple(locations))


def _moved(call: Call, moved: Mapping[Location, Location]) -> Call:
    locs: Locations = frozenset(moved.get(loc, loc) for loc in call.locs)
    if locs == call.locs:
        return call
    shares: dict[Location, int] = {}
    for loc, share in call.shares:  # several lines may have become one
        shares[moved.get(loc, loc)] = shares.get(moved.get(loc, loc), 0) + share
    return replace(call, locs=locs, shares=tuple(shares.items()))


class Stored(Executable):
    """An executable whose program was on disk: its graph is lowered when somebody looks at it."""

    def __init__(self, entry: Entry, lower: Callable[[], Graph], emit: Emit) -> None:
        start = time.perf_counter()
        self._entry, self._lower, self._emit, self.hosts = entry, lower, emit, {}
        self.encoded = entry.encoded
        codes = {name: {entry.isa: code} for name, code in entry.codes.items()}
        self._core = _core.Executable(
            entry.encoded, [constant_storage(c) for c in entry.constants], codes, {}, entry.isa
        )
        self._codes = codes
        self._program, self._graph = None, None
        self.compile_seconds = time.perf_counter() - start

    @property
    def program(self) -> Program:
        if self._program is None:
            program = decode(self._entry.encoded, self._entry.constants)
            self._program = replace(program, codes=self._codes)
        return self._program

    @property
    def graph(self) -> Graph:
        """The lowered graph."""
        if self._graph is None:
            self._graph = self._lower()
        return self._graph

    @property
    def text(self) -> str:
        return print_graph(self.graph)
