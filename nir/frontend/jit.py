"""`jit`: functions that are traced once, run as compiled programs, and update their state."""

from __future__ import annotations

import functools
import inspect
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import is_, itemgetter
from typing import Any

import numpy as np

from nir.errors import DeviceError, DTypeError, NirError, TraceError
from nir.frontend import autograd, emit, flush, lazy, ownership, pytree
from nir.frontend.lazy import Cell
from nir.frontend.limit import bytes_of
from nir.frontend.spec import argument_types
from nir.frontend.state import Snapshot, snapshot
from nir.frontend.tensor import Tensor, mark_donated
from nir.frontend.trace import Ref, Traced, all_state, collector_paused, trace_function
from nir.frozen import Frozen
from nir.ir.bind import bind_shapes
from nir.ir.graph import Graph
from nir.ir.location import caller
from nir.ir.types import TensorType
from nir.runtime import Profile, Roofs, Storage


class Signature(Frozen):
    """What a trace is true for, besides the facts of the state."""

    types: tuple[TensorType, ...]
    structure: pytree.Tree
    tracks: tuple[bool, ...]
    slots: tuple[tuple[str, TensorType, bool], ...]

    def differences(self, other: Signature) -> list[str]:
        """What changed from this signature to the other, in words."""
        changed = [
            f"argument {i}: {a} -> {b}"
            for i, (a, b) in enumerate(zip(self.types, other.types, strict=False))
            if a != b
        ]
        if self.structure != other.structure:
            changed.append(f"arguments: {shown(self.structure)} -> {shown(other.structure)}")
        if self.tracks != other.tracks:
            changed.append("requires_grad of an argument")
        old, new = ({path: rest for path, *rest in s.slots} for s in (self, other))
        changed += [
            f"{path}: {old.get(path, ['absent'])[0]} -> {new.get(path, ['absent'])[0]}"
            for path in {**old, **new}
            if old.get(path) != new.get(path)
        ]
        return changed


def shown(structure: pytree.Tree) -> str:
    match structure:
        case pytree.Leaf():
            return "*"
        case pytree.Static(value):
            return repr(value)
        case pytree.Node(kind, _, children):
            return f"{kind.__name__}({', '.join(map(shown, children))})"


Writes = tuple[tuple[int, tuple[int, Ref]], ...]


class InPlace(Frozen, eq=False):
    """Writes of a program that put new values where the old ones were, and those that do not.

    ``old`` and ``new`` pick the storages of the first from inputs and outputs, all at once: a step
    of a small model has hundreds, and little time.
    """

    old: Callable[[Any], Any]
    new: Callable[[Any], Any]
    others: Writes

    @staticmethod
    def found(writes: Writes, data: Sequence[Any], outputs: Sequence[Any]) -> InPlace | None:
        """What a run to which everything was offered did; None where nothing was done in place."""
        done = [
            (at, ref.index) for at, (_, ref) in writes if at >= 0 and data[at] is outputs[ref.index]
        ]
        if len(done) < 2:
            return None
        inputs, results = zip(*done, strict=True)
        others = tuple(w for w in writes if w[0] not in inputs)
        return InPlace(itemgetter(*inputs), itemgetter(*results), others)

    def happened(self, data: Sequence[Any], outputs: Sequence[Any]) -> bool:
        return all(map(is_, self.old(data), self.new(outputs)))


@dataclass(eq=False, slots=True)
class Entry:
    """One trace of a function, and its program."""

    signature: Signature
    facts: Snapshot
    traced: Traced
    compiled: flush.Compiled
    rebound: tuple[int, ...] = ()  # inputs whose buffers outputs may take over
    types: tuple[TensorType | None, ...] = ()  # of the outputs; None where a run decides
    inputs: tuple[int, ...] = ()  # of each write: the input with an old value of its type, or -1
    in_place: InPlace | None = None  # what the program overwrites when it may
    reading: tuple[Snapshot, list[Tensor]] | None = None  # the state read, as it was last found

    def __post_init__(self) -> None:
        graph, reads = self.traced.graph, self.traced.reads
        self.rebound = tuple(sorted(i for i, _ in graph.donate))
        self.types = tuple(t if t.is_static else None for t in graph.output_types)
        at = {slot: self.traced.arguments + k for k, slot in enumerate(reads)}
        self.inputs = tuple(
            at[slot]
            if ref.kind == "output"
            and slot in at
            and graph.input_types[at[slot]] == graph.output_types[ref.index]
            else -1
            for slot, ref in self.traced.writes
        )

    def writes(self, data: Sequence[Any], outputs: Sequence[Any], all_offered: bool) -> Writes:
        """(input, (slot, result)) of each write that has to be done: not those done in place."""
        if self.in_place is not None and self.in_place.happened(data, outputs):
            return self.in_place.others
        every = tuple(zip(self.inputs, self.traced.writes, strict=True))
        if all_offered:
            self.in_place = InPlace.found(every, data, outputs)
        return every


