"""`jit` and `compile`: traced functions run as compiled programs, their state written back."""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from nir.compile import compile_graph
from nir.errors import StaleTensorError, TraceError
from nir.frontend import lazy
from nir.frontend.gradients import register_leaf
from nir.frontend.lazy import Cell
from nir.frontend.random import default_generator
from nir.frontend.state import StateView, flatten, state_of, unflatten
from nir.frontend.tensor import Tensor
from nir.frontend.trace import Traced, argument_types, owned_state, trace_function
from nir.ir.graph import Graph
from nir.ir.location import caller
from nir.ir.types import TensorType


@dataclass(eq=False)
class _Entry:
    """One compiled form of a function."""

    traced: Traced
    executable: Any
    guards: dict[str, Any]
    signature: Any

    def __post_init__(self) -> None:
        graph = self.traced.graph
        self.donated = sorted({i for i, _ in graph.donate})
        # Types that do not depend on the run; None for the others.
        self.types = [v.type if v.type.is_static else None for v in graph.outputs]


class Jitted:
    """A function that is traced and compiled when it is first called; see `jit`.

    ``compiles`` counts the programs made, ``compile_seconds`` the time that took (tracing
    included), ``why`` says what made each of them necessary.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        state: Sequence[Any] = (),
        specs: Sequence[Any] | None = None,
        target: str | None = None,
    ) -> None:
        functools.update_wrapper(self, fn)
        self.fn = fn
        self.state = [*owned_state(fn), *state, default_generator]
        self.specs = specs
        self.target = target
        self.entries: list[_Entry] = []
        self._view: StateView | None = None
        self._spec_types: tuple[TensorType, ...] | None = None
        self.why: list[str] = []
        self.compiles = 0
        self.compile_seconds = 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        arguments, structure = flatten((args, kwargs))
        view = self._view
        if view is None or not view.holds():
            view = self._view = StateView(self.state)
        types = self._types(arguments)
        signature = (
            types, _frozen(structure), tuple(t.requires_grad for t in arguments), view.marks()
        )  # fmt: skip
        entry = self._find(signature, view.guards)
        if entry is None:
            entry = self._compile(types, structure, view, signature, arguments)
        return self._run(entry, arguments, [t for _, t in view.tensors])

    # ---- entries -------------------------------------------------------------------------------

    def _types(self, arguments: list[Tensor]) -> tuple[TensorType, ...]:
        if self.specs is None:
            return tuple(t.type for t in arguments)
        if self._spec_types is None:
            self._spec_types = tuple(argument_types((tuple(self.specs), {}))[0])
        types = self._spec_types
        if len(types) != len(arguments):
            raise TraceError(
                f"jit: expected {len(types)} tensor arguments (specs), got {len(arguments)}",
                caller(),
            )
        return types

    def _find(self, signature: Any, guards: dict[str, Any]) -> _Entry | None:
        for e in self.entries:
            if e.signature == signature and (e.guards is guards or e.guards == guards):
                # The objects of this call: the next comparison is of identities.
                e.signature, e.guards = signature, guards
                return e
        return None

    def _compile(
        self,
        types: tuple[TensorType, ...],
        structure: Any,
        view: StateView,
        signature: Any,
        arguments: list[Tensor],
    ) -> _Entry:
        self.why.append(self._reason(signature, view.guards))
        start = time.perf_counter()
        tracks = [t.requires_grad for t in arguments]
        with _collector_paused():
            traced = trace_function(self.fn, types, structure, view.tensors, tracks=tracks)
            executable = compile_graph(traced.graph, self.target or lazy.default_target())
        # The function may set plain attributes while it is traced: they count from now on.
        entry = _Entry(traced, executable, StateView(self.state).guards, signature)
        self.entries.append(entry)
        self.compiles += 1
        self.compile_seconds += time.perf_counter() - start
        return entry

    def _reason(self, signature: Any, guards: dict[str, Any]) -> str:
        if not self.entries:
            return "first call"
        last = self.entries[-1]
        changed = [
            f"{path}: {last.guards.get(path, 'absent')!r} -> {guards.get(path, 'absent')!r}"
            for path in {**last.guards, **guards}
            if last.guards.get(path) != guards.get(path)
            or (path in last.guards) != (path in guards)
        ]
        labels = ("argument types", "static arguments", "requires_grad of arguments", "state")
        for label, old, new in zip(labels, last.signature, signature, strict=True):
            if old != new:
                changed.append(f"{label}: {old} -> {new}")
        return "; ".join(changed)

    # ---- running -------------------------------------------------------------------------------

    def _run(self, entry: _Entry, arguments: list[Tensor], state: list[Tensor]) -> Any:
        traced = entry.traced
        cells = [t._cell for t in arguments]
        cells += [state[i]._cell for i in traced.state_inputs]
        lazy.realize(cells)
        for c in cells:
            if c.stale is not None:
                raise StaleTensorError(f"this tensor's buffer was donated at {c.stale}", caller())
        outputs = entry.executable.run([c.data for c in cells], entry.donated)
        results = [
            Cell(known or v.type.with_(shape=tuple(out.shape)), out)
            for known, v, out in zip(entry.types, traced.graph.outputs, outputs, strict=True)
        ]
        # Only now that the run has succeeded is any state changed.
        for i, cell in zip(traced.rebound, results[traced.outputs :], strict=True):
            t = state[i]
            tracks = t._cell.tracks
            t._cell = cell
            if tracks:
                register_leaf(cell, t)
        return unflatten(traced.structure, [Tensor._of(c) for c in results[: traced.outputs]])

    # ---- inspection ----------------------------------------------------------------------------

    @property
    def graph(self) -> Graph:
        """The graph last traced."""
        return self.entries[-1].traced.graph

    @property
    def executable(self) -> Any:
        """The program last compiled."""
        return self.entries[-1].executable


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Without the cycle collector: what a trace and its passes make stays until they are done."""
    paused = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if paused:
            gc.enable()


