"""Tracing: run a function once on symbolic tensors and keep what it recorded as a Graph."""

from __future__ import annotations

import gc
import inspect
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np

from nir.errors import TraceError
from nir.frontend import autograd, lazy, pytree
from nir.frontend.lazy import Cell, Record, resolve
from nir.frontend.random import default_generator
from nir.frontend.spec import argument_types
from nir.frontend.state import Slot, Snapshot, named, snapshot
from nir.frontend.tensor import Tensor
from nir.frozen import Frozen, replace
from nir.ir.graph import Graph
from nir.ir.location import caller
from nir.ir.op import Op
from nir.ir.types import TensorType
from nir.ops import Constant


class Ref(Frozen):
    """Where a result comes from: an output of the graph, or an input handed through."""

    kind: Literal["output", "input"]
    index: int


class GradWrite(Frozen):
    """What becomes of a parameter's ``grad``: a result, None, or used up inside."""

    slot: int
    to: Ref | None
    used: bool = False


class Traced(Frozen, eq=False):
    """A traced function: its graph, and where the graph's inputs and outputs belong."""

    graph: Graph  # its outputs: each computed value once
    arguments: int  # graph inputs below this are the function's tensor arguments
    reads: tuple[int, ...]  # the others: slots of the state
    structure: pytree.Tree  # of the function's result
    results: tuple[Ref, ...]
    writes: tuple[tuple[int, Ref], ...]  # slots that were rebound
    grads: tuple[GradWrite, ...]
    missing_grads: tuple[int, ...] = ()  # slots whose grad was read and was None

    @property
    def whole_graph(self) -> Graph:
        """The graph with one output for each result, and then for each write."""
        refs = [*self.results, *(ref for _, ref in self.writes)]
        refs += [g.to for g in self.grads if g.to is not None]
        values = {"output": self.graph.outputs, "input": self.graph.inputs}
        return self.graph.with_(outputs=tuple(values[r.kind][r.index] for r in refs), donate=())


def trace_function(
    fn: Callable[..., Any],
    types: Sequence[TensorType],
    structure: pytree.Tree,
    state: Mapping[str, Any] | Iterable[Any] = (),
    tracks: Sequence[bool] = (),
    donated: Collection[int] = (),
) -> Traced:
    """Trace ``fn(*args, **kwargs)``, ``structure`` being that of (args, kwargs).

    Outputs may take over the buffers of the arguments numbered in ``donated``.
    The tensors of ``state`` are symbolic meanwhile. Whatever happens, they are themselves again
    afterwards; a plain attribute that the function changed is a TraceError.
    """
    before = snapshot(state)
    slots = before.slots
    with lazy.new_trace() as trace, collector_paused():
        names = _argument_names(fn, structure, len(types))
        cells = [_symbolic(t, n) for t, n in zip(types, names, strict=True)]
        arguments = [Tensor._of(c) for c in cells]
        for t, tracked in zip(arguments, tracks, strict=False):
            t.requires_grad_(tracked)
        saved = [(s.tensor, s.tensor._cell, s.tensor._grad) for s in slots]
        try:
            symbolic = [_bind(s) for s in slots]
            missing = [s.tensor._grad for s in slots]
            args, kwargs = pytree.unflatten(structure, arguments)
            result = fn(*args, **kwargs)
            outputs, out_structure = pytree.tensors(result)
            after = snapshot(state)
            _refuse_changes(before, after)
            traced = _traced(
                _name(fn), trace, cells, symbolic, slots, after, outputs, out_structure, donated
            )
            relied = tuple(
                i for i, g in enumerate(missing) if isinstance(g, autograd.Initial) and g.read
            )
            return replace(traced, missing_grads=relied)
        finally:
            for t, cell, grad in saved:
                t._cell, t._grad = cell, grad
            for s in slots:
                if not isinstance(s.holder, Tensor | tuple):
                    s.put(s.tensor)


@contextmanager
def collector_paused() -> Iterator[None]:
    """Without the cycle collector: what traces and passes make stays until they are done."""
    paused = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if paused:
            gc.enable()


def _symbolic(t: TensorType, name: str) -> Cell:
    cell = Cell(t)
    cell.symbolic = name
    return cell


