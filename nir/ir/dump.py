"""NIR_DUMP: the graph after each pass that changed it, as files that `python -m nir` reads.

    dir/000-train_step/000-traced.nir
    dir/000-train_step/001-simplify.nir      "# 118 ops: 20 add, 7 broadcast, ..." and the graph
    dir/000-train_step/002-program.txt       what the executor runs
    dir/000-train_step/timings.tsv           file, ops, milliseconds

The graph files are the same for every run; times are kept out of them.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

from nir import flags
from nir.ir.graph import Graph
from nir.ir.printer import write_graph
from nir.ir.program import Program
from nir.ir.program_text import print_program

# Graphs dumped by this process into each directory: the number of the next one.
_next_number: dict[Path, int] = {}


class Dumper:
    """Writes the files of one compiled graph; make one for each compile."""

    def __init__(self, directory: str | Path, graph_name: str) -> None:
        base = Path(directory).resolve()
        number = _next_number.get(base, 0)
        _next_number[base] = number + 1
        self.folder = base / f"{number:03d}-{_safe(graph_name)}"
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in (*self.folder.glob("*.nir*"), *self.folder.glob("*-program.txt")):
            old.unlink()  # an earlier process wrote it
        self._timings = self.folder / "timings.tsv"
        self._timings.write_text("file\tops\tmilliseconds\n")
        self._count = 0
        self._since = time.perf_counter()

    @classmethod
    def from_flags(cls, graph_name: str) -> Dumper | None:
        """A dumper into NIR_DUMP; None if that is not set."""
        directory = flags.dump_dir()
        return None if directory is None else cls(directory, graph_name)

    def write(self, name: str, graph: Graph, seconds: float | None = None) -> Path:
        """Write ``graph`` under the next number; ``name`` is the pass that made it.

        ``seconds`` is what the pass took; without, the time since the last file was written, the
        passes in between that changed nothing included.
        """
        path, milliseconds = self._begin(f"{_safe(name)}.nir", seconds)
        write_graph(path, graph, header=op_counts(graph))
        self._end(path, len(graph.nodes), milliseconds)
        return path

    def write_program(self, program: Program, seconds: float | None = None) -> Path:
        """Write the text of the lowered program under the next number."""
        path, milliseconds = self._begin("program.txt", seconds)
        path.write_text(print_program(program), encoding="utf-8")
        self._end(path, len(program.calls), milliseconds)
        return path

    def _begin(self, name: str, seconds: float | None) -> tuple[Path, float]:
        spent = time.perf_counter() - self._since if seconds is None else seconds
        path = self.folder / f"{self._count:03d}-{name}"
        self._count += 1
        return path, 1e3 * spent

    def _end(self, path: Path, ops: int, milliseconds: float) -> None:
        with self._timings.open("a") as file:
            file.write(f"{path.name}\t{ops}\t{milliseconds:.3f}\n")
        self._since = time.perf_counter()


def op_counts(graph: Graph) -> str:
    """ "5 ops: 2 add, 3 relu", for the head of a file."""
    counts = ", ".join(f"{n} {name}" for name, n in graph.count().items())
    return f"{len(graph.nodes)} ops: {counts}" if counts else "0 ops"


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name) or "_"
