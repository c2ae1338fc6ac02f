"""Running what was recorded: one program for the values looked at, cached by structure."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from nir.bound import BoundProgram, compile_bound
from nir.compile import compile_graph, resolve_target
from nir.errors import NirError
from nir.frontend import lazy
from nir.frontend.lazy import Cell, Record, resolve
from nir.frozen import Frozen, replace
from nir.ir.graph import Graph, location_text
from nir.ir.location import caller
from nir.ir.op import Op, Value
from nir.ir.program import Target
from nir.ir.types import TensorType
from nir.ops import Broadcast
from nir.runtime import Storage

# A chain of pending ops this long is run unasked, so that loops that never look stay bounded.
_DEPTH_LIMIT = 1000
# Compiled programs that are kept; the least recently used goes first.
_CACHE_SIZE = 512


# ---- programs ----------------------------------------------------------------------------------


class Compiled(Frozen, eq=False):
    """A program shared by all graphs of one structure, and the first of these graphs."""

    executable: Any
    made: Graph

    def run(
        self, own: Graph, inputs: Sequence[Storage], donate: Sequence[int] = (),
        in_place: bool = False,
    ) -> Any:  # fmt: skip
        """The outputs; an error names the lines of ``own``, the graph that is being run."""
        try:
            return self.executable.run(inputs, donate, in_place)
        except NirError as error:
            if own is not self.made and error.location is not None:
                error.location = _own_location(error, self.made, own)
            raise


def _own_location(error: NirError, made: Graph, own: Graph) -> object:
    """The lines in ``own`` of the ops whose lines in ``made`` the error names."""
    named = set(str(error.location).split(", "))
    at = [i for i, op in enumerate(made.nodes) if {str(line) for line in op.locs} <= named]
    # The message starts with the op's name: of several ops on one line it says which.
    name = error.message.partition(":")[0]
    at = [i for i in at if made.nodes[i].name == name] or at
    lines = sorted({line for i in at for line in own.nodes[i].locs})
    return location_text(lines) or error.location


class _Programs:
    def __init__(self) -> None:
        self.entries: OrderedDict[tuple[str, Any, int | None], Compiled] = OrderedDict()
        self.lock = threading.RLock()
        self.compiles = 0
        self.target: str | Target = "cpu"


_programs = _Programs()


def set_default_target(target: str | Target) -> None:
    """The target of eager code and of `jit`: "cpu", or "interp", the reference interpreter."""
    _programs.target = target


def default_target() -> str | Target:
    return _programs.target


def compile_count() -> int:
    """Programs compiled so far by eager code and by `jit`."""
    return _programs.compiles


def chosen_target(target: str | Target | None, numerics: str | None) -> str | Target:
    """``target``, or the default one, with ``numerics`` where that is given."""
    target = _programs.target if target is None else target
    match numerics:
        case None:
            return target
        case "strict" | "fast":
            return replace(resolve_target(target), numerics=numerics)
    raise NirError(f'numerics: expected "strict" or "fast", got {numerics!r}', caller())


def compiled(
    graph: Graph, target: str | Target | None = None, memory: int | None = None
) -> Compiled:
    """The program of ``graph``, compiled once for each structure."""
    target = chosen_target(target, None)
    key = (graph.key, _key_of(target), memory)
    with _programs.lock:
        found = _programs.entries.get(key)
        if found is None:
            found = Compiled(compile_located(graph, target, memory), graph)
            _programs.entries[key] = found
            _programs.compiles += 1
            if len(_programs.entries) > _CACHE_SIZE:
                _programs.entries.popitem(last=False)
        else:
            _programs.entries.move_to_end(key)
    return found


def _key_of(target: str | Target) -> object:
    if isinstance(target, str):
        return target
    own = (id(target.kernels), id(target.epilogues))  # tables of their own are compared as objects
    settings = (target.threads, target.numerics, target.memory, target.choices)
    return (target.name, target.isa, *settings, *own)


def compile_located(graph: Graph, target: str | Target, memory: int | None = None) -> Any:
    """`compile_graph`; an error that names no line names the caller's."""
    try:
        return compile_graph(graph, target, memory)
    except NirError as error:
        error.location = error.location or caller()
        raise


def compile_weights(
    graph: Graph, first: int, target: str | Target, memory: int | None = None
) -> BoundProgram:
    """`compile_bound`; an error that names no line names the caller's."""
    try:
        return compile_bound(graph, first, target, memory)
    except NirError as error:
        error.location = error.location or caller()
        raise


# ---- looking at values -------------------------------------------------------------------------


