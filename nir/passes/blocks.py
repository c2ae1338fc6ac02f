"""Blocks: the memory of an op with regions, while it runs, in the arena of the graph around it.

    scan        a spare for each carry, then the arena of the body
    while_loop  a spare for each carry, the predicate, then the arenas of condition and body
    cond        the arenas of the two bodies

Regions of one op never run at the same time, so that their arenas share bytes. A loop reads a
carry's first value where it lies and leaves the last one in the op's result; the steps between
write the result and the spare in turn, so that no carry is ever copied from step to step.
"""

from __future__ import annotations

from functools import reduce

from nir.frozen import Frozen
from nir.ir.dim import Dim, upper_bound
from nir.ir.op import Op
from nir.ops import Cond, Scan, WhileLoop

_ALIGN = 64
# Ops whose regions a target runs as loops and branches of one program.
CONTROL = (Scan, WhileLoop, Cond)


class Block(Frozen):
    """Offsets in the block of an op; ``arena`` is where each region's arena begins."""

    spares: tuple[Dim, ...]
    predicate: Dim
    arena: Dim
    size: Dim


def padded(size: Dim) -> Dim:
    """Room for a buffer that starts at an offset rounded up to 64 (see Placement)."""
    if isinstance(size, int):
        return -(-size // _ALIGN) * _ALIGN
    # Multiples of 64 keep the rounding of what lies above; anything else pays for it here.
    return size if all(c % _ALIGN == 0 for _, c in size.terms) else size + _ALIGN


def block_of(op: Op) -> Block | None:
    """The block of an op whose regions are planned; None for an op that has none."""
    match op:
        case Scan() | WhileLoop():
            spares = []
            at: Dim = 0
            for v in op.init:
                spares.append(at)
                at = at + padded(v.type.nbytes)
            arena = at + (_ALIGN if isinstance(op, WhileLoop) else 0)
            return Block(tuple(spares), at, arena, arena + _arenas(op))
        case Cond():
            return Block((), 0, 0, _arenas(op))
    return None


def _arenas(op: Op) -> Dim:
    """Room for the arena of any of the regions."""
    arenas: list[Dim] = [region.plan.arena for _, region in op.regions()]
    return reduce(upper_bound, arenas)
