"""`nir.compile`: functions, Modules and Graphs compiled ahead of their first call."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nir.errors import DTypeError, ShapeError, StaleTensorError, TraceError
from nir.frontend import flush, lazy, ownership, pytree
from nir.frontend.jit import borrowed, check_arguments, concrete, shown
from nir.frontend.lazy import Cell
from nir.frontend.limit import bytes_of
from nir.frontend.spec import argument_types
from nir.frontend.state import snapshot
from nir.frontend.tensor import Tensor, mark_donated
from nir.frontend.trace import Ref, Traced, all_state, trace_function
from nir.ir.graph import Graph
from nir.ir.location import caller
from nir.runtime import Profile, Roofs, Storage
from nir.tune import tuned


class CompiledFunction:
    """A program that takes and returns Tensors, with the state it reads bound to it.

    ``bound`` is that state as the program reads it, weights packed, and ``handed`` the inputs of
    the traced graph that the function returns as they are. Arguments numbered in ``donated`` are
    given away at each call.
    """

    def __init__(
        self, traced: Traced, arguments: pytree.Tree, compiled: flush.Compiled,
        bound: Sequence[Storage], handed: Mapping[int, Storage],
        donated: Collection[int] = (),
    ) -> None:  # fmt: skip
        self.traced = traced
        self._arguments = arguments
        self._compiled = compiled
        self._bound = list(bound)
        self._handed = dict(handed)
        self._donated = sorted(donated)
        self._offered = sorted({i for i, _ in traced.graph.donate})
        # Positional arguments that are arrays each: the common case needs no walk over trees.
        plain = tuple(map(pytree.Leaf, range(traced.arguments)))
        self._plain = arguments == _call_structure(plain) and not donated

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run on Tensors or arrays. Raises ShapeError or DTypeError for ones that do not fit."""
        if self._plain and not kwargs and len(args) == self.traced.arguments:
            try:
                data: list[Any] = [_stored_as_is(x) for x in args]
                if None not in data:
                    return self._result(self._compiled.executable.run(data + self._bound), data)
            except (DTypeError, ShapeError, StaleTensorError):
                pass  # the way below raises it in terms of the user's arguments
        tensors = self._tensors(args, kwargs)
        arguments, offered = self._data(tensors)
        outputs = self._compiled.run(self.traced.graph, arguments + self._bound, offered)
        if self._donated:
            where = caller()
            for i in self._donated:
                mark_donated(tensors[i], where)
        return self._result(outputs, arguments)

    def _tensors(self, args: Any, kwargs: Any) -> list[Tensor]:
        """The arguments as Tensors with values."""
        leaves, structure = pytree.flatten((args, kwargs))
        if structure != self._arguments:
            raise TraceError(
                f"{self.traced.graph.name}: expected arguments {shown(self._arguments)}, "
                f"got {shown(structure)}",
                caller(),
            )
        tensors = [x if isinstance(x, Tensor) else borrowed(x) for x in leaves]
        graph = self.traced.graph
        names = graph.input_names[: len(tensors)]
        check_arguments(graph.input_types[: len(tensors)], [t.type for t in tensors], names)
        flush.realize([t._cell for t in tensors])
        return tensors

    def _data(self, tensors: list[Tensor]) -> tuple[list[Storage], list[int]]:
        """The storages of the arguments, and which of them outputs may take over."""
        name = self.traced.graph.name
        data = [flush.store(t._cell, name) for t in tensors]
        if not self._offered:
            return data, []
        del data  # it would count as a holder
        _, held, sole = ownership.holdings(tensors)
        return [s for s in held if s is not None], [i for i in self._offered if sole[i]]

    def profile(
        self, *args: Any, runs: int = 5, roofs: Roofs | None = None, **kwargs: Any
    ) -> Profile:
        """Where the time of a call goes: by line, by kernel, on which thread."""
        data = self._data(self._tensors(args, kwargs))[0] + self._bound
        profile: Profile = self.executable.profile(data, runs, roofs)
        return profile

    def _result(self, outputs: Sequence[Storage], arguments: Sequence[Any]) -> Any:
        """The function's result, made of the program's outputs and what is handed through."""
        graph = self.traced.graph

        def result(ref: Ref) -> Tensor:
            if ref.kind == "output":
                out = outputs[ref.index]
                return Tensor._of(Cell(concrete(graph.outputs[ref.index].type, out), out))
            held = self._handed.get(ref.index) or arguments[ref.index]
            cell = Cell(concrete(graph.inputs[ref.index].type, held), held)
            # An input handed through: the caller may hold and change its memory.
            return Tensor(Tensor._of(cell).numpy())

        results = [result(r) for r in self.traced.results]
        if type(self.traced.structure) is pytree.Leaf:
            return results[0]
        return pytree.unflatten(self.traced.structure, results)

    @property
    def executable(self) -> Any:
        return self._compiled.executable

    @property
    def graph(self) -> Graph:
        """The traced graph; `executable.graph` is the lowered one."""
        return self.traced.graph

    @property
    def program(self) -> Any:
        """The flat list of calls that runs."""
        return self.executable.program

    @property
    def peak_bytes(self) -> Any:
        """Bytes that a call takes besides inputs and weights: see `Executable.peak_bytes`."""
        return self.executable.peak_bytes

    @property
    def compile_seconds(self) -> float:
        seconds: float = self.executable.compile_seconds
        return seconds

    def save(self, path: str | Path) -> None:
        """Write a package: one file that runs elsewhere, the bound state inside."""
        first = self.traced.arguments
        self.executable.save(path, {first + i: s for i, s in enumerate(self._bound)})


