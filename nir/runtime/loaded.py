"""Executables that come from packages.

A package holds native code: load only those that you would run as a program.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from nir.errors import PackageError, UnsupportedError
from nir.ir.graph import Graph
from nir.ir.program import Program
from nir.ir.text import parse_graph
from nir.ir.types import dtype
from nir.runtime import _core
from nir.runtime._core import Storage
from nir.runtime.encode import decode
from nir.runtime.executable import Executable


class Loaded(Executable):
    """An executable of a package; what only inspection needs is read when it is asked for.

    ``metadata`` is what the package says of itself: name, inputs, outputs, ISA levels, arena.
    """

    def __init__(self, core: _core.Executable, encoded: bytes, text: str, metadata: Any) -> None:
        self._core, self._encoded, self._text, self.metadata = core, encoded, text, metadata
        self.hosts, self.compile_seconds = {}, 0.0
        self._emit, self._codes = None, {}
        self._program, self._graph = None, None

    @property
    def program(self) -> Program:
        """The program, without constants and code."""
        if self._program is None:
            self._program = decode(self._encoded)
        return self._program

    @property
    def graph(self) -> Graph | None:
        """The lowered graph; None if it was saved without one. Bound weights are its inputs."""
        if self._graph is None and self._text:
            arrays = {
                name: self._core.constant(index).numpy().view(dtype(kind).numpy).reshape(shape)
                for name, index, kind, shape in self.metadata["constants"]
            }
            self._graph = parse_graph(self._text, arrays, self.metadata["name"])
        return self._graph

    @property
    def text(self) -> str:
        return self._text

    def save(
        self,
        path: str | os.PathLike[str],
        bound: Mapping[int, Storage] | None = None,
        levels: Sequence[str] | None = None,
    ) -> None:
        raise UnsupportedError(f"{self.program.name} was loaded from a package: copy the file")


def load(path: str | os.PathLike[str], *, verify: bool = False, isa: str | None = None) -> Loaded:
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
