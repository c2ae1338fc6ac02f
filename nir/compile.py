"""Graph -> passes -> Program -> Executable: the only place where the stages meet."""

from __future__ import annotations

import functools
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nir import flags
from nir.blobs import Batch, blobs_of, loop_text
from nir.codegen import LoopKernel, lower_fused
from nir.errors import UnsupportedError, VerifyError
from nir.frozen import replace
from nir.ir.compare import beyond_rounding, worst
from nir.ir.dump import Dumper
from nir.ir.graph import Graph, location_text
from nir.ir.interp import random_inputs, run
from nir.ir.location import Location
from nir.ir.op import OPS
from nir.ir.program import Target
from nir.lower import lower
from nir.ops import HostCall
from nir.ops.fused import Fused
from nir.passes.budget import check_budget
from nir.passes.pipeline import PIPELINE, Pass, run_pipeline
from nir.runtime import (
    Entry,
    Executable,
    InterpExecutable,
    Storage,
    Stored,
    as_storage,
    entry_of,
    get_num_threads,
    object_cache,
)  # fmt: skip
from nir.targets import cpu


def compile_graph(
    graph: Graph, target: str | Target = "cpu", memory: int | None = None
) -> Executable | InterpExecutable:
    """Compile ``graph`` for ``target``: "cpu", or "interp", the reference interpreter.

    A graph that has a memory plan is lowered already, and taken as it is. A program that was
    compiled before, in whichever process, comes from the cache on disk. Dumps and verification
    compile anew. Raises UnsupportedError, with the user's line, for an op that the target
    can neither run nor take apart, and MemoryBudgetError for a program that does not fit in
    ``memory`` bytes besides its inputs.
    """
    start = time.perf_counter()
    machine = resolve_target(target)
    if machine.name == "interp":
        return InterpExecutable(graph)
    if memory is not None:
        machine = replace(machine, memory=memory)
    parts = program_parts(graph, machine)
    if parts is None:
        return compile_with(graph, machine, start)
    locations, _ = locations_of(graph)
    cache = object_cache()
    stored = stored_program(cache.lookup(parts), locations, Later(lambda: graph, machine), start)
    if stored is not None:
        return stored
    executable = compile_with(graph, machine, start)
    cache.store(parts, entry_of(executable, machine.isa, locations).pack())
    return executable


def compile_with(
    graph: Graph, machine: Target, start: float, passes: Sequence[Pass] = PIPELINE
) -> Executable:
    dump = Dumper.from_flags(graph.name)
    # Host functions may have effects: they run once a run, never for a comparison.
    checked = flags.verify() and passes is PIPELINE and not calls_host(graph)
    inputs = random_inputs(graph) if checked else None
    planned = graph.plan is not None  # a dump of the last pass
    with Batch(machine.isa) as batch:
        # Loops are final once they are fused: LLVM has them while the other passes run.
        begin = {"fuse": functools.partial(_begin_loops, batch)}
        lowered = graph if planned else run_pipeline(graph, machine, dump, inputs, passes, begin)
        program, loops, hosts = lower(lowered, machine, batch.begin)
    check_budget(lowered, program, machine)
    if dump is not None:
        dump.write_program(program)
    executable = Executable(
        program,
        graph=lowered,
        compile_seconds=time.perf_counter() - start,
        emit=lambda isa: blobs_of(loops, isa),
        hosts=hosts,
        isa=machine.isa,
    )
    if inputs is not None:
        _check_outputs(graph, executable, inputs)
    return executable


def _begin_loops(batch: Batch, graph: Graph) -> None:
    for op in graph.nodes:
        if isinstance(op, Fused):
            batch.begin(loop_text(lower_fused(op), batch.isa))
        else:
            for _, region in op.regions():
                _begin_loops(batch, region)


# ---- programs on disk --------------------------------------------------------------------------


def program_parts(graph: Graph, target: Target) -> dict[str, str] | None:
    """What a compiled program depends on; None where it has to be compiled in this process.

    "places" says which ops share lines, not which lines those are. `ObjectCache.why` says
    which of these differs from the programs that are there.
    """
    own_table = target.kernels is not cpu.KERNELS or target.epilogues is not cpu.EPILOGUES
    if own_table or flags.verify() or flags.dump_dir() is not None or _has_functions(graph):
        return None
    machine = f"{target.name} {target.isa} {target.threads} {target.numerics} {target.memory}"
    machine += "".join(f"\n{place}: {chosen}" for place, chosen in target.choices)
    names = "\n".join((graph.name, *graph.input_names))
    _, places = locations_of(graph)
    return {
        "graph": graph.key,
        "names": names,
        "places": places,
        "target": machine,
        "version": _version(),
    }


