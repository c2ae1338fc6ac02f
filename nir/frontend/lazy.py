"""Recording: ops on Tensors become records, and looking at a value runs what it needs.

A `Cell` is one value: stored, or the result of a `Record`, or (inside a trace) a symbolic input
that has neither. A record's op already is a node over its cells' values, so a graph is made by
walking from the wanted cells to stored and symbolic ones: nothing is rebuilt. Traced and eager
code record alike; they differ in what the walk meets at its end.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from nir.compile import compile_graph
from nir.errors import NirError, StaleTensorError, TraceError
from nir.ir.graph import Graph
from nir.ir.location import Location, caller
from nir.ir.op import Op, Value
from nir.ir.types import TensorType
from nir.ops import Broadcast, Full, Pow
from nir.runtime import Storage

# Pending ops behind one value before it is run unasked, so that loops that never look stay bounded.
_PENDING_LIMIT = 2000
# Compiled flushes that are kept.
_CACHE_SIZE = 512

_ids = itertools.count()
_state = threading.local()


class Cell:
    """One value: ``data`` if it is stored, ``record`` if it can be computed, else symbolic."""

    __slots__ = ("__weakref__", "data", "leaf", "record", "stale", "symbolic", "tracks", "value")

    def __init__(
        self, type_: TensorType, data: Storage | None = None, tracks: bool = False
    ) -> None:
        self.value = Value(next(_ids), type_)
        self.record: Record | None = None
        self.data = data
        self.tracks = tracks  # a gradient may flow through this value
        self.leaf = False  # gradients end here, whatever computed the value
        self.symbolic: str | None = None  # the name of a traced function's input
        self.stale: Location | None = None  # where the buffer was given away


@dataclass(eq=False, slots=True)
class Record:
    """An op that was recorded, with the cells of its operands and results."""

    op: Op
    args: tuple[Cell, ...]
    results: tuple[Cell, ...] = ()
    pending: int = 1  # length of the longest chain of ops behind it that were not run
    tracks: bool = False


def grad_enabled() -> bool:
    return getattr(_state, "grad", True)


class no_grad:
    """Ops recorded in this context do not take part in gradients."""

    def __enter__(self) -> None:
        self._before = grad_enabled()
        _state.grad = False

    def __exit__(self, *_: object) -> None:
        _state.grad = self._before


def record(op: Op, args: Sequence[Cell], tracks: bool | None = None) -> tuple[Cell, ...]:
    """Record ``op``, whose operands are the values of ``args``; infers types at the user's line."""
    where = caller()
    for cell in args:
        if cell.stale is not None:
            raise StaleTensorError(
                f"{op.name} reads a tensor whose buffer was donated at {cell.stale}", where
            )
    try:
        types = op.infer()
    except NirError as error:
        error.location = error.location or where
        raise
    if tracks is None:
        tracks = grad_enabled() and any(c.tracks for c in args)
    r = Record(op, tuple(args), tracks=tracks)
    r.results = tuple(Cell(t, tracks=tracks and t.dtype.is_float) for t in types)
    r.op = replace(op, results=tuple(c.value for c in r.results), locs=frozenset((where,)))
    for c in r.results:
        c.record = r
    pending = (c.record.pending for c in args if c.data is None and c.record is not None)
    r.pending = 1 + max(pending, default=0)
    if r.pending > _PENDING_LIMIT and _runnable(r):
        realize(r.results)
    return r.results


def adopt(nodes: Iterable[Op], known: dict[Value, Cell], tracks: bool) -> None:
    """Turn finished nodes (made by a gradient, or inlined) into records; fills ``known``."""
    for op in nodes:
        if any(v in known for v in op.results):
            continue
        r = Record(op, tuple(known[v] for v in op.operands), tracks=tracks)
        cells = []
        for v in op.results:
            c = Cell(v.type, tracks=tracks and v.type.dtype.is_float)
            c.value, c.record = v, r
            known[v] = c
            cells.append(c)
        r.results = tuple(cells)
        r.pending = 1 + max((c.record.pending for c in r.args if c.record is not None), default=0)