class Jitted:
    """A function that is traced and compiled when it is first called; made by `jit`.

    ``compiles`` counts its programs, ``compile_seconds`` is the time they took, tracing included,
    and ``why`` says for each what made it necessary.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        state: Sequence[Any] | Mapping[str, Any] = (),
        specs: Sequence[Any] | None = None,
        static_argnames: Sequence[str] = (),
        donate: Sequence[str] = (),
        target: Any = None,
        memory: int | str | None = None,
        numerics: str | None = None,
    ) -> None:
        functools.update_wrapper(self, fn)
        self.fn = fn
        self.target = target
        self.memory = bytes_of(memory)
        self.numerics = numerics
        flush.chosen_target(target, numerics)  # a wrong word is an error here
        self.static_argnames = frozenset(static_argnames)
        self.donate = frozenset(donate)
        self.why: list[str] = []
        self.compiles = 0
        self.compile_seconds = 0.0
        self._state = all_state(fn, state)
        self._specs = None if specs is None else argument_types((tuple(specs), {}))
        self._entries: list[Entry] = []
        self._view: Snapshot | None = None  # what the last call found
        self._used = autograd.Used(caller())  # what gradients are that a step has used up
        self._fits: tuple[list[TensorType], pytree.Tree] | None = None  # what last met the specs
        self._lock = threading.RLock()

    # ---- calling -------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if lazy.tracing() is not None:
            return self.fn(*args, **kwargs)  # part of the function being traced
        found = self._prepare(args, kwargs)
        return self.fn(*args, **kwargs) if found is None else self._run(*found)

    def profile(
        self, *args: Any, runs: int = 5, roofs: Roofs | None = None, **kwargs: Any
    ) -> Profile:
        """Where the time of a call goes: by line, by kernel, on which thread.

        The program runs without effect: state stays as it is, and nothing is donated.
        """
        found = self._prepare(args, kwargs)
        if found is None:
            raise NirError(f"{self._name}: profile: an argument requires a gradient", caller())
        entry, arguments, state, _, _ = found
        _, data, _ = self._holdings(self._tensors(entry, arguments, state))
        profile: Profile = entry.compiled.executable.profile(data, runs, roofs)
        return profile

    def _prepare(self, args: Any, kwargs: Any) -> Any:
        """What `_run` takes; None for a call whose ops have to be recorded one by one."""
        named = self._named(args, kwargs) if self.static_argnames or self.donate else {}
        leaves, structure = pytree.flatten(self._hide_static(args, kwargs, named))
        arguments = [x if isinstance(x, Tensor) else borrowed(x) for x in leaves]
        if lazy.grad_enabled() and any(t.requires_grad for t in arguments):
            return None  # gradients flow to an argument
        found = self._view
        if found is None or not found.holds():
            found = self._view = snapshot(self._state)
        donated = self._donated(named, arguments) if self.donate else frozenset()
        entry = self._entry(arguments, structure, found, donated)
        return entry, arguments, found, leaves, donated

    def _named(self, args: Any, kwargs: Any) -> dict[str, Any]:
        try:
            return inspect.signature(self.fn).bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TraceError(f"{self._name}: {error}", caller()) from None

    def _hide_static(self, args: Any, kwargs: Any, named: dict[str, Any]) -> Any:
        """(args, kwargs) with static arguments as values that are no trees."""
        if not self.static_argnames:
            return args, kwargs
        static = {id(v) for k, v in named.items() if k in self.static_argnames}
        return (
            tuple(_Hidden(a) if id(a) in static else a for a in args),
            {k: _Hidden(v) if k in self.static_argnames else v for k, v in kwargs.items()},
        )

    def _donated(self, named: dict[str, Any], arguments: Sequence[Tensor]) -> frozenset[int]:
        """Numbers of the tensors in donated arguments."""
        unknown = self.donate - named.keys()
        if unknown:
            raise TraceError(
                f"{self._name}: donate names {', '.join(sorted(unknown))}, which is no argument",
                caller(),
            )
        leaves, _ = pytree.flatten([v for k, v in named.items() if k in self.donate])
        given = set(map(id, leaves))
        return frozenset(i for i, t in enumerate(arguments) if id(t) in given)

    @property
    def _name(self) -> str:
        return getattr(self.fn, "__name__", type(self.fn).__name__)

    # ---- traces --------------------------------------------------------------------------------

    def _entry(
        self,
        arguments: list[Tensor],
        structure: pytree.Tree,
        found: Snapshot,
        donated: frozenset[int],
    ) -> Entry:
        signature = Signature(
            self._types(arguments, structure),
            structure,
            tuple(t.requires_grad for t in arguments),
            found.marks(),
        )
        with self._lock:
            for entry in self._entries:
                same = entry.facts is found or entry.facts.facts == found.facts
                if same and entry.signature == signature:
                    entry.facts = found  # the next comparison is one of identities
                    return entry
            return self._compile(signature, found, donated)

    def _types(self, arguments: list[Tensor], structure: pytree.Tree) -> tuple[TensorType, ...]:
        """The types to trace for: those of the specs, which the arguments must fit."""
        if self._specs is None:
            return tuple(t.type for t in arguments)
        types, expected = self._specs
        own = [t.type for t in arguments]
        if self._fits == (own, structure):
            return tuple(types)
        if structure != expected:
            raise TraceError(
                f"{self._name}: expected arguments {shown(expected)} (specs: "
                f"{', '.join(map(str, types))}), got {shown(structure)}",
                caller(),
            )
        names = list(pytree.paths(structure, "argument").values())
        check_arguments(types, own, names)
        self._fits = own, structure
        return tuple(types)

    def _compile(self, signature: Signature, found: Snapshot, donated: frozenset[int]) -> Entry:
        self.why.append(self._reason(signature, found))
        start = time.perf_counter()
        with collector_paused():
            traced = trace_function(
                _Shown(self.fn), signature.types, signature.structure, self._state,
                signature.tracks,
                donated,
            )  # fmt: skip
            target = flush.chosen_target(self.target, self.numerics)
            program = flush.compiled(traced.graph, target, self.memory)
            entry = Entry(signature, found, traced, program)
        self._entries.append(entry)
        self.compiles += 1
        self.compile_seconds += time.perf_counter() - start
        return entry

    def _reason(self, signature: Signature, found: Snapshot) -> str:
        """Why no trace fits: what differs from the one that is nearest, the last of several."""
        if not self._entries:
            return "first call"
        changes: list[list[str]] = [
            [*e.signature.differences(signature), *e.facts.differences(found)]
            for e in reversed(self._entries)
        ]
        nearest: list[str] = min(changes, key=len)
        return "; ".join(nearest)

    # ---- running -------------------------------------------------------------------------------

    def _tensors(self, entry: Entry, arguments: list[Tensor], found: Snapshot) -> list[Tensor]:
        """What the program reads: arguments, then state."""
        for i in entry.traced.missing_grads:
            if isinstance(used := found.slots[i].tensor._grad, autograd.Used):
                raise used.error()
        if entry.reading is None or entry.reading[0] is not found:
            entry.reading = found, [found.slots[i].tensor for i in entry.traced.reads]
        return arguments + entry.reading[1]

    def _holdings(self, tensors: list[Tensor]) -> tuple[list[Cell], list[Any], list[bool]]:
        """`ownership.holdings` of computed ``tensors``."""
        cells, data, sole = ownership.holdings(tensors)
        if None in data:
            flush.realize(cells)
            for c in cells:
                flush.store(c, self._name)
            del c
            cells, data, sole = ownership.holdings(tensors)
        return cells, data, sole

    def _run(
        self, entry: Entry, arguments: list[Tensor], found: Snapshot, leaves: list[Any],
        donated: frozenset[int],
    ) -> Any:  # fmt: skip
        traced, slots = entry.traced, found.slots
        tensors = self._tensors(entry, arguments, found)
        cells, data, sole = self._holdings(tensors)
        offered = [i for i in entry.rebound if sole[i]]
        outputs = entry.compiled.run(traced.graph, data, offered, in_place=True)
        # Only now that the run has succeeded does anything change.
        where = caller()

        def cell(ref: Ref) -> Cell:
            if ref.kind == "output":
                out = outputs[ref.index]
                t = entry.types[ref.index]
                return Cell(t or concrete(traced.graph.outputs[ref.index].type, out), out)
            own = tensors[ref.index]
            borrowed = ref.index < len(leaves) and own is not leaves[ref.index]
            return emit.stored(own.numpy()) if borrowed else Cell(own.type, data[ref.index])

        results = [Tensor._of(cell(ref)) for ref in traced.results]
        writes = entry.writes(data, outputs, len(offered) == len(entry.rebound))
        new = [
            # A cell that nobody else holds takes the new value in; else a new one takes its place.
            None if at >= 0 and sole[at] else cell(ref)
            for at, (_, ref) in writes
        ]
        for made, (at, (slot, ref)) in zip(new, writes, strict=True):
            if made is None:
                cells[at].data, cells[at].exported = outputs[ref.index], False
            else:
                slots[slot].tensor._adopt(made, slots[slot].tensor.requires_grad)
        used = self._used = self._used if self._used.where is where else autograd.Used(where)
        for g in traced.grads:
            kept = None if g.to is None else Tensor._of(cell(g.to))
            slots[g.slot].tensor._grad = used if g.used else kept
        for i in donated:
            mark_donated(arguments[i], where)
        return pytree.unflatten(traced.structure, results)

    # ---- inspection ----------------------------------------------------------------------------

    def _last(self) -> Entry:
        if not self._entries:
            raise NirError(f"{self._name} has not been called yet", caller())
        return self._entries[-1]

    @property
    def graph(self) -> Graph:
        """The graph last traced."""
        return self._last().traced.graph

    @property
    def executable(self) -> Any:
        """The program last compiled."""
        return self._last().compiled.executable

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        """As a method: the instance is the first argument."""
        return self if instance is None else functools.partial(self, instance)

    def __repr__(self) -> str:
        return f"<jit of {self._name}: {self.compiles} programs>"


class _Hidden:
    """A static argument: compared by value, whatever it is."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hidden) and bool(self.value == other.value)

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return repr(self.value)