def _has_functions(graph: Graph) -> bool:
    """Whether an op holds a Python function: what it does is known to this process only."""
    for op in graph.nodes:
        if _may_hold_functions(op.name) and any(map(callable, op.attributes.values())):
            return True
        if any(_has_functions(region) for _, region in op.regions()):
            return True
    return False


@functools.cache
def _may_hold_functions(name: str) -> bool:
    types = [str(f.type) for f in OPS[name].frozen_fields.values()]
    return any("Callable" in t or "Any" in t for t in types)


def locations_of(graph: Graph) -> tuple[tuple[Location, ...], str]:
    """The lines of ``graph`` in the order of their first use, and which of them each op has."""
    number: dict[Location, int] = {}
    places: list[str] = []

    def visit(g: Graph) -> None:
        for op in g.nodes:
            for loc in sorted(op.locs) if len(op.locs) > 1 else op.locs:
                places.append(str(number.setdefault(loc, len(number))))
            places.append(";")
            for _, region in op.regions():
                visit(region)

    visit(graph)
    return tuple(number), " ".join(places)


@functools.cache
def _version() -> str:
    """Changes with every file of nir, and with numpy, which folds constants."""
    digest = hashlib.sha256(np.__version__.encode())
    root = os.path.dirname(__file__)
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(files):
            if name.endswith((".py", ".so")):
                path = os.path.join(folder, name)
                info = os.stat(path)
                digest.update(f"{path[len(root) :]} {info.st_size} {info.st_mtime_ns}\n".encode())
    return digest.hexdigest()


@dataclass
class Later:
    """The lowered graph and the loops of a program that was found on disk."""

    graph: Callable[[], Graph]
    machine: Target
    passes: Sequence[Pass] = PIPELINE

    @functools.cached_property
    def lowered(self) -> Graph:
        graph = self.graph()
        planned = graph.plan is not None
        return graph if planned else run_pipeline(graph, self.machine, passes=self.passes)

    @functools.cached_property
    def loops(self) -> dict[str, LoopKernel]:
        return lower(self.lowered, self.machine)[1]


def stored_program(
    found: bytes | None, locations: Sequence[Location], later: Later, start: float
) -> Stored | None:
    """The executable of a program on disk, which is there no more if ``found`` is None."""
    if found is None:
        return None
    entry = Entry.unpack(found).at(locations)
    stored = Stored(entry, lambda: later.lowered, lambda isa: blobs_of(later.loops, isa))
    stored.compile_seconds = time.perf_counter() - start
    return stored


# ---- checks ------------------------------------------------------------------------------------


def calls_host(graph: Graph) -> bool:
    return any(
        isinstance(op, HostCall) or any(calls_host(region) for _, region in op.regions())
        for op in graph.nodes
    )


def _check_outputs(graph: Graph, executable: Executable, inputs: Sequence[np.ndarray]) -> None:
    """Compare a run of the program with the reference interpreter."""
    compare_run(graph, inputs, executable.run([as_storage(x) for x in inputs]))


def compare_run(graph: Graph, inputs: Sequence[np.ndarray], stored: Sequence[Storage]) -> None:
    expected = run(graph, inputs)
    got = [out.numpy(y.dtype).reshape(y.shape) for out, y in zip(stored, expected, strict=True)]
    for k in beyond_rounding(graph, inputs, expected, got):
        index, ulp = worst(expected[k], got[k])
        op = graph.producer.get(graph.outputs[k])
        raise VerifyError(
            f"lowering changed output {k} ({op.name if op else 'input'}): at {index} expected "
            f"{expected[k][index]}, got {got[k][index]} ({ulp:.3g} ulp)",
            location_text(op.locs) if op else None,
        )


def resolve_target(target: str | Target) -> Target:
    """The Target called ``target``."""
    if isinstance(target, Target):
        return target
    match target:
        case "cpu":
            return cpu.target(threads=get_num_threads())
        case "interp":
            return Target("interp")
        case _:
            raise UnsupportedError(f"expected target 'cpu' or 'interp', got {target!r}")
