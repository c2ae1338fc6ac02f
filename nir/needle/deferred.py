"""Deferred calls: what a step of a Needle program does, and the programs that do it.

A Needle program does the same in each step. So the face keeps its calls as they are (`Call`: an op,
its operands, the types of its results) and lets nir record them only when their structure is new;
the program that comes of it is kept, and the next step with that structure runs it at once.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import nir
from nir.frontend import flush, lazy
from nir.frontend.lazy import Cell
from nir.frozen import Frozen
from nir.ir.types import TensorType

Lower: TypeAlias = "Callable[..., tuple[nir.Tensor, ...]]"

# A chain of calls this long is run unasked, so that loops that never look stay bounded.
_DEPTH_LIMIT = 300
# Programs, and types of results, that are kept; the least recently used goes first.
_CACHE_SIZE = 512

_count = itertools.count()


class _Mode(threading.local):
    """Whether nir records calls at once on this thread."""

    at_once = False


_mode = _Mode()


@contextmanager
def at_once() -> Iterator[None]:
    """Within it nir records each call at once, with the history of its operands."""
    before, _mode.at_once = _mode.at_once, True
    try:
        yield
    finally:
        _mode.at_once = before


def records_at_once() -> bool:
    """Whether calls are recorded at once: in traced functions, and in `at_once`."""
    return _mode.at_once or lazy.tracing() is not None


class Ref:
    """A value: stored in ``data``, or result ``index`` of the call ``source``, or both.

    ``tracks``: gradients flow to it or through it. ``made`` is what nir recorded for it.
    """

    __slots__ = ("__weakref__", "data", "index", "made", "number", "plain", "source", "tracks",
                 "type")  # fmt: skip

    def __init__(
        self,
        type_: TensorType,
        data: nir.Tensor | None = None,
        source: Call | None = None,
        index: int = 0,
        tracks: bool = False,
    ) -> None:
        self.type = type_
        self.data = data
        self.source = source
        self.index = index
        self.tracks = tracks
        self.number = next(_count)
        self.made: tuple[Any, nir.Tensor] | None = None
        # Weak, since what is made of a value holds on to the value: steps would wait for Python's
        # collector, with all their memory.
        self.plain: weakref.ref[Ref] | None = None

    def untracked(self) -> Ref:
        """The same value, through which no gradient flows."""
        if not self.tracks:
            return self
        plain = None if self.plain is None else self.plain()
        if plain is None or (plain.data is None and self.data is not None):
            if self.data is not None:
                plain = leaf(self.data)
            else:
                (plain,) = call(("detach",), _detach, [self], tracks=False)
            self.plain = weakref.ref(plain)
        return plain


def _detach(x: nir.Tensor) -> tuple[nir.Tensor, ...]:
    return (x.detach(),)


class Call:
    """``lower`` applied to ``args``; calls of one ``key`` and equal operand types are alike."""

    __slots__ = ("args", "depth", "done", "key", "lower", "refs")

    def __init__(self, key: Hashable, lower: Lower, args: tuple[Ref, ...], depth: int) -> None:
        self.key, self.lower, self.args, self.depth = key, lower, args, depth
        self.done: tuple[nir.Tensor, ...] | None = None


def leaf(t: nir.Tensor, tracks: bool = False) -> Ref:
    """The value of ``t``, without its history."""
    return Ref(t.type, t, tracks=tracks and t.dtype.is_float)


_types: OrderedDict[Any, tuple[TensorType, ...]] = OrderedDict()


def call(key: Hashable, lower: Lower, args: Sequence[Ref], tracks: bool | None = None) -> list[Ref]:
    """Defer ``lower(*args)``: its results. ``key`` None: nothing else is like this call."""
    if tracks is None:
        tracks = any(a.tracks for a in args)
    if records_at_once():
        return [recorded(t) for t in lower(*map(tensor, args))]
    depth = 1
    for a in args:
        if a.data is None and a.source is not None and a.source.depth >= depth:
            depth = a.source.depth + 1
    made = Call(object() if key is None else key, lower, tuple(args), depth)
    known = (key, tuple([(a.type.dtype.name, a.type.shape) for a in args]))
    types = _types.get(known) if key is not None else None
    if types is None:
        types = tuple(t.type for t in _record(made))
        if key is not None:
            _types[known] = types
            _trim(_types)
    refs = [Ref(t, None, made, i, tracks and t.dtype.is_float) for i, t in enumerate(types)]
    if depth > _DEPTH_LIMIT:
        run(refs)
    return refs


def recorded(t: nir.Tensor) -> Ref:
    """The value of ``t``, with the history that nir has recorded."""
    ref = Ref(t.type, tracks=t.requires_grad)
    ref.made = (None, t)
    return ref


def _trim(cache: OrderedDict[Any, Any]) -> None:
    if len(cache) > _CACHE_SIZE:
        cache.popitem(last=False)


# ---- recording ---------------------------------------------------------------------------------


def tensor(ref: Ref) -> nir.Tensor:
    """The value as nir records it: with its history, where gradients flow."""
    if ref.source is None:
        if ref.data is None:
            assert ref.made is not None
            return ref.made[1]
        # The cell of a tensor of a traced function's state changes with the trace.
        cell = ref.data._cell
        if ref.made is None or ref.made[0] is not cell:
            own = ref.data.detach()
            ref.made = (cell, own.requires_grad_() if ref.tracks else own)
        return ref.made[1]
    if ref.made is None:
        for c in _pending_calls(ref.source):
            _record(c)
        assert ref.source.done is not None
        t = ref.source.done[ref.index]
        if ref.data is not None:
            lazy.resolve(t._cell).data = lazy.resolve(ref.data._cell).data
        ref.made = (None, t)
    return ref.made[1]


def _record(c: Call) -> tuple[nir.Tensor, ...]:
    """Let nir record ``c``."""
    if c.done is None:
        with lazy.enable_grad():
            c.done = tuple(c.lower(*map(tensor, c.args)))
    return c.done


def _pending_calls(last: Call) -> list[Call]:
    """The calls that ``last`` needs and nir has not recorded, in order."""
    order: list[Call] = []
    seen: set[int] = set()
    stack: list[tuple[Call, bool]] = [(last, False)]
    while stack:
        c, ready = stack.pop()
        if ready:
            order.append(c)
        elif c.done is None and id(c) not in seen:
            seen.add(id(c))
            stack.append((c, True))
            stack.extend((a.source, False) for a in c.args if a.source is not None)
    return order


# ---- running -----------------------------------------------------------------------------------


class _Plan(Frozen):
    """A program: its inputs (numbers of leaves, or storages), and where each result comes from."""

    compiled: flush.Compiled
    inputs: tuple[Any, ...]
    outputs: tuple[tuple[bool, int], ...]  # (whether an output, its number or that of a leaf)


_plans: OrderedDict[Any, _Plan] = OrderedDict()


def run(refs: Iterable[Ref]) -> None:
    """Store the values of ``refs``: one program. Nothing happens while a function is traced."""
    if lazy.tracing() is not None:
        return
    wanted = [r for r in dict.fromkeys(refs) if r.data is None]
    for r in wanted:
        if r.source is None:
            assert r.made is not None
            flush.store(r.made[1]._cell, "an op")
            r.data = r.made[1].detach()
    wanted = [r for r in wanted if r.data is None]
    if not wanted:
        return
    key, storages = _structure(wanted)
    plan = _plans.get(key)
    if plan is None:
        plan = _plans[key] = _planned(wanted, storages)
        _trim(_plans)
    else:
        _plans.move_to_end(key)
    data = [storages[i] if isinstance(i, int) else i for i in plan.inputs]
    outs = plan.compiled.run(plan.compiled.made, data) if plan.compiled.made.outputs else []
    for ref, (is_output, i) in zip(wanted, plan.outputs, strict=True):
        _keep(ref, outs[i] if is_output else storages[i])


def _keep(ref: Ref, storage: Any) -> None:
    ref.data = nir.Tensor._of(Cell(ref.type, storage))
    if ref.made is not None:
        lazy.resolve(ref.made[1]._cell).data = storage
    if not ref.tracks:
        ref.source = ref.made = None


def _storage(t: nir.Tensor) -> Any:
    return flush.store(t._cell, "an op")


def _planned(wanted: Sequence[Ref], storages: Sequence[Any]) -> _Plan:
    """Record what ``wanted`` needs, and compile it."""
    cells = [lazy.resolve(tensor(r)._cell) for r in wanted]
    numbers = {id(s): i for i, s in enumerate(storages)}
    pending = list(dict.fromkeys(c for c in cells if c.data is None))
    prepared = flush.prepare(pending)
    at = {c: i for i, c in enumerate(pending)}
    return _Plan(
        flush.compiled(prepared.graph),
        tuple(numbers.get(id(s), s) for s in prepared.inputs),
        tuple((True, at[c]) if c in at else (False, numbers[id(c.data)]) for c in cells),
    )


def _structure(wanted: Sequence[Ref]) -> tuple[Any, list[Any]]:
    """(what is to be computed, up to the values of the leaves; the storages of the leaves)."""
    history = _history(wanted)
    leaves: list[Any] = []
    types: list[Any] = []
    leaf_at: dict[int, int] = {}
    call_at: dict[int, int] = {}
    calls: list[Any] = []

    def number(t: nir.Tensor) -> int:
        storage = _storage(t)
        at = leaf_at.get(id(storage))
        if at is None:
            at = leaf_at[id(storage)] = len(leaves)
            leaves.append(storage)
        type_ = t._cell.value.type
        types.append((at, type_.dtype.name, type_.shape))
        return at

    def code(r: Ref) -> Any:
        if r.source is not None and id(r.source) in call_at:
            kept = None if r.data is None else number(r.data)
            return call_at[id(r.source)], r.index, kept
        assert r.data is not None
        return number(r.data), r.tracks

    stack: list[tuple[Call, bool]] = [(r.source, False) for r in reversed(wanted)]  # type: ignore[misc]
    while stack:
        c, ready = stack.pop()
        if id(c) in call_at:
            continue
        if ready:
            calls.append((c.key, tuple([code(a) for a in c.args])))
            call_at[id(c)] = len(call_at)
        else:
            stack.append((c, True))
            for a in c.args:
                if a.source is not None and (a.data is None or id(a.source) in history):
                    stack.append((a.source, False))
    target = flush.default_target()
    outputs = tuple([(call_at[id(r.source)], r.index) for r in wanted])
    return (tuple(calls), tuple(types), outputs, target), leaves


def _history(wanted: Sequence[Ref]) -> set[int]:
    """The calls behind ``wanted`` of which a gradient is taken: their values alone do not do."""
    seen: set[int] = set()
    kept: set[int] = set()
    stack: list[tuple[Call, bool]] = [(r.source, False) for r in wanted if r.source is not None]
    while stack:
        c, behind = stack.pop()
        if id(c) in kept or (not behind and id(c) in seen):
            continue
        (kept if behind else seen).add(id(c))
        behind = behind or (isinstance(c.key, tuple) and c.key[0] == "gradient")
        for a in c.args:
            if a.source is not None and (a.data is None or (behind and a.tracks)):
                stack.append((a.source, behind and a.tracks))
    return kept
