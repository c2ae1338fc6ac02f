"""Runs graphs compiled for the CPU beside the reference interpreter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np
from codegen_harness import ISAS, same_bits

from nir.compile import compile_graph
from nir.errors import NirError
from nir.ir.compare import agree, in_precision, is_float, worst
from nir.ir.graph import Graph
from nir.ir.interp import run
from nir.ir.op import Op, Value
from nir.ir.types import bf16, f64
from nir.ops import Max, Min
from nir.passes.decompose import decompose
from nir.runtime import Executable, as_storage
from nir.targets import cpu

__all__ = ["ISAS", "check", "close", "compiled", "flushed", "outputs", "reference", "same_bits"]

_EPS = {"f64": 2.0**-52, "f32": 2.0**-23, "f16": 2.0**-10, "bf16": 2.0**-7}
# Runs that estimate rounding, and the factor by which a result may leave their spread.
_RUNS, _NOISE = 4, 64


def compiled(graph: Graph, isa: str = ISAS[-1]) -> Executable:
    exe = compile_graph(graph, cpu.target(isa))
    assert isinstance(exe, Executable)
    return exe


def flushed(x: np.ndarray) -> np.ndarray:
    """``x`` without denormals, as kernels flush them; those of f16 are normal numbers of f32."""
    x = np.asarray(x)
    if x.dtype not in (np.float32, np.float64, bf16.numpy):
        return x
    tiny = np.finfo(np.float32 if x.dtype == bf16.numpy else x.dtype).tiny
    with np.errstate(invalid="ignore"):
        return np.where(np.abs(x) < x.dtype.type(tiny), np.copysign(x.dtype.type(0), x), x)


def outputs(exe: Executable, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Copies of the outputs, so that a run that reuses their memory does not change them."""
    return [y.numpy(np.dtype(t.dtype.numpy)).reshape(y.shape).copy() for y, t in
            zip(exe.run([as_storage(x) for x in inputs]), exe.outputs, strict=True)]  # fmt: skip


def reference(graph: Graph, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [flushed(y) for y in run(graph, [flushed(x) for x in inputs])]


def close(
    graph: Graph,
    inputs: Sequence[np.ndarray],
    expected: Sequence[np.ndarray],
    got: Sequence[np.ndarray],
) -> str | None:
    """None if ``got`` is ``expected`` up to rounding, else what differs most."""
    bad = [k for k, (y, z) in enumerate(zip(expected, got, strict=True)) if not agree(y, z)]
    if bad:
        noisy = _noisy_runs(graph, inputs)
        bad = [k for k in bad if not _within(got[k], [run_[k] for run_ in noisy])]
    if not bad:
        return None
    k = bad[0]
    index, ulp = worst(expected[k], got[k])
    return (
        f"output {k}{list(index)}: expected {expected[k][index]}, got {got[k][index]} "
        f"({ulp:.3g} ulp)"
    )


def _noisy_runs(graph: Graph, inputs: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    """The exact outputs, then those of runs in which every op's results are off by some ulp.

    Where a formula cancels or jumps, they show how far rounding alone may carry its result. Ops are
    taken apart as the target does: what rounds inside them (a variance, say) is disturbed as well.
    """
    with suppress(NirError):
        graph = decompose(graph, cpu.target())
    exact = [_wide(flushed(x)) for x in inputs]
    try:
        wide = in_precision(graph, f64)
        runs = [run(wide, exact)]
    except (NirError, TypeError):  # an op that holds on to its dtype
        wide, exact = graph, [flushed(x) for x in inputs]
        runs = [run(wide, exact)]
    rng = np.random.default_rng(0)

    def disturb(op: Op, operands: Sequence[np.ndarray], results: Sequence[np.ndarray]) -> None:
        assert isinstance(results, list)
        if isinstance(op, Max | Min) or op.kind == "movement":
            return  # they choose, and round nothing: a tie stays one
        for i, (v, r) in enumerate(zip(op.results, results, strict=True)):
            if is_float(r.dtype):
                eps = _EPS[dtypes[v].name]
                results[i] = (r * (1 + 2 * eps * rng.uniform(-1, 1, r.shape))).astype(r.dtype)

    dtypes = {w: v.type.dtype for v, w in _pairs(graph, wide)}
    for _ in range(_RUNS):
        runs.append(run(wide, exact, trace=disturb, deep=True))
    return runs


def _pairs(a: Graph, b: Graph) -> Iterator[tuple[Value, Value]]:
    """The results of the ops of two graphs of one structure, those in regions too."""
    for x, y in zip(a.nodes, b.nodes, strict=True):
        yield from zip(x.results, y.results, strict=True)
        for (_, left), (_, right) in zip(x.regions(), y.regions(), strict=True):
            yield from _pairs(left, right)


def _wide(x: np.ndarray) -> np.ndarray:
    narrow = x.dtype in (np.float32, np.float16, bf16.numpy)
    return x.astype(np.float64) if narrow else x


def _within(got: np.ndarray, runs: Sequence[np.ndarray]) -> bool:
    exact, *noisy = runs
    if got.shape != exact.shape:
        return False
    if not is_float(got.dtype):
        return bool(np.logical_or.reduce([got == r for r in runs]).all())
    with np.errstate(all="ignore"):
        # A disturbed run that is nan says nothing of the others, nor of how far rounding goes.
        spread = np.fmax.reduce([np.abs(r - exact) for r in noisy])
        spread = np.where(np.isnan(spread), 0, spread)
        near = np.abs(got - exact) <= _NOISE * spread + 1e-6 * np.abs(exact)
    same = [np.isnan(got) & np.isnan(r) | (got == r) for r in runs]
    return bool(np.logical_or.reduce([near, *same]).all())


def check(
    graph: Graph,
    inputs: Sequence[np.ndarray],
    isas: Sequence[str] = tuple(ISAS),
) -> dict[str, list[np.ndarray]]:
    """Outputs on each ISA level; they agree with the reference, and each other to the bit."""
    expected = reference(graph, inputs)
    found = {}
    for isa in isas:
        # abs, neg and copies pass denormals on.
        found[isa] = [flushed(z) for z in outputs(compiled(graph, isa), inputs)]
        problem = close(graph, inputs, expected, found[isa])
        assert problem is None, f"@{graph.name} on {isa}: {problem}"
    first, *others = found
    for isa in others:
        same_bits(found[first], found[isa], f"{first} and {isa}")
    return found
