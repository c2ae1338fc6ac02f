"""Tuning: which algorithm computes each convolution, measured in place of the rule by shapes.

A convolution is compiled and run by itself with each algorithm that can compute it, on random
images, taking turns; the least of the times decides, if it is clearly less. The costliest come
first, until the time is up: what is not measured keeps the rule. What was found is kept in the
cache on disk, for this machine, its threads and instruction set, and a program made from it holds
it like any other.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Iterable
from typing import Any

import numpy as np

from nir.compile import compile_graph, resolve_target
from nir.errors import NirError
from nir.frozen import replace
from nir.ir.dim import symbols, value
from nir.ir.graph import Builder, Graph
from nir.ir.location import caller
from nir.ir.op import Op
from nir.ir.program import Target
from nir.ops import Constant, Conv2d, Conv2dInputGrad
from nir.passes.algorithm import UNKNOWN_BATCH, algorithm, algorithms, site
from nir.passes.pipeline import LOWERING, ROWS, run_pipeline
from nir.runtime import as_storage, object_cache

_TURNS = 5  # of each algorithm, at least, once a convolution is measured at all
_MOST_TURNS = 40
_CLEARLY = 0.95  # of the rule's time, or the rule's choice stays
_SHARE = 0.02  # of the time for all convolutions, after which one has been measured enough


def tuned(graph: Graph, target: str | Target, seconds: float) -> Target:
    """``target`` with what measuring ``graph``'s convolutions for ``seconds`` found.

    The time bounds compiling and running what is measured, by one convolution more or less. A
    second call for equal graphs finds the answer of the first. Raises NirError for a negative time.
    """
    end = time.perf_counter() + seconds
    machine = resolve_target(target)
    if seconds < 0:
        raise NirError(f"tune: expected seconds >= 0, got {seconds}", caller())
    if machine.name != "cpu" or not seconds:
        return machine
    places = _places(graph, machine)
    parts = {
        "tune": "\n".join(places),
        "machine": f"{machine.isa} {machine.threads} {machine.numerics} {_processor()}",
    }
    cache = object_cache()
    found = cache.lookup(parts)
    if found is not None:
        return replace(machine, choices=tuple((p, a) for p, a in json.loads(found)))
    choices = []
    for place, op in places.items():
        if time.perf_counter() >= end:
            break
        choices.append((place, _fastest(op, machine, end, seconds * _SHARE)))
    if len(choices) == len(places):  # an answer that was cut short is not kept
        cache.store(parts, json.dumps(choices).encode())
    return replace(machine, choices=tuple(choices))


def _places(graph: Graph, machine: Target) -> dict[str, Any]:
    """The convolutions of ``graph`` that have a choice, by site, the costliest first."""
    before = LOWERING[: LOWERING.index(ROWS)]
    lowered = run_pipeline(graph, machine, passes=before)
    found: dict[str, Any] = {}
    costs: dict[str, int] = {}
    for op in _ops(lowered):
        if isinstance(op, (Conv2d, Conv2dInputGrad)) and len(algorithms(op, machine)) > 1:
            key, flops = site(op), op.flops()
            found[key] = op
            batch = dict.fromkeys(symbols(flops), UNKNOWN_BATCH)
            costs[key] = costs.get(key, 0) + value(flops, batch)
    return {key: found[key] for key in sorted(found, key=lambda k: -costs[k])}


def _ops(graph: Graph) -> Iterable[Op]:
    for op in graph.nodes:
        yield op
        for _, region in op.regions():
            yield from _ops(region)


def _fastest(op: Any, machine: Target, end: float, enough: float) -> str:
    """The algorithm that computes ``op`` in the least time, its weights packed before."""
    rng = np.random.default_rng(0)
    shape = tuple(n if isinstance(n, int) else UNKNOWN_BATCH for n in op.operands[0].type.shape)
    dtype = op.operands[0].type.dtype.numpy
    image = as_storage(rng.standard_normal(shape).astype(dtype))
    weight = rng.standard_normal(op.w.type.shape).astype(dtype)
    programs = {}
    for name in algorithms(op, machine):
        b = Builder("tune")
        x = b.input(op.operands[0].type)
        (w,) = b.emit(Constant(weight))
        y = b.emit(op.map_operands({op.operands[0]: x, op.w: w}.__getitem__))
        choice = replace(machine, choices=((site(op), name),), memory=None)
        programs[name] = compile_graph(b.build(y), choice)
        programs[name].run([image])
    least = dict.fromkeys(programs, float("inf"))
    begun = time.perf_counter()
    for turn in range(_MOST_TURNS):
        now = time.perf_counter()
        if turn >= _TURNS and (now >= end or now - begun >= enough):
            break
        for name, program in programs.items():
            start = time.perf_counter()
            program.run([image])
            least[name] = min(least[name], time.perf_counter() - start)
    best, rule = min(least, key=least.__getitem__), algorithm(op, replace(machine, choices=()))
    return best if least[best] < _CLEARLY * least[rule] else rule


def _processor() -> str:
    """This machine's processor: measurements of another one say nothing here."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            lines = [line for line in info if line.startswith(("model name", "flags"))]
    except OSError:
        lines = [platform.processor()]
    return hashlib.sha256("".join(sorted(set(lines))).encode()).hexdigest()[:16]
