"""The reference interpreter: each op by its numpy reference. The oracle of everything else.

`run` keeps every value in an array of its own. With ``arena=True`` it keeps them where the memory
plan says, in poisoned memory, and so finds plans in which values overwrite each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from functools import partial

import numpy as np

from nir.errors import NirError, VerifyError
from nir.ir.arena import Arena
from nir.ir.bind import bind_inputs, concrete
from nir.ir.graph import Graph, location_text
from nir.ir.op import Op, Value

Trace = Callable[[Op, Sequence[np.ndarray], list[np.ndarray]], None]

# Sizes of the graph being run: a region may use symbols that its own inputs do not determine.
_SIZES: ContextVar[Mapping[str, int] | None] = ContextVar("sizes", default=None)
# Whether planned regions run in their planned arenas too.
_IN_ARENA: ContextVar[bool] = ContextVar("in_arena", default=False)
# What sees the ops of regions as well.
_DEEP_TRACE: ContextVar[Trace | None] = ContextVar("deep_trace", default=None)


def run(
    graph: Graph,
    inputs: Sequence[np.ndarray],
    env: Mapping[str, int] | None = None,
    arena: bool = False,
    trace: Trace | None = None,
    deep: bool = False,
) -> list[np.ndarray]:
    """The outputs of ``graph`` for ``inputs``, in order.

    Symbols are found from the inputs' shapes; ``env`` adds values for others. ``trace(op,
    operands, results)`` is called after each op, with ``deep`` after each op of a region too, and
    may replace entries of the list ``results``.
    Raises ShapeError or DTypeError for inputs that do not fit, IndexRangeError at the user's line,
    and, with ``arena=True``, VerifyError where the plan makes values overwrite each other.
    """
    arrays = [np.asarray(a) for a in inputs]
    sizes = bind_inputs(graph, arrays, env)
    token, arena_token = _SIZES.set(sizes), _IN_ARENA.set(arena)
    trace_token = _DEEP_TRACE.set(trace if deep else None)
    try:
        with np.errstate(all="ignore"):
            if arena:
                return _run_in_arena(graph, arrays, sizes, trace)
            return _run(graph, arrays, sizes, trace)
    finally:
        _SIZES.reset(token)
        _IN_ARENA.reset(arena_token)
        _DEEP_TRACE.reset(trace_token)


def evaluate_region(graph: Graph, operands: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The outputs of a region, for ops that hold closed graphs; symbols keep their values.

    In a run with ``arena=True`` a region that has a memory plan runs in its own arena.
    """
    trace, arena = _DEEP_TRACE.get(), _IN_ARENA.get() and graph.plan is not None
    return run(graph, operands, _SIZES.get(), arena, trace, deep=trace is not None)


def _run(
    graph: Graph, inputs: Sequence[np.ndarray], sizes: Mapping[str, int], trace: Trace | None
) -> list[np.ndarray]:
    values: dict[Value, np.ndarray] = dict(zip(graph.inputs, inputs, strict=True))
    last = {v: i for i, op in enumerate(graph.nodes) for v in op.operands}
    kept = set(graph.outputs)
    for i, op in enumerate(graph.nodes):
        operands = [values[v] for v in op.operands]
        results = _evaluate(op, operands, sizes)
        if trace is not None:
            trace(op, operands, results)
        values.update(zip(op.results, results, strict=True))
        for v in (*op.operands, *op.results):
            if v not in kept and last.get(v, i) <= i:
                values.pop(v, None)
    return [values[v] for v in graph.outputs]


def _run_in_arena(
    graph: Graph, inputs: Sequence[np.ndarray], sizes: Mapping[str, int], trace: Trace | None
) -> list[np.ndarray]:
    memory = Arena(graph, inputs, sizes)
    for op in graph.nodes:
        operands = memory.read(op)
        results = _evaluate(op, operands, sizes)
        if trace is not None:
            trace(op, operands, results)
        again = partial(_evaluate_torn, op, memory, sizes, operands)
        memory.write(op, results, again)
    return memory.outputs()


def _evaluate_torn(
    op: Op,
    memory: Arena,
    sizes: Mapping[str, int],
    operands: Sequence[np.ndarray],
    start: int,
) -> Sequence[np.ndarray]:
    """The results where pass ``start`` finds operands as the arena has them by then."""
    torn = memory.read_torn(op)
    return list(map(np.asarray, op.bind(sizes).ref_torn(operands, torn, start)))


def _evaluate(op: Op, operands: Sequence[np.ndarray], sizes: Mapping[str, int]) -> list[np.ndarray]:
    """The results of ``op``, which must be what its type rule says."""
    try:
        results = [np.asarray(r) for r in op.bind(sizes).ref(*operands)]
    except NirError as error:
        if error.location is None:
            error.location = location_text(op.locs) or None
        raise
    expected = [(v.type.dtype.numpy, concrete(v.type, sizes)) for v in op.results]
    got = [(r.dtype, r.shape) for r in results]
    if got != expected:
        raise VerifyError(
            f"{op.name}: the type rule gives {_shown(expected)}, the reference {_shown(got)}",
            location_text(op.locs) or None,
        )
    return results


def _shown(types: Sequence[tuple[np.dtype, tuple[int, ...]]]) -> str:
    return "(" + ", ".join(f"{dtype}{list(shape)}" for dtype, shape in types) + ")"


def random_inputs(
    graph: Graph, seed: int = 0, sizes: Mapping[str, int] | None = None
) -> list[np.ndarray]:
    """Inputs for ``graph``: standard normal floats, integers in 0..2, fair bools.

    ``sizes`` gives values to symbols; the others get 3, 4, 5 and so on, in order of their names.
    """
    rng = np.random.default_rng(seed)
    env = {name: 3 + i for i, name in enumerate(graph.symbols)} | dict(sizes or {})
    arrays = []
    for t in graph.input_types:
        shape = concrete(t, env)
        drawn: np.ndarray
        match t.dtype.kind:
            case "bool":
                drawn = np.asarray(rng.random(shape) < 0.5)
            case "float":
                drawn = rng.standard_normal(shape)
            case _:
                drawn = rng.integers(0, 3, shape)
        arrays.append(np.asarray(drawn).astype(t.dtype.numpy))
    return arrays
