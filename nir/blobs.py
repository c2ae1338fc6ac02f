"""Machine code of loops, by their text: from this process, from the disk cache or from LLVM."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from types import TracebackType

from nir.codegen import CODEGEN_VERSION, Compiler, Job, LoopKernel, link, print_llvm, rest
from nir.runtime import get_num_threads, object_cache

# Blobs of this process by text and ISA level, so that equal loops of many programs are made once.
_blobs: dict[tuple[str, str], bytes] = {}


class Batch:
    """Loops that are compiled together, each from the moment it is known.

    At the end of the `with` block they are there for `blobs_of`, and on disk.
    """

    def __init__(self, isa: str) -> None:
        self.isa = isa
        self._compiler = Compiler(isa, get_num_threads())
        self._jobs: dict[str, Job] = {}

    def begin(self, text: str) -> None:
        """Have the loop of this text, from `loop_text`, compiled where nobody has done so."""
        if (text, self.isa) in _blobs or text in self._jobs:
            return
        found = object_cache().lookup(_parts(text, self.isa))
        if found is None:
            self._jobs[text] = self._compiler.begin(text)
        else:
            _blobs[text, self.isa] = found

    def __enter__(self) -> Batch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        with self._compiler:
            if error is not None:
                return
            for text, job in self._jobs.items():
                blob = link(job.object(), self.isa, "k")
                object_cache().store(_parts(text, self.isa), blob)
                _blobs[text, self.isa] = blob
        if self._jobs:
            rest()


def blobs_of(loops: Mapping[str, LoopKernel], isa: str) -> dict[str, bytes]:
    """The code of ``loops`` for an ISA level, by their names."""
    texts = {name: loop_text(kernel, isa) for name, kernel in loops.items()}
    with Batch(isa) as batch:
        for text in texts.values():
            batch.begin(text)
    return {name: _blobs[text, isa] for name, text in texts.items()}


def loop_text(kernel: LoopKernel, isa: str) -> str:
    """The LLVM IR of a loop without comments: they name sizes that the code does not depend on."""
    return _without_comments(print_llvm(kernel, isa))


@functools.lru_cache(1024)
def _without_comments(text: str) -> str:
    return re.sub(r"\s*;.*", "", text)


def _parts(text: str, isa: str) -> dict[str, str]:
    """What a loop's entry in the cache is found by."""
    return {"kernel": text, "isa": isa, "codegen": str(CODEGEN_VERSION)}