def _bind(slot: Slot) -> Cell:
    """Let the slot's tensor be symbolic."""
    t = slot.tensor
    leaf = t.requires_grad
    cell = _symbolic(t.type, slot.path)
    t._cell = cell
    if leaf:
        t.requires_grad_()
    if not isinstance(t._grad, Tensor):
        t._grad = autograd.Initial(t._grad)
    return cell


def _refuse_changes(before: Snapshot, after: Snapshot) -> None:
    changes = before.differences(after)
    if changes:
        raise TraceError(
            "the traced function changes state that is no tensor, which a compiled program cannot "
            f"repeat: {'; '.join(changes[:3])}",
            caller(),
        )


def _traced(
    name: str,
    trace: lazy.Trace,
    arguments: Sequence[Cell],
    symbolic: Sequence[Cell],
    slots: Sequence[Slot],
    after: Snapshot,
    outputs: Sequence[Tensor],
    structure: pytree.Tree,
    donated: Collection[int],
) -> Traced:
    now = {s.path: s.tensor for s in after.slots}
    results = [resolve(t._cell) for t in outputs]
    writes = [
        (i, cell)
        for i, (slot, own) in enumerate(zip(slots, symbolic, strict=True))
        if slot.path in now and (cell := resolve(now[slot.path]._cell)) is not own
    ]
    grads = [(i, s.tensor._grad) for i, s in enumerate(slots) if not isinstance(s.holder, Tensor)]
    kept = [
        (i, resolve(g.grad._cell))
        for i, g in grads
        if isinstance(g, autograd.Traced) and not g.read
    ]
    effects = [c for r in trace.effects for c in r.cells()]
    roots = [*results, *(c for _, c in writes), *(c for _, c in kept)]
    records, leaves = lazy.collect([*effects, *roots], trace.first)
    refuse_captures(trace, records, leaves)
    constants = [constant_op(c, records) for c in leaves if c.symbolic is None]
    used = set(leaves)
    reads = tuple(i for i, c in enumerate(symbolic) if c in used)
    inputs = [*arguments, *(symbolic[i] for i in reads)]
    at_input = {c: Ref("input", i) for i, c in enumerate(inputs)}
    computed = list(dict.fromkeys(c for c in roots if c not in at_input))
    where = {**{c: Ref("output", i) for i, c in enumerate(computed)}, **at_input}
    names = [c.symbolic or "" for c in inputs]
    graph = Graph(
        name,
        [c.value for c in inputs],
        [*constants, *lazy.nodes_of(records)],
        [c.value for c in computed],
        _unique(names),
        donate=_donations(inputs, computed, reads, len(arguments), donated, dict(writes)),
    )
    return Traced(
        graph,
        len(arguments),
        reads,
        structure,
        tuple(where[c] for c in results),
        tuple((i, where[c]) for i, c in writes),
        tuple(
            GradWrite(i, where.get(dict(kept).get(i)), isinstance(g, autograd.Traced) and g.read)  # type: ignore[arg-type]
            for i, g in grads
            if g is None or isinstance(g, autograd.Traced)
        ),
    )


def _donations(
    inputs: Sequence[Cell],
    outputs: Sequence[Cell],
    reads: Sequence[int],
    first: int,
    donated: Collection[int],
    writes: Mapping[int, Cell],
) -> list[tuple[int, int]]:
    """(input, output) pairs of which the output may take over the input's buffer.

    A state tensor goes with its own new value, a donated argument with any output of its type.
    """
    at = {c: i for i, c in enumerate(outputs)}
    pairs = [
        (first + k, at[writes[slot]])
        for k, slot in enumerate(reads)
        if slot in writes and writes[slot] in at
    ]
    taken = {out for _, out in pairs}
    for i in sorted(donated):
        for out, c in enumerate(outputs):
            if out not in taken and c.type == inputs[i].type:
                taken.add(out)
                pairs.append((i, out))
                break
    return pairs


