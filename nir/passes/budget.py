"""The check of a memory limit, and what its message says."""

from __future__ import annotations

from nir.errors import MemoryBudgetError
from nir.ir.dim import symbols
from nir.ir.graph import Graph, location_text
from nir.ir.needs import needs
from nir.ir.op import Op
from nir.ir.program import Program, Target
from nir.ops.fused import Fused
from nir.passes.memory import Storage, share_in_place, storages_of, typical, unique
from nir.passes.schedule import live

_SHOWN = 6


def check_budget(graph: Graph, program: Program, target: Target) -> None:
    """MemoryBudgetError if a run of ``program``, the lowered ``graph``, takes more than it may."""
    if target.memory is None:
        return
    check_static(graph)
    total = needs(program).total(target.threads, {}, donate=True)
    if total <= target.memory:
        return
    rows = [_row(graph, s) for s in _largest(graph)]
    raise MemoryBudgetError(
        f"{graph.name}: expected at most {_size(target.memory)}, it takes {_size(total)}: "
        f"{_size(total - target.memory)} too much, with kernels in an order that keeps little and "
        "values computed again where that helps. Of what is kept at the peak, the largest are:\n"
        + "\n".join(rows)
    )


def check_static(graph: Graph) -> None:
    """MemoryBudgetError where sizes are symbolic: no limit can be promised for all of them."""
    names = sorted({s for t in (*graph.input_types, *graph.output_types) for d in t.shape
                    for s in symbols(d)})  # fmt: skip
    if names:
        raise MemoryBudgetError(
            f"{graph.name}: a memory limit needs sizes that are known, and {', '.join(names)} "
            f"{'is' if len(names) == 1 else 'are'} symbolic: compile for numbers in the specs"
        )


def _largest(graph: Graph) -> list[Storage]:
    """The storages that live where most is kept, largest first."""
    kept = live(graph)
    at = max(range(len(kept)), key=kept.__getitem__, default=0)
    storages = storages_of(graph)
    share_in_place(graph, storages)
    there = [
        s
        for s in unique(storages)
        if s.start <= at <= s.end and (s.home is None or s.home[0] == "output")
    ]
    return sorted(there, key=lambda s: -typical(s.size))[:_SHOWN]


def _row(graph: Graph, s: Storage) -> str:
    made = s.values[0]
    op = graph.producer[made]
    return f"  {_size(typical(s.size)):>10}  {made.type}  {_name(op)}  @ {location_text(op.locs)}"


def _name(op: Op) -> str:
    if not isinstance(op, Fused):
        return op.name
    return "+".join(dict.fromkeys(o.name for o in op.body.nodes if o.kind != "source"))


def _size(n: int) -> str:
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if n >= scale:
            return f"{n / scale:.2f} {unit}"
    return f"{n} B"
