"""The pass pipeline: what happens to a graph on its way to a program, in order.

Read this file first. A pass is a pure function ``(Graph, Target) -> Graph``, one file each. The
order is not folklore: a pass states which facts it `requires`, which it `ensures`, and which it
may break; the order is checked when this module is loaded, and each ensured fact is checked on the
graph after the pass, at every compile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from nir import flags
from nir.errors import NirError, VerifyError
from nir.frozen import Frozen
from nir.ir.compare import compare
from nir.ir.dump import Dumper
from nir.ir.graph import Graph, location_text
from nir.ir.interp import random_inputs
from nir.ir.op import Op
from nir.ir.program import Target
from nir.ops import Max, Min, Prod, Sum
from nir.passes.bands import bands
from nir.passes.batch_norm_fold import batch_norm_fold
from nir.passes.cse import cse
from nir.passes.dce import dce
from nir.passes.decompose import covered, decompose
from nir.passes.fission import fission
from nir.passes.fold import fold
from nir.passes.fuse import fuse
from nir.passes.hoist import hoist
from nir.passes.layout import layout
from nir.passes.loops import loops
from nir.passes.memory import plan_memory
from nir.passes.pack import pack, unpack
from nir.passes.rematerialise import rematerialise
from nir.passes.rewrite import KERNELS
from nir.passes.rows import rows
from nir.passes.schedule import schedule
from nir.passes.simplify import simplify
from nir.passes.split_reductions import leading_or_trailing, split_reductions

PassFunction = Callable[[Graph, Target], Graph]


class Pass(Frozen):
    """A step of the pipeline. ``name`` is its name in dumps, messages and on the command line."""

    name: str
    run: PassFunction
    requires: frozenset[str] = frozenset()
    ensures: frozenset[str] = frozenset()
    breaks: frozenset[str] = frozenset()


# ---- facts: what may be relied on between passes -----------------------------------------------


def _is_loop_op(op: Op) -> bool:
    return op.kind == "elementwise" or isinstance(op, (Sum, Prod, Max, Min))


def _breaks_reductions(op: Op, target: Target) -> bool:
    return isinstance(op, (Sum, Prod, Max, Min)) and not leading_or_trailing(
        op.axes, op.x.type.ndim
    )


# Fact -> whether an op contradicts it.
FACTS: Mapping[str, Callable[[Op, Target], bool]] = {
    # Every op has a kernel or belongs in a generated loop.
    "covered": lambda op, target: not covered(op, target),
    # Reductions run over trailing or leading axes only.
    "split": _breaks_reductions,
    # Elementwise ops and reductions lie in Fused regions.
    "fused": lambda op, target: _is_loop_op(op),
}

_PLANNED = "planned"


def _facts(*names: str) -> frozenset[str]:
    return frozenset(names)


_ANY_REWRITE = _facts("fused", _PLANNED)

LOOPS = Pass("loops", loops, breaks=_ANY_REWRITE)
FISSION = Pass("fission", fission, breaks=_facts("covered", "split", "fused", _PLANNED))
SIMPLIFY = Pass("simplify", simplify, breaks=_ANY_REWRITE)
FOLD = Pass("fold", fold, breaks=_ANY_REWRITE)
CSE = Pass("cse", cse, breaks=_facts(_PLANNED))
DCE = Pass("dce", dce, breaks=_facts(_PLANNED))
LAYOUT = Pass("layout", layout, breaks=_facts("split", "fused", _PLANNED))
BATCH_NORM_FOLD = Pass(
    "batch_norm_fold", batch_norm_fold, breaks=_facts("covered", "fused", _PLANNED)
)
DECOMPOSE = Pass(
    "decompose", decompose, ensures=_facts("covered"), breaks=_facts("split", "fused", _PLANNED)
)
ROWS = Pass("rows", rows, breaks=_facts("split", "fused", _PLANNED))
PACK = Pass(
    "pack", pack, requires=_facts("covered"), ensures=_facts("covered"), breaks=_ANY_REWRITE
)
UNPACK = Pass(
    "unpack", unpack, requires=_facts("covered"), ensures=_facts("covered"), breaks=_ANY_REWRITE
)
HOIST = Pass("hoist", hoist, breaks=_facts("fused", _PLANNED))
SPLIT = Pass(
    "split_reductions",
    split_reductions,
    requires=_facts("covered"),
    ensures=_facts("covered", "split"),
    breaks=_ANY_REWRITE,
)
FUSE = Pass(
    "fuse",
    fuse,
    requires=_facts("covered", "split"),
    ensures=_facts("fused"),
    breaks=_facts(_PLANNED),
)
BANDS = Pass("bands", bands, requires=_facts("fused"), breaks=_facts(_PLANNED))
SCHEDULE = Pass("schedule", schedule, breaks=_facts(_PLANNED))
REMATERIALISE = Pass("rematerialise", rematerialise, breaks=_facts(_PLANNED))
PLAN_MEMORY = Pass("plan_memory", plan_memory, requires=_facts("fused"), ensures=_facts(_PLANNED))

# Up to packing: ops are those of the target, each still by itself.
LOWERING: tuple[Pass, ...] = (
    # Equal loops are seen as such while they are as traced.
    LOOPS,
    # Small rules first, so that the costly passes see less.
    SIMPLIFY,
    FOLD,
    CSE,
    DCE,
    # What a loop need not do step by step leaves it, as ops like any other.
    FISSION,
    # Transposes of the front end meet; what they stood between becomes visible.
    LAYOUT,
    BATCH_NORM_FOLD,
    # The target's vocabulary, then the same clean-up over what decomposition exposed.
    DECOMPOSE,
    SIMPLIFY,
    FOLD,
    LAYOUT,
    # What follows a linear layer is put in a form that can be its epilogue.
    ROWS,
    CSE,
    # Physical forms: packed weights, reductions as loops run them.
    PACK,
    # Packing of what a loop only reads moves in front of it.
    HOIST,
    LOOPS,
)

# Loops, kernels and memory. Where weights are bound, `nir.passes.prepare` cuts the graph in two
# before this; what is then packed for one product beside it is read as it lies.
PLANNING: tuple[Pass, ...] = (
    UNPACK,
    SPLIT,
    CSE,
    DCE,
    FUSE,
    # Chains of what is one kernel each by now.
    BANDS,
    SCHEDULE,
    REMATERIALISE,
    PLAN_MEMORY,
)

PIPELINE: tuple[Pass, ...] = (*LOWERING, *PLANNING)

PASSES: Mapping[str, PassFunction] = {p.name: p.run for p in PIPELINE}


def check_order(passes: Sequence[Pass], known: frozenset[str] = frozenset()) -> frozenset[str]:
    """Raise VerifyError if a pass runs before what it requires; the facts that hold at the end."""
    for p in passes:
        if missing := p.requires - known:
            raise VerifyError(
                f"pass {p.name} requires {', '.join(sorted(missing))}, "
                "which no pass before it ensures"
            )
        known = (known - p.breaks) | p.ensures
    return known


_LOWERED = check_order(LOWERING)
check_order(PLANNING, _LOWERED)


# ---- running -----------------------------------------------------------------------------------


def run_pipeline(
    graph: Graph,
    target: Target,
    dump: Dumper | None = None,
    verify: Sequence[np.ndarray] | None = None,
    passes: Sequence[Pass] = PIPELINE,
    after: Mapping[str, Callable[[Graph], None]] | None = None,
) -> Graph:
    """``graph`` lowered for ``target``: fused, planned, every op covered by a kernel or a loop.

    ``dump`` receives the graph after each pass that changed it. With ``verify``, inputs for the
    graph, the reference interpreter runs it before and after each pass, and a VerifyError names
    the first pass that changes a result, with the op, the user's line and the error in ulp; once
    memory is planned it runs in the planned arena. Where they are not given, NIR_DUMP=dir makes a
    dump and NIR_VERIFY=1 verifies on random inputs. ``after`` names functions that see the graph
    as a pass left it.
    """
    check_order(passes, _LOWERED if passes is PLANNING else frozenset())
    if verify is None and flags.verify():
        verify = random_inputs(graph)
    if dump is None:
        dump = Dumper.from_flags(graph.name)
    if dump is not None:
        dump.write("traced", graph)
    for p in passes:
        start = time.perf_counter()
        before, graph = graph, _run(p, graph, target)
        seconds = time.perf_counter() - start
        _check_signature(p, before, graph)
        _check_facts(p, graph, target)
        if after is not None and p.name in after:
            after[p.name](graph)
        if graph is before:
            continue
        if dump is not None:
            dump.write(p.name, graph, seconds)
        if verify is not None:
            _check_meaning(p, before, graph, verify)
    return graph


def _run(p: Pass, graph: Graph, target: Target) -> Graph:
    try:
        return p.run(graph, target)
    except VerifyError as error:
        raise VerifyError(f"pass {p.name}: {error.message}", error.location) from error


def _check_signature(p: Pass, before: Graph, after: Graph) -> None:
    if before.input_types != after.input_types or before.output_types != after.output_types:
        raise VerifyError(
            f"pass {p.name} changed the signature of @{before.name}: inputs {before.input_types} "
            f"-> {after.input_types}, outputs {before.output_types} -> {after.output_types}"
        )


def _check_facts(p: Pass, graph: Graph, target: Target) -> None:
    if _PLANNED in p.ensures and graph.plan is None:
        raise VerifyError(f"pass {p.name} left the graph without a memory plan")
    for fact in sorted(p.ensures & FACTS.keys()):
        broken = FACTS[fact]
        for op in _all_ops(graph):
            if broken(op, target):
                raise VerifyError(
                    f"pass {p.name} ensures {fact!r}, and {op.name} breaks it",
                    location_text(op.locs),
                )


def _all_ops(graph: Graph) -> Iterator[Op]:
    """The ops of ``graph`` and of the regions in it; bodies of kernels are not graphs."""
    for op in graph.nodes:
        yield op
        if not isinstance(op, KERNELS):
            for _, region in op.regions():
                yield from _all_ops(region)


def _check_meaning(p: Pass, before: Graph, after: Graph, inputs: Sequence[np.ndarray]) -> None:
    try:
        difference = compare(before, after, inputs)
    except NirError as error:
        raise VerifyError(f"pass {p.name}: {error.message}", error.location) from error
    except Exception as error:  # a broken graph fails anywhere; the pass that made it is to blame
        raise VerifyError(f"pass {p.name} left a graph that does not run: {error!r}") from error
    if difference is not None:
        # Where an output has become an input, the line is that of the op it was made by.
        op = before.producer.get(before.outputs[difference.output])
        line = location_text(op.locs) if op and not difference.location else None
        raise VerifyError(f"pass {p.name} changed a result: {difference}", line)
