"""What a run of a program takes besides its inputs and constants: arena, scratch and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

from nir.frozen import Frozen
from nir.ir.dim import Dim, upper_bound, value
from nir.ir.program import Program

_ALIGN = 64


class Needs(Frozen):
    """Bytes: of the arena, of scratch for each thread by call, and of each output.

    Outputs numbered in ``donated`` take nothing where the inputs that they take over are offered.
    """

    arena: Dim
    scratch: tuple[Dim, ...]
    outputs: tuple[Dim, ...]
    donated: frozenset[int]

    def total(self, threads: int, sizes: Mapping[str, int], donate: bool = False) -> int:
        """What the executor allocates for symbols of these ``sizes``."""
        scratch = max((_rounded(value(s, sizes)) for s in self.scratch), default=0)
        outputs = sum(
            value(n, sizes)
            for k, n in enumerate(self.outputs)
            if not (donate and k in self.donated)
        )
        return _rounded(value(self.arena, sizes)) + threads * scratch + outputs

    def bound(self, threads: int) -> Dim:
        """An expression of the sizes that is no less than `total`; equal where sizes are static."""
        none: Dim = 0
        scratch = reduce(upper_bound, map(_rounded_up, self.scratch), none)
        return _rounded_up(self.arena) + threads * scratch + sum(self.outputs, 0)


def needs(program: Program) -> Needs:
    """The Needs of ``program``."""
    return Needs(
        program.arena,
        tuple(dict.fromkeys(c.scratch for c in program.calls)),
        tuple(t.nbytes for t in program.outputs),
        frozenset(d.output for d in program.donations),
    )


def _rounded(n: int) -> int:
    return -(-n // _ALIGN) * _ALIGN


def _rounded_up(d: Dim) -> Dim:
    """``d`` to the next multiple, where it is known; else with room for the rest."""
    if isinstance(d, int):
        return _rounded(d)
    return d if all(c % _ALIGN == 0 for _, c in d.terms) else d + _ALIGN
