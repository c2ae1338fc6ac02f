"""Control flow and custom gradients as functions: `scan`, `cond`, `custom_vjp`, `host_call`.

Their bodies are traced into closed graphs; tensors that a body reads from outside become operands.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nir import ops
from nir.errors import ShapeError, TraceError
from nir.frontend import lazy
from nir.frontend.lazy import Cell
from nir.frontend.state import flatten, unflatten
from nir.frontend.tensor import Tensor
from nir.frontend.trace import Spec, spec
from nir.ir.graph import Builder, Graph
from nir.ir.location import caller
from nir.ir.types import TensorType


@dataclass(frozen=True, slots=True)
class _Region:
    """A traced body: ``inputs`` are its own and then those of ``captures``."""

    records: list[lazy.Record]
    inputs: list[Cell]
    captures: list[Cell]
    outputs: list[Cell]
    structure: Any

    def graph(self, name: str, captures: Sequence[Cell]) -> Graph:
        """The closed graph, with ``captures`` (at least this region's) after the inputs."""
        given = [c.value for c in (*self.inputs, *captures)]
        inner = Graph(name, given, [r.op for r in self.records], [c.value for c in self.outputs])
        b = Builder(name)
        for v in given:
            b.input(v.type)
        return b.build(b.inline(inner, tuple(b.inputs)))


def _region(fn: Callable[..., Any], types: Sequence[TensorType], structure: Any) -> _Region:
    first = next(lazy._ids)
    inputs = [Cell(t) for t in types]
    for i, c in enumerate(inputs):
        c.symbolic = f"in{i}"
    result = fn(*unflatten(structure, [Tensor._of(c) for c in inputs]))
    outputs, out_structure = flatten(result)
    roots = [t._cell for t in outputs]
    records, leaves = lazy.walk(roots, before=first)
    captures = [c for c in leaves if c not in inputs]
    return _Region(records, inputs, captures, roots, out_structure)


def cond(
    predicate: Tensor, then_fn: Callable[..., Any], else_fn: Callable[..., Any], *operands: Any
) -> Any:
    """``then_fn(*operands)`` if ``predicate`` (bool[]) holds, else ``else_fn(*operands)``.

    Both are traced, and return the same structure of the same types; one of them runs.
    """
    tensors, structure = flatten(operands)
    types = [t.type for t in tensors]
    then, other = (_region(fn, types, structure) for fn in (then_fn, else_fn))
    captures = list(dict.fromkeys([*then.captures, *other.captures]))
    if then.structure != other.structure:
        raise TraceError("cond: the branches return different structures", caller())
    cells = [predicate._cell, *(t._cell for t in tensors), *captures]
    op = ops.Cond(
        predicate._cell.value,
        tuple(c.value for c in cells[1:]),
        then.graph("then", captures),
        other.graph("else", captures),
    )
    return unflatten(then.structure, [Tensor._of(c) for c in lazy.record(op, cells)])


def scan(
    fn: Callable[[Any, Any], tuple[Any, Any]], init: Any, xs: Any, reverse: bool = False
) -> tuple[Any, Any]:
    """A loop over the leading axis of the tensors of ``xs``: ``fn(carry, x) -> (carry, y)``.

    Returns (the last carry, the ys stacked).
    """
    carried, carry_structure = flatten(init)
    sliced, x_structure = flatten(xs)
    if not sliced:
        raise ShapeError("scan: expected xs with at least one tensor", caller())
    lengths = {t.shape[0] if t.shape else None for t in sliced}
    if len(lengths) != 1 or None in lengths:
        raise ShapeError(
            f"scan: expected xs of one length, got {[t.type for t in sliced]}", caller()
        )
    types = [t.type for t in carried] + [t.type.with_(shape=t.shape[1:]) for t in sliced]
    n = len(carried)

    def body(*tensors: Tensor) -> Any:
        out = fn(unflatten(carry_structure, tensors[:n]), unflatten(x_structure, tensors[n:]))  # type: ignore[arg-type]
        if not isinstance(out, tuple) or len(out) != 2:
            raise TraceError("scan: expected fn to return (carry, y)", caller())
        new, _ = flatten(out[0])
        if len(new) != n:
            raise TraceError(f"scan: expected a carry of {n} tensors, got {len(new)}", caller())
        return out

    region = _region(body, types, tuple(flatten(tuple(Tensor._of(Cell(t)) for t in types))[1]))
    cells = [t._cell for t in (*carried, *sliced)] + region.captures
    op = ops.Scan(
        tuple(t._cell.value for t in carried),
        tuple(t._cell.value for t in sliced),
        tuple(c.value for c in region.captures),
        region.graph("body", region.captures),
        sliced[0].shape[0],
        reverse,
    )
    results: tuple[Any, Any] = unflatten(
        region.structure, [Tensor._of(c) for c in lazy.record(op, cells)]
    )
    return results


def custom_vjp(fwd: Callable[..., Any], bwd: Callable[..., Any]) -> Callable[..., Any]:
    """``fwd`` with the gradient ``bwd(operands, results, cotangents) -> cotangents``.

    Operands and results are tuples of tensors; a cotangent comes for each float result and one is
    returned for each float operand.
    """

    @functools.wraps(fwd)
    def call(*operands: Any) -> Any:
        tensors, structure = flatten(operands)
        types = [t.type for t in tensors]
        forward = _region(fwd, types, structure)
        if forward.captures:
            raise TraceError(
                "custom_vjp: the function reads a tensor that is no argument", caller()
            )
        outs = [c.value.type for c in forward.outputs]
        floats = [t for t in outs if t.dtype.is_float]
        counts = (len(types), len(outs), len(floats))

        def back(*flat: Tensor) -> Any:
            a, b = counts[0], counts[0] + counts[1]
            found = bwd(flat[:a], flat[a:b], flat[b:])
            return tuple(found) if isinstance(found, (tuple, list)) else (found,)

        given = [*types, *outs, *floats]
        flat_structure = flatten(tuple(Tensor._of(Cell(t)) for t in given))[1]
        backward = _region(back, given, flat_structure)
        if backward.captures:
            raise TraceError(
                "custom_vjp: the gradient reads a tensor that is no argument", caller()
            )
        cells = [t._cell for t in tensors]
        op = ops.CustomVjp(
            tuple(c.value for c in cells), forward.graph("fwd", []), backward.graph("bwd", [])
        )
        return unflatten(forward.structure, [Tensor._of(c) for c in lazy.record(op, cells)])

    return call


def host_call(fn: Callable[..., Any], specs: Any, *operands: Tensor) -> Any:
    """``fn(*arrays)``, a Python function on numpy arrays, called once in each run.

    ``specs`` are the types of its results ("f32[B,3]"): one, or a tuple. It has no gradient.
    """
    several = isinstance(specs, (tuple, list))
    types = tuple(
        (s if isinstance(s, Spec) else spec(s)).type for s in (specs if several else (specs,))
    )
    cells = [t._cell for t in operands]
    op = ops.HostCall(tuple(c.value for c in cells), fn, types)
    results = tuple(Tensor._of(c) for c in lazy.record(op, cells))
    return results if several else results[0]
