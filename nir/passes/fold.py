"""Constant folding: an op on constants is computed now, by its own reference.

Elementwise ops on uniform operands (`Full`) become a `Full` of any size, symbolic ones included.
Other ops on `Constant` and `Full` operands become a `Constant` where that stays small: a constant
that is only repeated (full, broadcast, iota) is never written out on its own account.

requires: nothing.  ensures: no elementwise op whose operands are all `Full`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nir.frozen import replace
from nir.ir.dim import Poly
from nir.ir.graph import Graph
from nir.ir.op import OPS, Op, Value
from nir.ir.program import Target
from nir.ops import Broadcast, Cast, Constant, Full
from nir.passes.rewrite import Context, Rules, everywhere, rewrite

# Bytes of a result that is worth storing instead of computing at each run.
MAX_BYTES = 1 << 20
# A result may not be larger than this many times what it is computed from.
_MAX_GROWTH = 4


def fold(graph: Graph, target: Target) -> Graph:
    """``graph`` with ops on constants computed, in its regions too."""
    return everywhere(graph, lambda g: rewrite(g, RULES))


def uniform_constant(ctx: Context, op: Constant) -> Sequence[Value] | None:
    """A constant whose elements are all one number is a Full."""
    data = op.data
    if not data.size or (data.ndim and data.size > 1 and not _same_bits(data)):
        return None
    return [ctx.full(data.flat[0].item(), op.result.type)]


def _same_bits(data: np.ndarray) -> bool:
    flat = np.ascontiguousarray(data).reshape(-1).view(np.dtype((np.void, data.itemsize)))
    return bool((flat == flat[0]).all())


def fold_uniform(ctx: Context, op: Op) -> Sequence[Value] | None:
    """An elementwise op on Fulls is a Full."""
    sources = [s for v in op.operands if isinstance(s := ctx.producer(v), Full)]
    if not sources or len(sources) < len(op.operands):
        return None
    if any(isinstance(s.value, Poly) for s in sources):
        return _fold_size(ctx, op, sources[0].value)
    with np.errstate(all="ignore"):
        arrays = [replace(s, shape=()).ref()[0] for s in sources]
        (out,) = op.ref(*arrays)
    return [ctx.full(np.asarray(out).reshape(()).item(), op.result.type)]


def _fold_size(ctx: Context, op: Op, value: Any) -> Sequence[Value] | None:
    """A size (a Full whose value is a Dim) may change its dtype to a float one."""
    # Sizes fit the significand of the types that a mean divides in.
    if isinstance(op, Cast) and op.result.type.dtype.name in ("f32", "f64", "i64"):
        return [ctx.full(value, op.result.type)]
    return None


def fold_constants(ctx: Context, op: Op) -> Sequence[Value] | None:
    """A pure op on constants is a Constant, where that is small."""
    sources = [ctx.producer(v) for v in op.operands]
    if not sources or not op.pure or any(op.regions()):
        return None
    if not any(isinstance(s, Constant) for s in sources):
        return None
    if not all(isinstance(s, (Constant, Full)) for s in sources):
        return None
    if any(v.type.layout for v in op.results) or not _small(op):
        return None
    if any(isinstance(s, Full) and isinstance(s.value, Poly) for s in sources):
        return None
    with np.errstate(all="ignore"):
        out = op.ref(*(s.ref()[0] for s in sources if s is not None))
    return [ctx.emit(Constant(data=np.array(a, order="C"))) for a in out]


def _small(op: Op) -> bool:
    given = sum(_nbytes(v) or 0 for v in op.operands)
    sizes = [_nbytes(v) for v in op.results]
    total = sum(n for n in sizes if n is not None)
    if None in sizes or total > MAX_BYTES or given > 16 * MAX_BYTES:
        return False
    return not isinstance(op, Broadcast) and total <= max(_MAX_GROWTH * given, 4096)


def _nbytes(v: Value) -> int | None:
    n = v.type.nbytes
    return n if isinstance(n, int) and v.type.is_static else None


RULES: Rules = {
    **{
        cls: (fold_uniform, fold_constants) if cls.kind == "elementwise" else (fold_constants,)
        for cls in OPS.values()
        if cls.kind != "source"
    },
    Constant: (uniform_constant,),
}
