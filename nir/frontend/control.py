"""Control flow and calls as ops: `cond`, `scan`, `while_loop`, `custom_vjp`, `host_call`.

The functions given to them are traced into regions. A region may read tensors from around it: they
become operands of the op.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nir import ops
from nir.errors import DTypeError, ShapeError
from nir.frontend import lazy, pytree
from nir.frontend.lazy import Cell, Record, resolve
from nir.frontend.spec import spec
from nir.frontend.tensor import Tensor
from nir.frontend.trace import constant_op, refuse_captures
from nir.ir.dim import Dim
from nir.ir.graph import Builder, Graph
from nir.ir.location import caller
from nir.ir.op import Op, Value
from nir.ir.types import TensorType, bool_


@dataclass(eq=False)
class _Region:
    """A traced function before it is closed over its captures."""

    name: str
    trace: lazy.Trace
    inputs: list[Cell]
    outputs: list[Cell]
    structure: pytree.Tree

    def __post_init__(self) -> None:
        roots = [resolve(c) for c in self.outputs]
        effects = [c for r in self.trace.effects for c in r.cells()]
        self.records, self.leaves = lazy.collect([*effects, *roots], self.trace.first)

    @property
    def captures(self) -> list[Cell]:
        """Cells from around the region that it reads.

        A value with several cells is captured as one that gradients flow to, if the region reads
        such a one: a parameter and the tensor that it was made of, say.
        """
        first = self.trace.first
        named: dict[Cell, Cell] = {}
        for c in (*(c for r in self.records for c in r.args), *self.outputs):
            if c.tracks and c.born < first:
                named.setdefault(resolve(c), c)
        return [named.get(c, c) for c in self.leaves if c.born < first]

    def close(self, captures: Sequence[Cell]) -> Graph:
        """The region as a graph of its inputs and ``captures``."""
        table: dict[Cell, Value] = {c: c.value for c in self.inputs}
        own = [lazy.fresh(c.type) for c in captures]
        table.update(zip(map(resolve, captures), own, strict=True))
        nodes: list[Op] = [
            constant_op(c, self.records)
            for c in self.leaves
            if c.symbolic is None and c.born >= self.trace.first
        ]
        stops: dict[Value, Value] = {}

        def value(c: Cell, reader: Record | None) -> Value:
            source = resolve(c)
            v = table.get(source, source.value)
            # Gradients of a region come from its graph alone, so that where the recording says
            # that none flows has to be an op.
            flows = c.tracks or not c.dtype.is_float or (reader is not None and not reader.tracks)
            if flows or (source.record is None and source not in table):
                return v
            if v not in stops:
                locs = reader.op.locs if reader is not None else frozenset((caller(),))
                stops[v] = _stop_gradient(v, nodes, locs)
            return stops[v]

        for r in self.records:
            values = {c.value: value(c, r) for c in r.args}
            nodes.append(r.op.map_operands(values.__getitem__))
        outputs = [value(c, None) for c in self.outputs]
        inputs = [*(c.value for c in self.inputs), *own]
        names = [c.symbolic or "" for c in self.inputs]
        return Graph(
            self.name, inputs, nodes, outputs, [*names, *(f"c{i}" for i in range(len(own)))]
        )


def _stop_gradient(v: Value, nodes: list[Op], locs: Any) -> Value:
    """``v`` through an op whose gradient is 0; appends it to ``nodes``."""
    fwd, bwd = Builder("same"), Builder("zero")
    bwd.locs = locs
    x = bwd.input(v.type, "x")
    bwd.input(v.type, "y"), bwd.input(v.type, "ct")
    (zero,) = bwd.emit(ops.Full(0.0, x.type.shape, x.type.dtype))
    same = fwd.input(v.type, "x")
    result = lazy.fresh(v.type)
    nodes.append(
        ops.CustomVjp((v,), fwd.build([same]), bwd.build([zero]), results=(result,), locs=locs)
    )
    return result


def _region(
    fn: Callable[..., Any], name: str, types: Sequence[TensorType], structure: pytree.Tree
) -> _Region:
    """Trace ``fn(*args)``, ``structure`` being that of args."""
    with lazy.new_trace() as trace:
        cells = []
        for i, t in enumerate(types):
            cell = Cell(t)
            cell.symbolic = f"x{i}"
            cell.tracks = lazy.grad_enabled() and t.dtype.is_float
            cells.append(cell)
        result = fn(*pytree.unflatten(structure, [Tensor._of(c) for c in cells]))
        outputs, out = pytree.tensors(result)
        return _Region(name, trace, cells, [t._cell for t in outputs], out)


def _emit(op: Op, args: Sequence[Cell], structure: pytree.Tree) -> Any:
    return pytree.unflatten(structure, [Tensor._of(c) for c in lazy.record(op, args)])


def _values(cells: Sequence[Cell]) -> tuple[Value, ...]:
    return tuple(c.value for c in cells)


def cond(
    predicate: Tensor, then_fn: Callable[..., Any], else_fn: Callable[..., Any], *operands: Any
) -> Any:
    """then_fn(*operands) if ``predicate`` (a bool scalar) holds, else else_fn(*operands).

    Both return trees of one structure, with tensors of the same types. Only the one chosen runs.
    """
    if not isinstance(predicate, Tensor) or predicate.type != TensorType(bool_):
        given = predicate.type if isinstance(predicate, Tensor) else type(predicate).__name__
        raise DTypeError(f"cond: expected a predicate bool[], got {given}", caller())
    tensors, structure = pytree.tensors(operands)
    types = [t.type for t in tensors]
    regions = [_region(fn, n, types, structure)
               for fn, n in ((then_fn, "then"), (else_fn, "else"))]  # fmt: skip
    if regions[0].structure != regions[1].structure:
        raise ShapeError("cond: the two functions return different structures", caller())
    captures = list(dict.fromkeys(c for r in regions for c in r.captures))
    args = [*(t._cell for t in tensors), *captures]
    op = ops.Cond(predicate._cell.value, _values(args), *(r.close(captures) for r in regions))
    return _emit(op, [predicate._cell, *args], regions[0].structure)


def scan(
    fn: Callable[[Any, Any], tuple[Any, Any]],
    init: Any,
    xs: Any = None,
    length: Dim | None = None,
    reverse: bool = False,
) -> tuple[Any, Any]:
    """(last carry, stacked ys) of ``carry, y = fn(carry, x)`` for each x along the first axis.

    ``init``, ``xs`` and ys are trees; with ``xs`` None, x is None and ``length`` counts. The carry
    keeps its structure and types. ``reverse`` goes from the last x to the first.
    """
    carries, carry_tree = pytree.tensors(init)
    slices, x_tree = pytree.tensors(xs)
    for t in slices:
        if t.ndim == 0:
            raise ShapeError(f"scan: expected xs with a first axis, got {t.type}", caller())
    length = slices[0].shape[0] if slices and length is None else length
    if length is None:
        raise ShapeError("scan: expected xs or a length", caller())
    types = [t.type for t in carries] + [t.type.with_(shape=t.shape[1:]) for t in slices]
    shifted = _shift(x_tree, len(carries))
    both = pytree.Node(tuple, None, (carry_tree, shifted))
    region = _region(fn, "body", types, both)
    match region.structure:
        case pytree.Node(kind, None, (own, y_tree)) if kind is tuple and own == carry_tree:
            pass
        case _:
            raise ShapeError(
                "scan: expected the function to return (carry, y), the carry as it came", caller()
            )
    captures = region.captures
    args = [*(t._cell for t in carries), *(t._cell for t in slices), *captures]
    n, m = len(carries), len(slices)
    op = ops.Scan(
        _values(args[:n]), _values(args[n : n + m]), _values(captures), region.close(captures),
        length, reverse,
    )  # fmt: skip
    results = [Tensor._of(c) for c in lazy.record(op, args)]
    return pytree.unflatten(carry_tree, results), pytree.unflatten(y_tree, results)


def while_loop(
    cond_fn: Callable[[Any], Tensor],
    body_fn: Callable[[Any], Any],
    init: Any,
    max_trips: int | None = None,
) -> Any:
    """The first carry for which ``cond_fn(carry)`` is false, of init, body_fn(init) and so on.

    ``init`` is a tree of tensors, and ``body_fn`` keeps its structure and types; ``cond_fn``
    returns a bool scalar. After ``max_trips`` steps the loop stops, whatever the condition says.
    Its gradient takes time and memory for ``max_trips`` steps, and without it there is none
    (NotDifferentiable). Raises ShapeError or DTypeError for functions that return something else.
    """
    tensors, tree = pytree.tensors(init)
    types = [t.type for t in tensors]
    one = pytree.Node(tuple, None, (tree,))
    condition = _region(cond_fn, "condition", types, one)
    body = _region(body_fn, "body", types, one)
    predicate = [c.type for c in condition.outputs]
    if not isinstance(condition.structure, pytree.Leaf) or predicate != [TensorType(bool_)]:
        raise DTypeError(
            f"while_loop: expected a condition that returns bool[], got "
            f"({', '.join(map(str, predicate))})",
            caller(),
        )
    if body.structure != tree:
        raise ShapeError(
            "while_loop: expected the function to return the carry as it came", caller()
        )
    captures = list(dict.fromkeys(c for r in (condition, body) for c in r.captures))
    carries = [t._cell for t in tensors]
    op = ops.WhileLoop(
        _values(carries), _values(captures), condition.close(captures), body.close(captures),
        max_trips,
    )  # fmt: skip
    return _emit(op, [*carries, *captures], tree)


def _shift(tree: pytree.Tree, by: int) -> pytree.Tree:
    match tree:
        case pytree.Leaf(index):
            return pytree.Leaf(index + by)
        case pytree.Node(kind, extra, children):
            return pytree.Node(kind, extra, tuple(_shift(c, by) for c in children))
        case _:
            return tree


def custom_vjp(fwd: Callable[..., Any], bwd: Callable[..., Any]) -> Callable[..., Any]:
    """``fwd`` with the gradient ``bwd(operands, results, cotangents) -> cotangents``.

    Operands and results of fwd are tensors. bwd gets tuples: the operands, the results, and a
    cotangent for each float result; it returns one for each float operand. Neither may read
    tensors from around it. Raises ShapeError where a cotangent does not fit its operand.
    """

    @functools.wraps(fwd)
    def call(*operands: Any) -> Any:
        tensors, structure = pytree.tensors(operands)
        cells = [t._cell for t in tensors]
        forward = _closed(fwd, "fwd", [c.type for c in cells], structure)
        results = [c.type for c in forward.outputs]
        groups = [c.type for c in cells], results, [t for t in results if t.dtype.is_float]
        leaves = iter(range(sum(map(len, groups))))
        tree = pytree.Node(
            tuple,
            None,
            tuple(pytree.Node(tuple, None, tuple(pytree.Leaf(next(leaves)) for _ in g))
                  for g in groups),
        )  # fmt: skip
        backward = _closed(bwd, "bwd", [t for g in groups for t in g], tree)
        op = ops.CustomVjp(_values(cells), forward.close(()), backward.close(()))
        return _emit(op, cells, forward.structure)

    return call


def _closed(
    fn: Callable[..., Any], name: str, types: Sequence[TensorType], structure: pytree.Tree
) -> _Region:
    with lazy.no_grad():  # gradients of these regions are bwd's affair
        region = _region(fn, name, types, structure)
    refuse_captures(region.trace, region.records, region.leaves)
    return region


def host_call(fn: Callable[..., Any], specs: Any, *operands: Any) -> Any:
    """``fn(*arrays)``, a Python function of numpy arrays, called once in each run.

    ``specs`` are the types of its results: "f32[B,3]", or a tuple of these for several. It has no
    gradient (see `custom_vjp`), and a program that holds one cannot be exported.
    """
    several = isinstance(specs, list | tuple)
    types = tuple(spec(t).type for t in (specs if several else [specs]))
    tensors, _ = pytree.tensors(list(operands))
    cells = [t._cell for t in tensors]
    leaves: tuple[pytree.Tree, ...] = tuple(map(pytree.Leaf, range(len(types))))
    structure = pytree.Node(tuple, None, leaves) if several else leaves[0]
    return _emit(ops.HostCall(_values(cells), fn, types), cells, structure)
