"""Decomposition: ops that a target has no kernel for become simpler ones, by their own `decompose`.

An op stays if the target's table covers it, or if the code generator takes it: elementwise ops,
plain reductions, sources and views. What is left over has neither kernel nor decomposition, and
is refused by name. The target "interp" runs every op by its reference and decomposes nothing.

Narrow integers that a kernel does not take are widened to i32 around the op and narrowed after it:
sums and products are then equal modulo 2^bits, and comparisons and choices are the same. Half types
are what memory holds: whatever computes does so in f32 and rounds its results once, as the
references do; moving them needs no arithmetic.

requires: nothing.  ensures: every op is covered by the target (`covered`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from nir.errors import UnsupportedError
from nir.frozen import replace
from nir.ir.graph import Graph, location_text
from nir.ir.op import OPS, Op, Value
from nir.ir.program import Target
from nir.ir.types import DType, bf16, f16, f32, i8, i16, i32, u8
from nir.ops import (
    Broadcast,
    Cast,
    Constant,
    Flip,
    Full,
    Hold,
    HostCall,
    Iota,
    Max,
    Min,
    Prod,
    Reshape,
    Slice,
    Sum,
    Transpose,
)
from nir.ops.expr import Expr
from nir.ops.fused import Fused, ReducePartial
from nir.passes.blocks import CONTROL
from nir.passes.rewrite import Context, map_regions, rewrite

# What a generated loop does besides elementwise ops; see nir.ops.fused.
GENERATED = (
    Sum,
    Prod,
    Max,
    Min,
    ReducePartial,
    Broadcast,
    Slice,
    Flip,
    Reshape,
    Transpose,
    Full,
    Iota,
    Constant,
    Fused,
    Hold,
)


_NARROW = (i8, i16, u8)
_HALVES = (f16, bf16)

_RUNS_CONTROL = frozenset({"cpu", "interp"})


def covered(op: Op, target: Target) -> bool:
    """Whether ``target`` runs ``op`` as it is, by a kernel, in a generated loop or as a control."""
    if isinstance(op, CONTROL):
        return target.name in _RUNS_CONTROL
    if target.name == "interp":
        return True
    if isinstance(op, HostCall):  # the process that compiles runs it, whatever the target
        return True
    if op.kind == "elementwise" or isinstance(op, GENERATED):
        moves = op.kind in ("movement", "source") or isinstance(op, (Cast, Fused))
        return moves or not _in(op, _HALVES)
    entry = target.kernels.get(op.name)
    return entry is not None and (not callable(entry) or entry(op) is not None)


def decompose(graph: Graph, target: Target) -> Graph:
    """``graph`` in ops that ``target`` covers; UnsupportedError names the first it cannot.

    Regions follow the graph around them: those of ops that are taken apart are not looked at.
    """
    if target.name == "interp":
        return graph
    rule = partial(_expand, target)
    rule.__name__ = "decompose"  # type: ignore[attr-defined]
    out = rewrite(graph, {cls: (rule,) for cls in OPS.values()})
    for op in out.nodes:
        if not covered(op, target):
            operands = ", ".join(str(v.type) for v in op.operands)
            raise UnsupportedError(
                f"{op.name}({operands}): target {target.name} has neither a kernel nor a "
                "decomposition for it",
                location_text(op.locs),
            )
    return map_regions(out, lambda region: decompose(region, target))


def _expand(target: Target, ctx: Context, op: Op) -> Sequence[Expr | Value] | None:
    if covered(op, target):
        return None
    if op.kind not in ("movement", "source", "control") and _in(op, _HALVES):
        return _widened(ctx, op, _HALVES, f32)
    simpler = op.decompose(ctx.exprs(op.operands))
    if simpler is not None or op.kind == "control" or not _in(op, _NARROW):
        return simpler
    return _widened(ctx, op, _NARROW, i32)


def _in(op: Op, dtypes: Sequence[DType]) -> bool:
    """Whether an operand or a result of ``op`` has one of ``dtypes``."""
    for v in op.operands:
        if v.type.dtype in dtypes:
            return True
    return any(v.type.dtype in dtypes for v in op.results)


def _widened(
    ctx: Context, op: Op, narrow: Sequence[DType], to: DType
) -> Sequence[Expr | Value] | None:
    """``op`` on dtype ``to`` in place of ``narrow`` ones; None if that leaves it as it is."""
    wide = {v: ctx.emit(Cast(v, to)) if v.type.dtype in narrow else v for v in op.operands}
    again = op.map_operands(wide.__getitem__)
    if again.attributes.get("dtype") in narrow:
        again = replace(again, dtype=to)
    again = replace(again, results=tuple(Value(-1, t) for t in again.infer()))
    if _in(again, narrow):
        return None
    return [
        v if v.type == r.type else ctx.emit(Cast(v, r.type.dtype))
        for v, r in zip(ctx.emit_all(again), op.results, strict=True)
    ]