class _Shown:
    """``fn`` with its static arguments as the user gave them."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn
        self.forward = getattr(fn, "forward", fn)  # what parameters are named by
        self.__name__ = getattr(fn, "__name__", type(fn).__name__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.fn(*map(_plain, args), **{k: _plain(v) for k, v in kwargs.items()})


def _plain(x: Any) -> Any:
    return x.value if isinstance(x, _Hidden) else x


def borrowed(x: Any) -> Tensor:
    """A Tensor on the array's own memory, for as long as a call lasts."""
    array = np.asarray(x) if hasattr(x, "__array__") else np.from_dlpack(x)
    return Tensor._of(
        Cell(
            TensorType(emit.dtype_of(array.dtype), array.shape),
            Storage.from_numpy(array, copy=False),
        )
    )


def concrete(t: TensorType, out: Storage) -> TensorType:
    return t if t.is_static else t.with_(shape=tuple(out.shape))


def check_arguments(
    types: Sequence[TensorType], given: Sequence[TensorType], names: Sequence[str]
) -> None:
    """Raise DTypeError, DeviceError or ShapeError unless ``given`` fits ``types``."""
    where = caller()
    try:
        for name, t, own in zip(names, types, given, strict=True):
            if t.device != own.device:
                raise DeviceError(f"{name}: expected a tensor on {t.device}, got {own}", where)
            if t.dtype != own.dtype:
                raise DTypeError(f"{name}: expected {t}, got {own}", where)
        bind_shapes(types, [g.shape for g in given], names)  # type: ignore[misc]
    except NirError as error:
        error.location = error.location or where
        raise