def _concrete(t: TensorType, out: Any) -> TensorType:
    return t if t.is_static else t.with_(shape=tuple(out.shape))


def _frozen(x: Any) -> Any:
    match x:
        case tuple() | list():
            return (type(x).__name__, *map(_frozen, x))
        case dict():
            return ("dict", *((k, _frozen(v)) for k, v in sorted(x.items())))
    return (type(x).__name__, x)


def jit(
    fn: Callable[..., Any] | None = None,
    *,
    state: Sequence[Any] = (),
    specs: Sequence[Any] | None = None,
    target: str | None = None,
) -> Any:
    """Compile ``fn``: traced on its first call, and again when types, statics or state change.

    ``state``: modules, optimisers, generators and other objects whose tensors the function reads
    or rebinds; they are updated after each successful run. ``specs``: types of the tensor arguments
    ("f32[B,3,32,32]"): one program serves every size of B. Python numbers are static.

        @nir.jit(state=[model, optimizer], specs=("f32[B,784]", "i64[B]"))
        def step(x, y): ...
    """
    if fn is None:
        return lambda f: Jitted(f, state, specs, target)
    return Jitted(fn, state, specs, target)


class Compiled:
    """A function compiled ahead of its first call; its state is bound, as it was at that time."""

    def __init__(self, traced: Traced, executable: Any, bound: list[Any]) -> None:
        self.traced, self.executable, self.bound = traced, executable, bound

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        arguments, _ = flatten((args, kwargs))
        lazy.realize([t._cell for t in arguments])
        data = [t._cell.data for t in arguments]
        outputs = self.executable.run([*data, *self.bound])
        graph = self.traced.graph
        cells = [
            Cell(_concrete(v.type, out), out) for v, out in zip(graph.outputs, outputs, strict=True)
        ]
        return unflatten(self.traced.structure, [Tensor._of(c) for c in cells])

    @property
    def graph(self) -> Graph:
        return self.traced.graph

    @property
    def program(self) -> Any:
        return self.executable.program

    @property
    def peak_bytes(self) -> Any:
        return self.executable.peak_bytes

    @property
    def compile_seconds(self) -> float:
        seconds: float = self.executable.compile_seconds
        return seconds

    def save(self, path: Any) -> None:
        """Write a package that runs without this code; the bound state goes along."""
        first = len(self.traced.arguments)
        bound = {first + i: data for i, data in enumerate(self.bound)}
        self.executable.save(path, bound)


def compile(fn: Any, *specs: Any, target: str = "cpu", **kwargs: Any) -> Any:
    """Compile a function, a Module or a Graph for arguments of ``specs``.

    A Module's tensors are bound: later changes to the module do not show.
    """
    if isinstance(fn, Graph):
        return compile_graph(fn, target)
    types, structure = argument_types((specs, kwargs))
    state, _ = state_of(owned_state(fn))
    traced = trace_function(fn, types, structure, state)
    if traced.rebound:
        names = ", ".join(state[i][0] for i in traced.rebound)
        raise TraceError(
            f"compile: the function rebinds state ({names}): use jit, or eval()", caller()
        )
    tensors = [state[i][1] for i in traced.state_inputs]
    lazy.realize([t._cell for t in tensors])
    executable = compile_graph(traced.graph, target)
    return Compiled(traced, executable, [t._cell.data for t in tensors])
