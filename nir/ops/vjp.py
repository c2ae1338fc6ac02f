"""Reverse-mode differentiation of graphs: the one walk that every gradient in nir comes from.

`vjp` makes the graph of a vector-Jacobian product, `gradient` a graph that also gives the forward
results, and `backward` is the walk itself. Each takes time linear in the number of ops. A gradient
op carries the locations of the forward op it belongs to, and the graphs made here are ordinary
graphs: they can be differentiated again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from itertools import pairwise

from nir.errors import NirError, NotDifferentiable, VerifyError
from nir.frozen import Frozen, replace
from nir.ir.graph import Builder, Graph, location_text
from nir.ir.location import Locations, derived
from nir.ir.op import Op, Value
from nir.ir.types import TensorType
from nir.ops.expr import Expr
from nir.ops.hold import Hold
from nir.ops.shape import Slice


def vjp(graph: Graph, wrt: Sequence[int] | None = None) -> Graph:
    """The graph that takes cotangents of the outputs to cotangents of the inputs.

    Inputs: those of ``graph``, then one cotangent for each output of a float dtype, in order.
    Outputs: one cotangent for each input named in ``wrt`` (by default each of a float dtype), in
    order; zeros where the outputs do not depend on it. The forward ops that are needed run again.
    """
    wrt = differentiable_inputs(graph) if wrt is None else tuple(wrt)
    b, outputs = _copy(graph, f"{graph.name}_vjp")
    _check_wrt(graph, wrt)
    seeds = _cotangent_inputs(b, [v for v in outputs if v.type.dtype.is_float])
    wanted = [b.inputs[i] for i in wrt]
    found = backward(b, b.nodes, seeds, wanted)
    return _finish(b, _filled(b, wanted, found), keep_impure=False)


def gradient(
    graph: Graph, wrt: Sequence[int] | None = None, of: int | Sequence[int] = 0, seeded: bool = True
) -> Graph:
    """``graph`` with gradients as further outputs: the results of one run, and their slopes.

    Outputs: those of ``graph``, then one gradient for each input named in ``wrt`` (by default each
    of a float dtype). ``seeded``: output ``of`` is a float scalar and the gradient is its
    derivative. Otherwise each output in ``of`` gets a cotangent as one further input, in order.
    """
    wrt = differentiable_inputs(graph) if wrt is None else tuple(wrt)
    b, outputs = _copy(graph, f"{graph.name}_grad")
    _check_wrt(graph, wrt)
    targets = [outputs[i] for i in ((of,) if isinstance(of, int) else of)]
    for v in targets:
        if not v.type.dtype.is_float:
            raise NotDifferentiable(f"gradient: expected an output of a float dtype, got {v.type}")
        if seeded and v.type.shape != ():
            raise NotDifferentiable(f"gradient: expected a scalar output, got {v.type}")
    if seeded:
        seeds: dict[Value, Expr] = {}
        producer = _producers(b.nodes)
        for v in targets:
            b.locs = _locations(producer, v)
            _accumulate(seeds, v, Expr(b, v).full_like(1.0))
    else:
        seeds = _cotangent_inputs(b, targets)
    wanted = [b.inputs[i] for i in wrt]
    found = backward(b, b.nodes, seeds, wanted)
    return _finish(b, [*outputs, *_filled(b, wanted, found)], keep_impure=True)


def differentiable_inputs(graph: Graph) -> tuple[int, ...]:
    """Positions of the inputs that have a float dtype."""
    return tuple(i for i, v in enumerate(graph.inputs) if v.type.dtype.is_float)


class Segment(Frozen):
    """Ops that a backward computes again, in order, with all that they need of their own.

    ``names`` maps a value to the result of one of them that it is another name of.
    """

    nodes: Sequence[Op]
    names: Mapping[Value, Value] = field(default_factory=dict)


def backward(
    b: Builder,
    nodes: Iterable[Op],
    seeds: dict[Value, Expr],
    wanted: Iterable[Value],
    segments: Mapping[int, Segment] | None = None,
) -> dict[Value, Expr]:
    """Walk ``nodes`` backwards from ``seeds`` (value -> cotangent); emits into ``b``.

    Returns the cotangents of the ``wanted`` values that anything flows back to. Only ops between
    the wanted values and the seeds are differentiated, so one that has no gradient is an error
    only there. Several cotangents of one value add up in the order in which they arise.

    The ops of each of ``segments`` (by default those that ``nodes`` have) run again when the walk
    comes to the first of them, and their gradients are those of the new results.
    """
    order = tuple(nodes)
    wanted = tuple(wanted)
    active = set(wanted)
    for op in order:
        if any(v in active for v in op.operands):
            active.update(v for v in op.results if v.type.dtype.is_float)
    cotangents = {v: ct for v, ct in seeds.items() if v in active}
    parts: dict[Value, list[_Part]] = {}
    outer = b.locs
    segments = _segments(order) if segments is None else segments
    again: dict[int, dict[Value, Value]] = {}
    for op in reversed(order):
        _join(b, op.results, parts, cotangents)
        reached = any(v in cotangents for v in op.results)
        if reached and any(v in active for v in op.operands):
            b.locs = derived(op.locs) if op.locs else outer
            if (part := _part(op, cotangents)) is not None:
                parts.setdefault(op.operands[0], []).append(part)
                continue
            if op.segment and op.segment not in again:
                after = next(cotangents[v] for v in op.results if v in cotangents)
                again[op.segment] = _repeat(b, segments[op.segment], after.value, set(wanted))
            _step(b, op, cotangents, active, again.get(op.segment, {}))
    b.locs = outer
    _join(b, wanted, parts, cotangents)
    return {v: cotangents[v] for v in wanted if v in cotangents}


# ---- checkpoints -------------------------------------------------------------------------------


def _segments(order: Iterable[Op]) -> dict[int, Segment]:
    found: dict[int, list[Op]] = {}
    for op in order:
        if op.segment:
            found.setdefault(op.segment, []).append(op)
    return {number: Segment(nodes) for number, nodes in found.items()}


def _repeat(b: Builder, segment: Segment, after: Value, kept: set[Value]) -> dict[Value, Value]:
    """Emit the ops of ``segment`` again, once ``after`` is there; their values by the old ones.

    What the segment reads is held back, so that nothing is merged with what ran before; values in
    ``kept`` (parameters, whose packed forms are worth sharing) are so only if nothing else is.
    """
    own = {v for op in segment.nodes for v in op.results}
    read = dict.fromkeys(v for op in segment.nodes for v in op.operands)
    given = [v for v in read if segment.names.get(v, v) not in own]
    held = [v for v in given if v not in kept]
    if not any(v.type.dtype.is_float for v in held):
        held = given
    new: dict[Value, Value] = {}
    outer = b.locs
    b.locs = derived(segment.nodes[0].locs)
    for v in held:
        (new[v],) = b.emit(Hold(v, after))
    for op in segment.nodes:
        if not op.pure:
            raise NotDifferentiable(
                f"{op.name}: it may have effects, and a checkpoint would run it twice",
                location_text(op.locs),
            )
        current = {v: new.get(segment.names.get(v, v), new.get(v, v)) for v in op.operands}
        copy = replace(op.map_operands(current.__getitem__), segment=0)
        new.update(zip(op.results, b.emit(copy, derived(op.locs)), strict=True))
    b.locs = outer
    new.update((v, new[name]) for v, name in segment.names.items() if name in new)
    return new


# ---- slices ------------------------------------------------------------------------------------


class _Part(Frozen):
    """The cotangent of elements ``start`` .. ``end`` - 1 along ``axis`` of a value; 0 elsewhere."""

    axis: int
    start: int
    end: int
    ct: Expr
    locs: Locations | None


def _part(op: Op, cotangents: dict[Value, Expr]) -> _Part | None:
    """What a slice along one axis gives back to its operand; None for any other op."""
    if not isinstance(op, Slice) or any(s != 1 for s in op.steps):
        return None
    cut = [a for a, (n, m) in enumerate(zip(op.x.type.shape, op.sizes, strict=True)) if n != m]
    if len(cut) != 1:
        return None
    (axis,) = cut
    start, size = op.starts[axis], op.sizes[axis]
    if not isinstance(start, int) or not isinstance(size, int):
        return None
    return _Part(axis, start, start + size, cotangents[op.result], derived(op.locs))


def _join(
    b: Builder,
    values: Iterable[Value],
    parts: dict[Value, list[_Part]],
    cotangents: dict[Value, Expr],
) -> None:
    """Add up what slices of ``values`` gave back.

    Slices that touch along an axis, the gates of an LSTM or q, k and v, are put side by side: one
    copy, where padding each and adding all would be several passes over the whole.
    """
    outer = b.locs
    for v in values:
        found = parts.pop(v, None)
        if found is None:
            continue
        b.locs = frozenset().union(*(p.locs or () for p in found)) or outer
        row = sorted(found, key=lambda p: (p.axis, p.start, p.end))
        if all(p.axis == q.axis and p.end == q.start for p, q in pairwise(row)):
            first, *others = (p.ct for p in row)
            joined = first.concat(tuple(others), axis=row[0].axis) if others else first
            found = [_Part(row[0].axis, row[0].start, row[-1].end, joined, b.locs)]
        for p in found:
            b.locs = p.locs or outer
            shape = v.type.shape
            low = tuple(p.start if a == p.axis else 0 for a in range(len(shape)))
            high = tuple(n - p.end if a == p.axis else 0 for a, n in enumerate(shape))
            whole = not any(low) and not any(high)
            _accumulate(cotangents, v, p.ct if whole else p.ct.pad(low, high, 0))
    b.locs = outer


# ---- one op ------------------------------------------------------------------------------------


def _step(
    b: Builder,
    op: Op,
    cotangents: dict[Value, Expr],
    active: set[Value],
    again: Mapping[Value, Value],
) -> None:
    operands = [Expr(b, again.get(v, v)) for v in op.operands]
    results = [Expr(b, again.get(v, v)) for v in op.results]
    try:
        given = op.grad(operands, results, [cotangents.get(v) for v in op.results])
    except NirError as error:
        if error.location is None:
            error.location = location_text(op.locs)
        raise
    if len(given) != len(operands):
        raise VerifyError(
            f"{op.name}: {len(given)} cotangents for {len(operands)} operands",
            location_text(op.locs),
        )
    for v, ct in zip(op.operands, given, strict=True):
        if ct is None or v not in active:
            continue
        if (ct.dtype, ct.shape) != (v.type.dtype, v.type.shape):
            raise VerifyError(
                f"{op.name}: the cotangent of a {v.type} is a {ct.type}", location_text(op.locs)
            )
        _accumulate(cotangents, v, ct)


def _accumulate(cotangents: dict[Value, Expr], v: Value, ct: Expr) -> None:
    known = cotangents.get(v)
    cotangents[v] = ct if known is None else known + ct


# ---- building ----------------------------------------------------------------------------------


def _copy(graph: Graph, name: str) -> tuple[Builder, tuple[Value, ...]]:
    """A builder that holds a copy of ``graph``, and the copy's outputs."""
    b = Builder(name)
    for v, input_name in zip(graph.inputs, graph.input_names, strict=True):
        b.input(v.type, input_name)
    return b, b.inline(graph, tuple(b.inputs))


