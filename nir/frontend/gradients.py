"""Gradients of recorded values: nir.ops.vjp's walk over records, whose new ops are recorded too."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from nir.errors import NirError, ShapeError
from nir.frontend import arith, lazy
from nir.frontend.lazy import Cell
from nir.ir.graph import Builder
from nir.ir.location import caller
from nir.ir.op import Value
from nir.ops.expr import Expr
from nir.ops.vjp import backward

# Which object a leaf's gradient belongs to.
_owners: weakref.WeakKeyDictionary[Cell, weakref.ref[Any]] = weakref.WeakKeyDictionary()


def register_leaf(cell: Cell, owner: Any) -> None:
    """Gradients that reach ``cell`` end there, and belong to ``owner``."""
    cell.tracks = cell.leaf = True
    _owners[cell] = weakref.ref(owner)


def leaves_of(root: Cell) -> list[tuple[Cell, Any]]:
    """(cell, owner) of the leaves that ``root`` depends on and whose owners are alive."""
    _, ends = lazy.walk([root], history=True)
    found = []
    for cell in ends:
        ref = _owners.get(cell)
        owner = ref() if ref is not None else None
        if owner is not None and cell.tracks:
            found.append((cell, owner))
    return found


def gradients(root: Cell, wrt: Sequence[Cell], seed: Cell | None = None) -> list[Cell | None]:
    """d root / d cell for each of ``wrt``; None where root does not depend on it.

    ``seed`` is the cotangent of root; a scalar needs none. The results can be differentiated again
    while gradients are enabled.
    """
    t = root.value.type
    if not root.tracks:
        raise NirError(
            f"backward: this tensor ({t}) does not depend on one that requires a gradient", caller()
        )
    if seed is None and t.shape != ():
        raise ShapeError(f"backward: expected a scalar, got {t}; pass a gradient", caller())
    if seed is not None:
        if arith.broadcast_shapes(seed.value.type.shape, t.shape) != t.shape:
            raise ShapeError(f"backward: expected a gradient {t}, got {seed.value.type}", caller())
        seed = arith.broadcast(arith.cast(seed, t.dtype), t.shape)
    records, _ = lazy.walk([root], stop=wrt, history=True)
    known: dict[Value, Cell] = {root.value: root}
    for r in records:
        known.update((c.value, c) for c in (*r.args, *r.results))
    b = Builder("backward")
    b.locs = frozenset((caller(),))
    if seed is None:
        start = Expr(b, root.value).full_like(1.0)
    else:
        known[seed.value] = seed
        start = Expr(b, seed.value)
    nodes = [r.op for r in records if r.tracks]
    found = backward(b, nodes, {root.value: start}, [c.value for c in wrt])
    tracks = any(c.tracks for c in wrt) or (seed is not None and seed.tracks)
    lazy.adopt(b.nodes, known, tracks=tracks and lazy.grad_enabled())
    return [known[found[c.value].value] if c.value in found else None for c in wrt]