def jit(
    fn: Callable[..., Any] | None = None,
    *,
    state: Sequence[Any] | Mapping[str, Any] = (),
    specs: Sequence[Any] | None = None,
    static_argnames: Sequence[str] = (),
    donate: Sequence[str] = (),
    target: Any = None,
    memory: int | str | None = None,
    numerics: str | None = None,
) -> Any:
    """Compile ``fn``: traced when first called, and again when what it was traced for changes.

    state: modules, optimisers, generators, or trees of tensors, that ``fn`` reads or rebinds; they
        are updated together after a successful run. Plain attributes of theirs (``training``) are
        constants of a trace, and a change traces again: ``why`` of the result lists the reasons.
    specs: types of the tensor arguments in order, "f32[B,3,32,32]". One program then serves every
        size of B. Without them each new shape is traced for itself.
    static_argnames: arguments that are constants, compared by ==. Python numbers and strings
        always are.
    donate: names of arguments whose buffers the outputs may take over; their Tensors cannot be
        read afterwards.
    memory: what a call may take besides arguments and state, "64MiB": MemoryBudgetError, naming
        what is largest, where it cannot be done with.
    numerics: "strict" computes each op as it is defined; "fast", which is the default, may take
        another algorithm where it wins (docs/numerics.md).

    A gradient that ``fn`` both makes and uses (backward and step) is not kept in ``grad``.

        @nir.jit(state=[model, optimizer], specs=("f32[B,784]", "i64[B]"))
        def step(x, y): ...
    """

    def wrap(f: Callable[..., Any]) -> Jitted:
        return Jitted(f, state, specs, static_argnames, donate, target, memory, numerics)

    return wrap if fn is None else wrap(fn)
