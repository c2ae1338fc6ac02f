"""Reverse-mode differentiation of graphs: the one walk that every gradient in nir comes from.

`vjp` makes the graph of a vector-Jacobian product, `gradient` a graph that also gives the forward
results, and `backward` is the walk itself. Each takes time linear in the number of ops. A gradient
op carries the locations of the forward op it belongs to, and the graphs made here are ordinary
graphs: they can be differentiated again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nir.errors import NirError, NotDifferentiable, VerifyError
from nir.ir.dim import Shape
from nir.ir.graph import Builder, Graph, location_text
from nir.ir.location import Locations, derived
from nir.ir.op import Op, Value
from nir.ir.types import TensorType
from nir.ops.expr import Expr
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


def backward(
    b: Builder, nodes: Iterable[Op], seeds: dict[Value, Expr], wanted: Iterable[Value]
) -> dict[Value, Expr]:
    """Walk ``nodes`` backwards from ``seeds`` (value -> cotangent); emits into ``b``.

    Returns the cotangents of the ``wanted`` values that anything flows back to. Only ops between
    the wanted values and the seeds are differentiated, so one that has no gradient is an error
    only there. Several cotangents of one value add up in the order in which they arise.
    """
    order = tuple(nodes)
    active = set(wanted)
    for op in order:
        if any(v in active for v in op.operands):
            active.update(v for v in op.results if v.type.dtype.is_float)
    cotangents = {v: ct for v, ct in seeds.items() if v in active}
    pads: dict[Value, _Padded] = {}
    outer = b.locs
    for op in reversed(order):
        reached = any(v in cotangents for v in op.results)
        if reached and any(v in active for v in op.operands):
            b.locs = derived(op.locs) if op.locs else outer
            _step(b, op, cotangents, active, pads)
    b.locs = outer
    return {v: cotangents[v] for v in wanted if v in cotangents}


def _step(
    b: Builder,
    op: Op,
    cotangents: dict[Value, Expr],
    active: set[Value],
    pads: dict[Value, _Padded],
) -> None:
    operands = [Expr(b, v) for v in op.operands]
    results = [Expr(b, v) for v in op.results]
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
        if isinstance(op, Slice) and all(n == 1 for n in op.steps):
            piece = cotangents[op.result]
            ends = zip(v.type.shape, op.starts, piece.shape, strict=True)
            pads[ct.value] = _Padded(piece, op.starts, tuple(n - a - m for n, a, m in ends))
        known = cotangents.get(v)
        joined = None if known is None else _side_by_side(known, ct, pads)
        if joined is not None:
            cotangents[v] = joined
        else:
            _accumulate(cotangents, v, ct)


def _accumulate(cotangents: dict[Value, Expr], v: Value, ct: Expr) -> None:
    known = cotangents.get(v)
    cotangents[v] = ct if known is None else known + ct


@dataclass(frozen=True, slots=True)
class _Padded:
    """The cotangent of a slice's operand: ``piece`` with zeros round it."""

    piece: Expr
    low: Shape
    high: Shape


def _side_by_side(x: Expr, y: Expr, pads: dict[Value, _Padded]) -> Expr | None:
    """x + y where slices that touch send them back: one tensor, and no sum of zeros."""
    if x.value not in pads or y.value not in pads:
        return None
    a, b = pads[x.value], pads[y.value]
    differing = [i for i, (p, q) in enumerate(zip(a.low, b.low, strict=True)) if p != q]
    if len(differing) != 1:
        return None
    (axis,) = differing
    for first, second in ((a, b), (b, a)):
        n, m = first.piece.shape[axis], second.piece.shape[axis]
        same = all(p == q for i, (p, q) in enumerate(zip(a.high, b.high, strict=True)) if i != axis)
        touch = first.low[axis] + n == second.low[axis]
        if same and touch and first.high[axis] == second.high[axis] + m:
            joined: Expr = first.piece.concat((second.piece,), axis=axis)
            if all(p == 0 for p in (*first.low, *second.high)):
                return joined
            padded: Expr = joined.pad(first.low, second.high, 0)
            pads[padded.value] = _Padded(joined, first.low, second.high)
            return padded
    return None


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