class _Companions(threading.local):
    """Pending cells that run with whatever this thread runs next.

    ``updates``: new values of tensors changed in place; else batch norm's running statistics,
    which no loss depends on, would drag every batch behind them. ``losses``: values whose
    gradients were taken, which are computed together rather than once more later.
    """

    def __init__(self) -> None:
        self.updates: weakref.WeakSet[Cell] = weakref.WeakSet()
        self.losses: list[Cell] = []


_companions = _Companions()


def add_update(cell: Cell) -> None:
    """Let ``cell``, the new value of a tensor changed in place, run with the next program."""
    if lazy.tracing() is None and cell.is_pending:
        _companions.updates.add(resolve(cell))


def add_loss(cell: Cell) -> None:
    """Let ``cell``, whose gradient was taken, run with the next program."""
    if lazy.tracing() is None and cell.is_pending:
        _companions.losses.append(cell)


def store(cell: Cell, what: str, instead: str = "tensor operations") -> Storage:
    """The storage of ``cell``, computed now if need be; ``what`` looks at it."""
    source = resolve(cell)
    if source.stale is not None or cell.stale is not None:
        raise lazy.stale_error(cell if cell.stale else source, f"{what} of")
    if source.data is None or lazy.tracing() is not None:
        leaf = lazy.traced_leaf([source])
        if leaf is not None:
            raise lazy.value_error(cell, leaf, what, instead)
    if source.data is None:
        realize([source])
    data = resolve(cell).data
    assert data is not None
    return data


def realize(cells: Iterable[Cell]) -> None:
    """Run one program that stores all of ``cells``, none of them traced."""
    wanted = list(lazy.pending_of(cells))
    if not wanted:
        return
    if lazy.tracing() is None:
        updates = sorted(_companions.updates, key=lambda c: c.born)
        wanted = list(lazy.pending_of([*wanted, *updates, *_companions.losses]))
        _companions.updates.clear()
        _companions.losses.clear()
    prepared = prepare(wanted)
    outputs = compiled(prepared.graph).run(prepared.graph, prepared.inputs)
    for cell, out in zip(wanted, outputs, strict=True):
        cell.data = out
        if cell.record is not None and (not cell.tracks or cell.record.released):
            cell.released = cell.record.released
            cell.record = None


class Prepared(Frozen, eq=False):
    """A graph that computes pending cells, and the storages of its inputs."""

    graph: Graph
    inputs: list[Storage]


def prepare(wanted: Sequence[Cell]) -> Prepared:
    """The graph of ``wanted``, which are resolved and pending, and what it reads."""
    records, leaves = lazy.collect(wanted)
    for c in leaves:
        if c.stale is not None:
            raise lazy.stale_error(c, "an earlier op reads")
    inputs: dict[int, Cell] = {}  # by storage: a tensor and its detached copy are one input
    same: dict[Value, Value] = {}
    for c in leaves:
        same[c.value] = inputs.setdefault(id(c.data), c).value
    nodes, lifted = _nodes(records, same)
    graph = Graph(
        "eager",
        [*(c.value for c in inputs.values()), *(v for v, _ in lifted)],
        nodes,
        [c.value for c in wanted],
    )
    data = [c.data for c in inputs.values() if c.data is not None]
    return Prepared(graph, data + [Storage.from_numpy(a) for _, a in lifted])


def _nodes(
    records: Sequence[Record], same: dict[Value, Value]
) -> tuple[list[Op], list[tuple[Value, np.ndarray]]]:
    """The ops, and scalar inputs that stand for numbers of the user's code.

    So a learning rate that changes does not compile again. 0 and +-1 stay, since rules of
    simplification depend on them.
    """
    nodes: list[Op] = []
    lifted: list[tuple[Value, np.ndarray]] = []
    for r, op in zip(records, lazy.nodes_of(records), strict=True):
        op = op.map_operands(lambda v: same.get(v, v))
        if r.lift and _is_lifted(value := op.attributes["value"]):
            t = op.result.type
            scalar = lazy.fresh(TensorType(t.dtype))
            lifted.append((scalar, np.asarray(value, t.dtype.numpy)))
            op = Broadcast(scalar, t.shape, (), results=op.results, locs=op.locs)
        nodes.append(op)
    return nodes, lifted


def _is_lifted(value: Any) -> bool:
    return isinstance(value, float) and value not in (0.0, 1.0, -1.0)


def bound_depth(cells: Sequence[Cell]) -> None:
    """Run ``cells``, just recorded, if too much is pending behind them."""
    r = cells[0].record if cells else None
    if r is None:
        return
    due = r.depth > _DEPTH_LIMIT or any(c.exported for c in r.args)
    if due and lazy.tracing() is None and lazy.traced_leaf(cells) is None:
        realize(cells)