def walk(
    roots: Iterable[Cell], stop: Iterable[Cell] = (), history: bool = False, before: int = 0
) -> tuple[list[Record], list[Cell]]:
    """(records in execution order, leaves) that ``roots`` need.

    Stops at ``stop``, at cells older than number ``before``, at symbolic and at stored ones; with
    ``history`` at those where gradients end instead, since they flow through stored values too.
    """
    ends = set(stop)
    order: list[Record] = []
    leaves: dict[Cell, None] = {}
    seen: set[int] = set()
    stack: list[tuple[Cell, bool]] = [(c, False) for c in reversed(list(roots))]
    while stack:
        cell, ready = stack.pop()
        r = cell.record
        done = cell.leaf or not cell.tracks if history else cell.data is not None
        if r is None or done or cell in ends or cell.value.id < before:
            leaves.setdefault(cell)
        elif ready:
            if id(r) not in seen:
                seen.add(id(r))
                order.append(r)
        elif id(r) not in seen:
            stack.append((cell, True))
            stack.extend((c, False) for c in reversed(r.args))
    return order, list(leaves)


def _runnable(r: Record) -> bool:
    return all(c.symbolic is None for c in walk(r.results)[1])


# ---- running -----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Flushes:
    """Compiled flushes by structure, and how often they were made."""

    entries: OrderedDict[tuple[str, str], Any] = field(default_factory=OrderedDict)
    compiles: int = 0


_flushes = _Flushes()
_lock = threading.RLock()
_target = "cpu"


def set_default_target(name: str) -> None:
    """The target of eager code and of `jit`: "cpu", or "interp", the reference interpreter."""
    global _target
    _target = name


def default_target() -> str:
    return _target


def realize(cells: Iterable[Cell]) -> None:
    """Run one program that stores every cell of ``cells`` that is not stored yet."""
    wanted = list(dict.fromkeys(c for c in cells if c.data is None))
    if not wanted:
        return
    records, leaves = walk(wanted)
    for c in leaves:
        if c.data is None:
            raise TraceError(
                "a traced tensor has no value while the function is traced: "
                "use where() or nir.cond() to choose by it",
                caller(),
            )
        if c.stale is not None:
            raise StaleTensorError(
                f"a tensor whose buffer was donated at {c.stale} is read", caller()
            )
    nodes, lifted = _lift_floats([r.op for r in records])
    inputs = [c.value for c in leaves] + [v for v, _ in lifted]
    graph = Graph("eager", inputs, nodes, [c.value for c in wanted])
    data = [c.data for c in leaves] + [Storage.from_numpy(a) for _, a in lifted]
    executable = compiled(graph)
    for cell, out in zip(wanted, executable.run(data), strict=True):
        cell.data = out
        if not cell.tracks or cell.leaf:
            cell.record = None


def compiled(graph: Graph) -> Any:
    """The executable of ``graph``, compiled once for each structure."""
    key = (graph.key, _target)
    with _lock:
        found = _flushes.entries.get(key)
        if found is None:
            found = _flushes.entries[key] = compile_graph(graph, _target)
            _flushes.compiles += 1
            if len(_flushes.entries) > _CACHE_SIZE:
                _flushes.entries.popitem(last=False)
        else:
            _flushes.entries.move_to_end(key)
    return found


def _lift_floats(nodes: list[Op]) -> tuple[list[Op], list[tuple[Value, np.ndarray]]]:
    """Float constants become inputs, so that a rate that changes does not compile again.

    0 and +-1 stay, since rules depend on them, and so do exponents.
    """
    exponents = {op.rhs for op in nodes if isinstance(op, Pow)}
    lifted: dict[tuple[str, str], tuple[Value, np.ndarray]] = {}
    out: list[Op] = []
    for op in nodes:
        if (
            isinstance(op, Full)
            and isinstance(op.value, float)
            and op.value not in (0.0, 1.0, -1.0)
            and op.result not in exponents
        ):
            key = (op.value.hex(), op.dtype.name)
            if key not in lifted:
                scalar = Value(next(_ids), TensorType(op.dtype, ()))
                lifted[key] = scalar, np.asarray(op.value, op.dtype.numpy)
            out.append(Broadcast(lifted[key][0], op.shape, (), results=op.results, locs=op.locs))
        else:
            out.append(op)
    return out, list(lifted.values())