def _check_wrt(graph: Graph, wrt: Sequence[int]) -> None:
    for i in wrt:
        if not 0 <= i < len(graph.inputs):
            raise NotDifferentiable(f"gradient: input {i} of a graph of {len(graph.inputs)} inputs")
        if not (t := graph.inputs[i].type).dtype.is_float:
            name = graph.input_names[i]
            raise NotDifferentiable(
                f"gradient: expected an input of a float dtype, got %{name}: {t}"
            )


def _cotangent_inputs(b: Builder, values: Sequence[Value]) -> dict[Value, Expr]:
    seeds: dict[Value, Expr] = {}
    taken = set(b.input_names)
    producer = _producers(b.nodes)
    for i, v in enumerate(values):
        name = f"ct{i}"
        while name in taken:
            name += "_"
        taken.add(name)
        ct = b.input(TensorType(v.type.dtype, v.type.shape, device=v.type.device), name)
        b.locs = _locations(producer, v)
        _accumulate(seeds, v, Expr(b, ct))
    b.locs = None
    return seeds


def _producers(nodes: Iterable[Op]) -> dict[Value, Op]:
    return {v: op for op in nodes for v in op.results}


def _locations(producer: dict[Value, Op], v: Value) -> Locations | None:
    """The lines of the gradient of the op that makes ``v``; None (the caller's) for an input."""
    op = producer.get(v)
    return derived(op.locs) if op is not None else None


def _filled(b: Builder, wanted: Sequence[Value], found: dict[Value, Expr]) -> list[Value]:
    """The cotangents of ``wanted`` in order; zeros for what nothing flows back to."""
    b.locs = derived(b.nodes[-1].locs) if b.nodes else None
    out = []
    for v in wanted:
        ct = found.get(v)
        if ct is None:
            ct = Expr(b, v).zeros_like()
        out.append(ct.value)
    return out


def _finish(b: Builder, outputs: Sequence[Value], keep_impure: bool) -> Graph:
    """The built graph without the ops that nothing needs.

    Impure ops stay where the forward results are wanted too; where only cotangents are, the
    forward graph has run before, and an impure op that no cotangent needs does not run again.
    """
    needed = set(outputs)
    kept: list[Op] = []
    for op in reversed(b.nodes):
        if (keep_impure and not op.pure) or any(v in needed for v in op.results):
            kept.append(op)
            needed.update(op.operands)
    b.nodes = kept[::-1]
    return b.build(outputs)
