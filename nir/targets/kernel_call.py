"""`KernelCall`: how a hand-written kernel computes an op, before buffers have places."""

from __future__ import annotations

from nir.frozen import Frozen
from nir.ir.dim import Dim


class KernelCall(Frozen):
    """A call of ``kernel``; its arguments are the op's operands in order, then its results.

    The fields up to ``work`` mean what they mean in `nir.ir.program.Call`. Sizes may be symbolic.

    ``pack`` is the number of an operand that must be packed first (`Pack` for matmul, `PackConv2d`
    for convolutions), or None: a call with ``pack`` set says that the target covers the op, and
    becomes runnable once that operand is replaced.
    ``in_place``: operands whose storage the first result may take over.
    ``by_lines``: rows are the pixels of the result, in order, and any range of them takes no more
    from the first operand than the lines that the op's window meets, and costs its share.
    """

    kernel: str
    dims: tuple[Dim, ...]
    rows: Dim
    cols: Dim = 1
    row_grain: int = 1
    col_grain: int = 0
    scratch: Dim = 0
    work: Dim = 0
    pack: int | None = None
    in_place: tuple[int, ...] = ()
    by_lines: bool = False
    even: bool = False