def refuse_captures(trace: lazy.Trace, records: Sequence[Record], leaves: Sequence[Cell]) -> None:
    """TraceError, at the reader's line, if ``leaves`` hold a cell that is not the trace's own."""
    for c in leaves:
        if c.born >= trace.first:
            continue
        reader = next((r for r in records if any(resolve(a) is c for a in r.args)), None)
        where = ", ".join(map(str, sorted(reader.op.locs))) if reader else caller()
        if c.symbolic is not None:
            raise TraceError(f"a tensor (%{c.symbolic}: {c.type}) of another trace is read", where)
        raise TraceError(
            f"a tensor ({c.type}) that is neither argument nor state is read while the function is "
            "traced: pass it, name its owner in state=[...], or wrap it in nir.constant()",
            where,
        )


def constant_op(c: Cell, records: Sequence[Record]) -> Op:
    """The Constant that ``c``, a tensor made while tracing, becomes."""
    assert c.data is not None
    reader = next((r for r in records if any(resolve(a) is c for a in r.args)), None)
    locs = reader.op.locs if reader is not None else frozenset((caller(),))
    return Constant(np.array(c.data.numpy()), results=(c.value,), locs=locs)


# ---- names -------------------------------------------------------------------------------------


def _argument_names(fn: Callable[..., Any], structure: pytree.Tree, count: int) -> list[str]:
    """Names of the tensor arguments: their parameters', and paths inside of them."""
    assert isinstance(structure, pytree.Node)
    args, kwargs = structure.children
    assert isinstance(args, pytree.Node) and isinstance(kwargs, pytree.Node)
    names: dict[int, str] = {}
    for label, child in zip(parameter_names(fn, len(args.children)), args.children, strict=True):
        names |= pytree.paths(child, label)
    for label, child in zip(kwargs.extra, kwargs.children, strict=True):
        names |= pytree.paths(child, label)
    return [names[i] for i in range(count)]


def parameter_names(fn: Callable[..., Any], count: int) -> list[str]:
    """Names of the first ``count`` positional parameters of ``fn``."""
    named: list[str] = []
    try:
        for p in inspect.signature(getattr(fn, "forward", fn)).parameters.values():
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD):
                named.append(p.name)
    except (TypeError, ValueError):
        pass
    return [named[i] if i < len(named) else f"arg{i}" for i in range(count)]


def _unique(names: Sequence[str]) -> list[str]:
    taken: set[str] = set()
    out = []
    for n in names:
        base = re.sub(r"[^\w.]", "_", n).strip(".") or "x"
        base = base if base[0].isalpha() or base[0] == "_" else f"_{base}"
        name, k = base, 1
        while name in taken:
            name, k = f"{base}_{k}", k + 1
        taken.add(name)
        out.append(name)
    return out


def _name(fn: Any) -> str:
    name = getattr(fn, "__name__", type(fn).__name__)
    return name if name.isidentifier() else "fn"


# ---- the public function -----------------------------------------------------------------------


def owned_state(fn: Any) -> list[Any]:
    """The state that ``fn`` brings along: itself, if it is an object; a method's object."""
    owner = getattr(fn, "__self__", fn)
    plain = inspect.isroutine(owner) or inspect.ismodule(owner) or inspect.isclass(owner)
    return [] if plain or not hasattr(owner, "__dict__") else [owner]


def all_state(fn: Any, state: Any) -> dict[str, Any]:
    """The state of a compiled ``fn``: its own, what the user names, and the default generator."""
    own = dict(state) if isinstance(state, Mapping) else named([*owned_state(fn), *state])
    return {**own, "default_generator": default_generator}


def trace(fn: Callable[..., Any], *specs: Any, state: Any = (), **kwargs: Any) -> Graph:
    """The Graph of ``fn``.

    Arguments are specs ("f32[B,4]" or `nir.spec`), Tensors or arrays, trees of these, or static.
    Tensors of the state that it reads (of ``state``, and of ``fn`` if it is a Module) are inputs
    after the arguments, named by path; the values it rebinds them to are outputs after its
    results. Raises TraceError where the function does what a graph cannot hold.

    >>> import nir
    >>> print(nir.trace(lambda x: x.relu(), "f32[B,4]").output_types)
    (f32[B,4],)
    """
    types, structure = argument_types((specs, kwargs))
    return trace_function(fn, types, structure, all_state(fn, state)).whole_graph
