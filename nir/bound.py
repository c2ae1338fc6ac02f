"""Programs with bound weights: what depends on weights alone is compiled apart, and runs once."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Mapping

from nir import flags
from nir.compile import (
    Later,
    calls_host,
    compare_run,
    compile_graph,
    compile_with,
    locations_of,
    program_parts,
    resolve_target,
    stored_program,
)
from nir.frozen import Frozen, replace
from nir.ir.graph import Graph
from nir.ir.interp import random_inputs
from nir.ir.program import Target
from nir.passes.pipeline import LOWERING, PLANNING, run_pipeline
from nir.passes.prepare import Prepared, prepare
from nir.runtime import (
    Executable,
    InterpExecutable,
    Storage,
    as_storage,
    entry_of,
    object_cache,
)


class BoundProgram(Frozen):
    """A program some inputs of which are weights, in the form in which it reads them.

    ``executable`` takes the inputs numbered in ``kept``, of those of the whole graph, and behind
    them what ``preparation`` makes of the inputs numbered in ``needed``.
    """

    executable: Executable | InterpExecutable
    kept: tuple[int, ...]
    preparation: Executable | None = None
    needed: tuple[int, ...] = ()

    def bind(self, weights: Mapping[int, Storage]) -> list[Storage]:
        """The inputs of ``executable`` behind the arguments; runs the preparation."""
        own = [weights[i] for i in self.kept if i in weights]
        if self.preparation is None:
            return own
        return own + self.preparation.run([weights[i] for i in self.needed])


def compile_bound(
    graph: Graph, first: int, target: str | Target = "cpu", memory: int | None = None
) -> BoundProgram:
    """Compile ``graph``, whose inputs from number ``first`` on are weights that do not change.

    What depends on them alone (packing above all) is a program of its own. ``memory``: see
    `compile_graph`; it holds for the runs, prepared weights are not counted.
    """
    start = time.perf_counter()
    machine = replace(resolve_target(target), memory=memory)
    every = tuple(range(len(graph.inputs)))
    if machine.name == "interp" or first == len(every):
        return BoundProgram(compile_graph(graph, machine), every)
    parts = program_parts(graph, machine)
    if parts is None:
        return _compile_bound(graph, first, machine, start)
    parts |= {"bound": str(first)}
    locations, _ = locations_of(graph)
    cache = object_cache()
    pieces = {name: parts | {"piece": name} for name in ("cut", "rest", "preparation")}
    found = cache.lookup(pieces["cut"])
    if found is not None:
        kept, needed = json.loads(found)
        cut = functools.cache(lambda: _cut(graph, first, machine))
        later = Later(lambda: cut().rest, machine, PLANNING)
        own = stored_program(cache.lookup(pieces["rest"]), locations, later, start)
        weights = None
        if needed:
            data = cache.lookup(pieces["preparation"])
            later = Later(lambda: cut().preparation, machine, PLANNING)
            weights = stored_program(data, locations, later, time.perf_counter())
        if own is not None and (weights is not None or not needed):
            return BoundProgram(own, tuple(kept), weights, tuple(needed))
    bound = _compile_bound(graph, first, machine, start)
    for name, exe in (("rest", bound.executable), ("preparation", bound.preparation)):
        if isinstance(exe, Executable):
            cache.store(pieces[name], entry_of(exe, machine.isa, locations).pack())
    cache.store(pieces["cut"], json.dumps([bound.kept, bound.needed]).encode())
    return bound


def _compile_bound(graph: Graph, first: int, machine: Target, start: float) -> BoundProgram:
    cut = _cut(graph, first, machine)
    rest = compile_with(cut.rest, machine, start, PLANNING)
    if not cut.preparation.outputs:
        return BoundProgram(rest, cut.kept)
    # The limit is on each run; this one is done once.
    free = replace(machine, memory=None)
    weights = compile_with(cut.preparation, free, time.perf_counter(), PLANNING)
    bound = BoundProgram(rest, cut.kept, weights, cut.needed)
    if flags.verify() and not calls_host(graph):
        inputs = random_inputs(graph)
        stored = {i: as_storage(x) for i, x in enumerate(inputs)}
        arguments = [stored.pop(i) for i in range(first)]
        compare_run(graph, inputs, rest.run([*arguments, *bound.bind(stored)]))
    return bound


def _cut(graph: Graph, first: int, machine: Target) -> Prepared:
    return prepare(run_pipeline(graph, machine, passes=LOWERING), first)
