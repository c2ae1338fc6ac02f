"""Reverse mode over what was recorded: the walk is `nir.ops.vjp.backward`, as for graphs.

The walk emits into a `Recorder`, so gradients are recorded like all ops, are computed when they
are looked at, and can be differentiated again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nir import ops
from nir.errors import NotDifferentiable, ShapeError, StaleTensorError
from nir.frontend import emit, flush, lazy
from nir.frontend.lazy import Cell, Record, Recorder
from nir.frontend.recompute import segments_of
from nir.frozen import Frozen
from nir.ir.location import Location, caller, derived
from nir.ir.op import Value
from nir.ops.expr import Expr
from nir.ops.vjp import backward as walk

if TYPE_CHECKING:
    from nir.frontend.tensor import Tensor


class Used(Frozen):
    """Stands in for a ``grad`` that a compiled step used up and did not keep (see `jit`)."""

    where: Location

    def error(self) -> StaleTensorError:
        return StaleTensorError(
            f"grad: the gradient was used up in the compiled step at {self.where}: call "
            "zero_grad() before adding to it, or return it from the step",
            caller(),
        )


@dataclass(slots=True)
class Initial:
    """Stands in for a missing ``grad`` while a function is traced; notes whether that matters."""

    used: Used | None
    read: bool = False


@dataclass(slots=True)
class Traced:
    """Holds a ``grad`` set while a function is traced; notes whether the function used it."""

    grad: Tensor
    read: bool = False


def read_grad(t: Tensor) -> Tensor | None:
    """``t.grad`` as the user sees it."""
    match t._grad:
        case Initial() as missing:
            if missing.used is not None:
                raise missing.used.error()
            missing.read = True
            return None
        case Traced() as made:
            made.read = True
            return made.grad
        case Used() as used:
            raise used.error()
        case found:
            return found  # type: ignore[no-any-return]


def write_grad(t: Tensor, value: Tensor | None) -> None:
    """Set ``t.grad``."""
    t._grad = Traced(value) if value is not None and lazy.tracing() is not None else value


def gradients(
    root: Cell, wrt: Sequence[Cell], seed: Cell | None, create_graph: bool
) -> list[Cell | None]:
    """d root / d cell for each of ``wrt``; None where root does not depend on it."""
    records, ends = lazy.history(root, wrt)
    _refuse_released(records, ends)
    return _gradients(records, root, wrt, seed, create_graph)


def adjoints(root: Cell, wrt: Sequence[Cell], seed: Cell) -> dict[Cell, Cell]:
    """d root / d cell, times ``seed``, for those of ``wrt`` that root depends on.

    Cells of ``wrt`` may lie behind each other: each gets its whole derivative. The derivatives can
    be differentiated in turn.
    """
    records, ends = lazy.history(root)
    _refuse_released(records, ends)
    found = _gradients(records, root, wrt, seed, create_graph=True)
    return {c: g for c, g in zip(wrt, found, strict=True) if g is not None}


def _refuse_released(records: Sequence[Record], ends: Sequence[Cell]) -> None:
    if any(r.released for r in records) or any(c.released for c in ends):
        raise NotDifferentiable(
            "backward: the history was given up by an earlier backward(): pass retain_graph=True "
            "to that one",
            caller(),
        )


def _gradients(
    records: Sequence[Record],
    root: Cell,
    wrt: Sequence[Cell],
    seed: Cell | None,
    create_graph: bool,
) -> list[Cell | None]:
    cells: dict[Value, Cell] = {root.value: root}
    for r in records:
        for c in (*r.args, *r.cells()):
            cells[c.value] = c
    recorder = Recorder(cells, tracks=create_graph)
    recorder.locs = derived(records[-1].op.locs if records else frozenset((caller(),)))
    if seed is None:
        start = Expr(recorder, root.value).full_like(1.0)
    else:
        cells[seed.value] = seed
        start = Expr(recorder, seed.value)
    nodes = [r.op for r in records]
    segments = segments_of(records, cells)
    found = walk(recorder, nodes, {root.value: start}, [c.value for c in wrt], segments)
    return [cells[found[c.value].value] if c.value in found else None for c in wrt]


def backward(root: Tensor, gradient: Tensor | None, retain_graph: bool) -> None:
    """`Tensor.backward`."""
    from_ = root._cell
    if not from_.tracks:
        raise NotDifferentiable(
            f"backward: the tensor ({from_.type}) depends on no tensor that requires a gradient",
            caller(),
        )
    if gradient is None and from_.shape != ():
        raise ShapeError(
            f"backward: expected a scalar, got {from_.type}: pass a gradient of that shape",
            caller(),
        )
    if gradient is not None and gradient.type != root.type:
        raise ShapeError(
            f"backward: expected a gradient {root.type}, got {gradient.type}", caller()
        )
    records, ends = lazy.history(from_)
    _refuse_released(records, ends)
    seed = None if gradient is None else gradient._cell
    found = _gradients(records, from_, ends, seed, create_graph=False)
    for end, g in zip(ends, found, strict=True):
        owner = end.owner() if end.owner is not None else None
        if owner is not None and g is not None:
            _accumulate(owner, root, g)
    if not retain_graph:
        for r in records:
            r.released = True
    flush.add_loss(from_)


def _accumulate(leaf: Tensor, root: Tensor, g: Cell) -> None:
    # Adding to a gradient does not use it up.
    before = leaf._grad.grad if isinstance(leaf._grad, Traced) else read_grad(leaf)
    write_grad(leaf, root._new(g if before is None else emit.one(ops.Add, before._cell.copy(), g)))


def passed_on(x: Cell, tracks: bool | None = None) -> Cell:
    """The value of ``x`` as the result of an op of its own, through which gradients flow."""
    (cell,) = lazy.record(ops.Reshape(x.value, x.shape), [x], tracks)
    return cell


def reaches_others(root: Cell, own: Iterable[Cell]) -> bool:
    """Whether gradients from ``root`` reach more than the cells ``own`` and what lies behind."""
    stops = set(own)
    _, ends = lazy.history(root, stops)
    behind = any(a.tracks for c in stops if c.record is not None for a in c.record.args)
    return behind or any(c not in stops for c in ends)
