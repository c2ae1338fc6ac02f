"""Recording: ops on Tensors become records, in eager and in traced code alike.

A `Cell` is one value: stored, or pending (the result of a `Record`), or symbolic (an input of the
function being traced). A record's op already is a node over its cells' values, so a graph is made
by walking from the wanted cells to their leaves (see `collect`), and nothing is rebuilt. Cells are
immutable but for the moment at which a run stores them; a Tensor is rebound to another cell.

Records point to their operands and never to their results, so an unused result, and all that only
it needed, is freed at once.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from nir.errors import NirError, StaleTensorError, TraceError
from nir.ir.dim import Shape
from nir.ir.graph import Builder
from nir.ir.location import Location, Locations, caller
from nir.ir.op import Op, Value
from nir.ir.types import DType, TensorType
from nir.runtime import Storage

_ids = itertools.count()


def fresh(type_: TensorType) -> Value:
    """A value with an id of its own."""
    return Value(next(_ids), type_)


class Cell:
    """One value.

    ``data`` is its storage, ``record`` what computes it, ``symbolic`` its name as the input of a
    trace; ``alias`` another cell with the same value, where gradients must not pass on. ``tracks``
    says that gradients flow through or end here, ``owner`` in whose ``grad`` they end.
    """

    __slots__ = (
        "__weakref__",
        "alias",
        "born",
        "data",
        "exported",
        "owner",
        "record",
        "released",
        "stale",
        "symbolic",
        "tracks",
        "value",
    )  # fmt: skip

    def __init__(self, type_: TensorType, data: Storage | None = None) -> None:
        self.value = fresh(type_)
        self.born = self.value.id  # when the value came to be; a copy of a cell inherits it
        self.record: Record | None = None
        self.data = data
        self.alias: Cell | None = None
        self.symbolic: str | None = None
        self.tracks = False
        self.owner: weakref.ref[Any] | None = None
        self.stale: Location | None = None  # where the buffer was given away
        self.exported = False  # somebody else may write into the buffer
        self.released = False  # its history was given up: no gradient can flow on from here

    @property
    def type(self) -> TensorType:
        return self.value.type

    @property
    def shape(self) -> Shape:
        return self.value.type.shape

    @property
    def dtype(self) -> DType:
        return self.value.type.dtype

    @property
    def ndim(self) -> int:
        return len(self.value.type.shape)

    @property
    def is_pending(self) -> bool:
        cell = resolve(self)
        return cell.data is None and cell.stale is None

    def copy(self) -> Cell:
        """Another cell of the same value, at which gradients end."""
        source = resolve(self)
        new = Cell(source.type, source.data)
        new.born, new.stale, new.exported = source.born, source.stale, source.exported
        if source.data is None and source.stale is None:
            new.alias = source
        return new


def resolve(cell: Cell) -> Cell:
    """The cell that has the value of ``cell``: itself, unless it is an alias."""
    if cell.alias is None:
        return cell
    source = resolve(cell.alias)
    if source.data is not None:
        # Let go of the source: its history is not this cell's.
        cell.data, cell.exported, cell.alias = source.data, source.exported, None
        return cell
    return source


@dataclass(eq=False, slots=True)
class Record:
    """A recorded op and the cells of its operands."""

    op: Op
    args: tuple[Cell, ...]
    tracks: bool
    lift: bool = False  # a number from the user's code: an input of eager programs
    released: bool = False  # gradients have been taken, and the history need not be kept
    depth: int = 1  # length of the longest chain of pending ops behind it
    results: list[weakref.ref[Cell]] = field(default_factory=list)

    def cells(self) -> list[Cell]:
        """The cells of the results; one that nobody held is made anew."""
        found = []
        for i, v in enumerate(self.op.results):
            cell = self.results[i]()
            if cell is None:
                cell = _result_cell(self, v)
                self.results[i] = weakref.ref(cell)
            found.append(cell)
        return found


def _result_cell(r: Record, v: Value) -> Cell:
    cell = Cell.__new__(Cell)
    cell.value, cell.born, cell.record = v, v.id, r
    cell.data = cell.alias = cell.symbolic = cell.owner = cell.stale = None
    cell.exported = cell.released = False
    cell.tracks = r.tracks and v.type.dtype.is_float
    return cell


# ---- modes -------------------------------------------------------------------------------------


@dataclass(eq=False)
class Trace:
    """A function being traced. Cells born before ``first`` are not its own."""

    first: int = field(default_factory=lambda: next(_ids))
    effects: list[Record] = field(default_factory=list)  # impure ops, which run even if unused


class _Modes(threading.local):
    """What differs from thread to thread."""

    def __init__(self) -> None:
        self.grad = True
        self.traces: list[Trace] = []
        self.segment = 0


_modes = _Modes()


def grad_enabled() -> bool:
    """Whether ops recorded now take part in gradients."""
    return _modes.grad


def tracing() -> Trace | None:
    """The innermost function being traced on this thread."""
    return _modes.traces[-1] if _modes.traces else None


class set_grad_enabled:
    """A context in which recorded ops take part in gradients, or do not."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled

    def __enter__(self) -> Self:
        self._before, _modes.grad = _modes.grad, self.enabled
        return self

    def __exit__(self, *_: object) -> None:
        _modes.grad = self._before