def compile(
    fn: Any, *specs: Any, target: Any = "cpu", state: Any = (), donate: Sequence[str] = (),
    memory: int | str | None = None, numerics: str | None = None, tune: float = 0.0, **kwargs: Any,
) -> Any:  # fmt: skip
    """Compile a function, a Module or a Graph for arguments of ``specs`` ("f32[B,784]").

    State (a Module's, and ``state``) is bound as it is now: later changes do not show. Raises
    TraceError for a function that rebinds its state (a model in training): use `jit` or ``eval()``.

    Arguments named in ``donate`` are given away at each call: results may be written over them (a
    cache of keys and values is updated where it lies), and they are stale afterwards.

    A call takes at most ``memory`` ("64MiB") besides arguments and weights: the order of kernels
    and values computed again see to that, or MemoryBudgetError names what is too large.

    ``numerics`` "strict" computes each op as it is defined; "fast", which is the default, may take
    another algorithm where it wins (Winograd's for 3 x 3 convolutions: docs/numerics.md).

    ``tune`` is a number of seconds to spend on measuring which algorithm computes each convolution
    best on this machine, in place of a rule by shapes. The answer is kept in the cache on disk.
    """
    limit = bytes_of(memory)
    target = flush.chosen_target(target, numerics)
    if isinstance(fn, Graph):
        target = tuned(fn, target, tune) if tune else target
        return CompiledFunction(
            *_of_graph(fn), flush.Compiled(flush.compile_located(fn, target, limit), fn), [], {}
        )
    types, structure = argument_types((specs, kwargs))
    named = all_state(fn, state)
    donated = _leaves_of(fn, structure, len(types), donate)
    traced = trace_function(fn, types, structure, named, donated=donated)
    slots = snapshot(named).slots
    if traced.writes:
        names = ", ".join(slots[i].path for i, _ in traced.writes[:3])
        raise TraceError(
            f"compile: the function rebinds its state ({names}): use nir.jit, or call eval() first",
            caller(),
        )
    target = tuned(traced.graph, target, tune) if tune else target
    cells = [slots[i].tensor._cell for i in traced.reads]
    flush.realize(cells)
    bound = [flush.store(c, "compile") for c in cells]
    # Not shared with jit's programs: its compile time is its own.
    made = flush.compile_weights(traced.graph, traced.arguments, target, limit)
    weights = dict(enumerate(bound, traced.arguments))
    handed = {
        r.index: weights[r.index]
        for r in traced.results
        if r.kind == "input" and r.index in weights
    }
    return CompiledFunction(
        traced,
        structure,
        flush.Compiled(made.executable, traced.graph),
        made.bind(weights),
        handed,
        donated,
    )


def _leaves_of(fn: Any, structure: pytree.Tree, count: int, names: Sequence[str]) -> frozenset[int]:
    """Numbers of the tensors in the arguments ``names`` of ``fn``."""
    if not names:
        return frozenset()
    args, kwargs = pytree.unflatten(structure, range(count))
    given = inspect.signature(getattr(fn, "forward", fn)).bind(*args, **kwargs).arguments
    unknown = set(names) - given.keys()
    if unknown:
        raise TraceError(
            f"compile: donate names {', '.join(sorted(unknown))}, which is no argument", caller()
        )
    found, _ = pytree.flatten([given[n] for n in names], lambda x: isinstance(x, int))
    return frozenset(found)


def _call_structure(leaves: tuple[pytree.Tree, ...]) -> pytree.Tree:
    """The structure of a call ``f(*leaves)``."""
    positional = pytree.Node(tuple, None, leaves)
    return pytree.Node(tuple, None, (positional, pytree.Node(dict, (), ())))


def _stored_as_is(x: Any) -> Storage | None:
    """The storage of an array, or of a Tensor that has one; None for what takes more work."""
    if type(x) is np.ndarray:
        return Storage.from_numpy(x, copy=False)
    if type(x) is Tensor and x._cell.stale is None and lazy.tracing() is None:
        return x._cell.data
    return None


def _of_graph(graph: Graph) -> tuple[Traced, pytree.Tree]:
    """A graph as a function of its inputs: one Tensor, or a tuple of them."""
    count = len(graph.inputs)
    arguments = _call_structure(tuple(map(pytree.Leaf, range(count))))
    leaves: tuple[pytree.Tree, ...] = tuple(map(pytree.Leaf, range(len(graph.outputs))))
    out = leaves[0] if len(leaves) == 1 else pytree.Node(tuple, None, leaves)
    results = tuple(Ref("output", i) for i in range(len(graph.outputs)))
    traced = Traced(graph, count, (), out, results, (), ())
    return traced, arguments