class no_grad(set_grad_enabled):
    """A context in which no gradient is tracked."""

    def __init__(self) -> None:
        super().__init__(False)


class enable_grad(set_grad_enabled):
    """A context in which gradients are tracked."""

    def __init__(self) -> None:
        super().__init__(True)


def segment() -> int:
    """The checkpoint that ops recorded now belong to, 0 for none (see `nir.ir.op.Op`)."""
    return _modes.segment


class new_segment:
    """A context in which recorded ops belong to checkpoint ``number``."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __enter__(self) -> None:
        self._before, _modes.segment = _modes.segment, self.number

    def __exit__(self, *_: object) -> None:
        _modes.segment = self._before


class new_trace:
    """A context in which a function is traced: ``with new_trace() as trace``."""

    def __enter__(self) -> Trace:
        trace = Trace()
        _modes.traces.append(trace)
        return trace

    def __exit__(self, *_: object) -> None:
        _modes.traces.pop()


class outside_traces:
    """A context in which values that a traced function does not own may be looked at."""

    def __enter__(self) -> None:
        self._traces, _modes.traces = _modes.traces, []

    def __exit__(self, *_: object) -> None:
        _modes.traces = self._traces


# ---- recording ---------------------------------------------------------------------------------


def record(
    op: Op, args: Sequence[Cell], tracks: bool | None = None, lift: bool = False
) -> list[Cell]:
    """Record ``op``, new and over the values of ``args``; the cells of its results.

    Types are inferred at once: an error names the user's line.
    """
    where = caller()
    for cell in args:
        if cell.stale is not None:
            raise stale_error(cell, f"{op.name} reads", where)
    try:
        types = op.infer()
    except NirError as error:
        error.location = error.location or where
        raise
    if tracks is None:
        tracks = _modes.grad and any(c.tracks for c in args)
    r = Record(op, tuple(args), tracks, lift)
    # The op is still this function's own: filling it in beats a second construction.
    object.__setattr__(op, "results", tuple(map(fresh, types)))
    object.__setattr__(op, "locs", frozenset((where,)))
    if _modes.segment:
        object.__setattr__(op, "segment", _modes.segment)
    return _results(r)


def _results(r: Record) -> list[Cell]:
    cells = [_result_cell(r, v) for v in r.op.results]
    r.results = [weakref.ref(c) for c in cells]
    for c in r.args:
        source = resolve(c)
        if source.data is None and source.record is not None:
            r.depth = max(r.depth, 1 + source.record.depth)
    if not r.op.pure and _modes.traces:
        _modes.traces[-1].effects.append(r)
    return cells


class Recorder(Builder):
    """A Builder that records: what gradients emit into. ``cells`` finds the cell of a value."""

    def __init__(self, cells: dict[Value, Cell], tracks: bool) -> None:
        super().__init__("recorder")
        self.cells = cells
        self.tracks = tracks

    def value(self, type_: TensorType) -> Value:
        return fresh(type_)

    def emit(self, op: Op, locs: Locations | None = None) -> tuple[Value, ...]:
        results = super().emit(op, locs)
        self._adopt()
        return results

    def inline(self, graph: Any, operands: Sequence[Value]) -> tuple[Value, ...]:
        results = super().inline(graph, operands)
        self._adopt()
        return results

    def _adopt(self) -> None:
        for op in self.nodes:
            if _modes.segment:
                object.__setattr__(op, "segment", _modes.segment)
            args = tuple(self.cells[v] for v in op.operands)
            for cell in _results(Record(op, args, self.tracks)):
                self.cells[cell.value] = cell
        self.nodes.clear()


# ---- walking -----------------------------------------------------------------------------------


def collect(roots: Iterable[Cell], first: int = -1) -> tuple[list[Record], list[Cell]]:
    """(records in execution order, leaves) that the ``roots``, which are resolved, need.

    Leaves are stored and symbolic cells, and cells born before ``first``.
    """
    order: list[Record] = []
    leaves: dict[Cell, None] = {}
    seen: set[int] = set()
    stack: list[tuple[Cell, bool]] = [(c, False) for c in reversed(list(roots))]
    while stack:
        cell, ready = stack.pop()
        r = cell.record
        if r is None or cell.data is not None or cell.born < first:
            leaves.setdefault(cell)
        elif ready:
            order.append(r)
        elif id(r) not in seen:
            seen.add(id(r))
            stack.append((cell, True))
            stack.extend((resolve(c), False) for c in reversed(r.args))
    return order, list(leaves)


def nodes_of(records: Iterable[Record]) -> list[Op]:
    """The ops of ``records`` in terms of resolved cells."""
    return [_resolved_op(r) for r in records]


def _resolved_op(r: Record) -> Op:
    if all(c.alias is None for c in r.args):
        return r.op
    table = {c.value: resolve(c).value for c in r.args}
    return r.op.map_operands(table.__getitem__)


def history(root: Cell, stop: Iterable[Cell] = ()) -> tuple[list[Record], list[Cell]]:
    """(records in execution order, ends) through which gradients flow from ``root``.

    Ends are leaves that track and the cells in ``stop``.
    """
    ends: dict[Cell, None] = {}
    order: list[Record] = []
    stops = set(stop)
    seen: set[int] = set()
    stack: list[tuple[Cell, bool]] = [(root, False)]
    while stack:
        cell, ready = stack.pop()
        r = cell.record
        if not cell.tracks:
            continue
        if r is None or cell in stops:
            ends.setdefault(cell)
        elif ready:
            order.append(r)
        elif id(r) not in seen:
            seen.add(id(r))
            stack.append((cell, True))
            stack.extend((c, False) for c in reversed(r.args))
    return order, list(ends)


# ---- errors ------------------------------------------------------------------------------------


def stale_error(cell: Cell, what: str, where: Location | None = None) -> StaleTensorError:
    """The error of using ``cell``, whose buffer was donated."""
    return StaleTensorError(
        f"{what} a tensor ({cell.type}) whose buffer was donated at {cell.stale}: "
        "use what the donating function returned",
        where or caller(),
    )


def traced_leaf(cells: Iterable[Cell]) -> Cell | None:
    """A symbolic cell, or one that a trace captured, among what ``cells`` need; or None."""
    trace = tracing()
    _, leaves = collect(resolve(c) for c in cells)
    for c in leaves:
        if c.data is None and c.stale is None:
            return c
        if trace is not None and c.born < trace.first:
            return c
    return None


def value_error(cell: Cell, leaf: Cell, what: str, instead: str) -> TraceError:
    """The error of looking at a value that depends on ``leaf`` while a function is traced."""
    if tracing() is None:
        return TraceError(
            f"{what}: {cell.type} depends on %{leaf.symbolic}, an input of a function whose trace "
            "has ended: return the tensor from the function",
            caller(),
        )
    if leaf.symbolic is None:
        return TraceError(
            f"{what}: a traced function looks at a tensor ({cell.type}) that is neither argument "
            "nor state; its value would be frozen: read it outside",
            caller(),
        )
    return TraceError(
        f"{what}: {cell.type} has no value while the function is traced, since it depends on "
        f"%{leaf.symbolic}: use {instead}",
        caller(),
    )


def pending_of(cells: Iterable[Cell]) -> Iterator[Cell]:
    """The resolved cells that are not stored, each once."""
    seen: set[Cell] = set()
    for c in cells:
        source = resolve(c)
        if source.data is None and source not in seen:
            seen.add(source)
            yield source
