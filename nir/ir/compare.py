"""Comparison of two graphs that should mean the same: the first result that differs, and by whom.

Two float results agree if they are within some ulp of each other, or equal on the scale of the
whole result. Where they are not, rounding may still be the only difference (a sum in another
order, cancellation), so both graphs are run again with every float in f32 and then in f64. What
rounding makes of them shrinks with the precision, by 2**29; a difference in meaning stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nir.errors import NirError
from nir.frozen import Frozen, replace
from nir.ir.graph import Builder, Graph, location_text
from nir.ir.interp import run
from nir.ir.op import Op, Value
from nir.ir.types import DType, TensorType, dtype, f32, f64


class Tolerance(Frozen):
    """``ulp`` units in the last place, or ``scale`` of the largest finite magnitude."""

    ulp: float
    scale: float


TOLERANCES: Mapping[str, Tolerance] = {
    "f64": Tolerance(64, 1e-12),
    "f32": Tolerance(32, 2e-6),
    "f16": Tolerance(4, 2e-3),
    "bf16": Tolerance(4, 2e-2),
}
# For results in f64 of graphs that are meant for less.
WIDE = Tolerance(1 << 16, 1e-9)
# Differences that are at most so much of what they are in f32 come from rounding.
SHRINKS = 1e-4
# A result may leave the spread of _RUNS disturbed runs by this factor.
SPREAD = 64
_RUNS = 4
_EPS: Mapping[str, float] = {"f64": 2.0**-52, "f32": 2.0**-23, "f16": 2.0**-10, "bf16": 2.0**-7}


class Difference(Frozen):
    """Where two graphs first differ: the op to look at, its line, and by how much."""

    op: str
    location: str
    output: int
    ulp: float
    index: tuple[int, ...]
    expected: Any
    got: Any

    def __str__(self) -> str:
        at = f" at {self.location}" if self.location else ""
        where = f"[{', '.join(map(str, self.index))}]" if self.index else ""
        return (
            f"{self.op}{at}: expected {self.expected}, got {self.got} "
            f"(output {self.output}{where}, {self.ulp:.3g} ulp)"
        )


def compare(
    before: Graph, after: Graph, inputs: Sequence[np.ndarray], env: Mapping[str, int] | None = None
) -> Difference | None:
    """The first disagreement of ``after`` with ``before`` on ``inputs``, or None.

    A graph with a memory plan runs in its arena. The op named is the first of ``after`` that makes
    a value which ``before`` makes too (they are the same object) with another content, else the
    one that makes the output. Raises VerifyError if a plan lets values overwrite each other.
    """
    expected, got = run(before, inputs, env), run(after, inputs, env, arena=after.plan is not None)
    bad = _disagreements(expected, got)
    if not bad:
        return None
    low, high = (_run_in(kind, before, after, inputs, env) for kind in (f32, f64))
    if low is None or high is None:  # an op holds on to its dtype
        low = high = [expected, got]
        noisy = _noisy_runs(before, inputs, env)
    else:
        noisy = _noisy_runs(in_precision(before, f64), [_retyped(x, f64) for x in inputs], env)
    bad = [
        k for k in bad
        if not _is_rounding((low[0][k], low[1][k]), (high[0][k], high[1][k]), [r[k] for r in noisy])
    ]  # fmt: skip
    if not bad:
        return None
    k = bad[0]
    op = _culprit(before, after, inputs, env) or after.producer.get(after.outputs[k])
    index, ulp = worst(expected[k], got[k])
    return Difference(
        op.name if op else "input",
        location_text(op.locs) if op else "",
        k,
        ulp,
        index,
        expected[k][index] if expected[k].shape == got[k].shape else expected[k].shape,
        got[k][index] if expected[k].shape == got[k].shape else got[k].shape,
    )


def _disagreements(expected: Sequence[np.ndarray], got: Sequence[np.ndarray]) -> list[int]:
    pairs = enumerate(zip(expected, got, strict=True))
    return [k for k, (a, b) in pairs if not agree(a, b)]


def beyond_rounding(
    graph: Graph,
    inputs: Sequence[np.ndarray],
    expected: Sequence[np.ndarray],
    got: Sequence[np.ndarray],
) -> list[int]:
    """Numbers of the outputs of a machine's run that differ by more than rounding explains.

    ``expected`` is what the interpreter gives; how far its ops' roundings carry is found by runs
    in which they are disturbed.
    """
    bad = _disagreements(expected, got)
    if not bad:
        return []
    noisy = _noisy_runs(graph, inputs, None, in_sums=True)
    found = []
    for k in bad:
        a, b = expected[k], got[k]
        if a.shape != b.shape or not is_float(a.dtype):
            found.append(k)
            continue
        with np.errstate(all="ignore"):
            spread = np.max([np.abs(r[k].astype(np.float64) - a) for r in noisy], axis=0)
            near = np.abs(b.astype(np.float64) - a) <= SPREAD * spread
        if not (near | (a == b) | ((a != a) & (b != b))).all():
            found.append(k)
    return found


def agree(expected: np.ndarray, got: np.ndarray, tolerance: Tolerance | None = None) -> bool:
    """Whether two results are equal up to rounding: nan equals nan, 0 equals -0.

    Integers and bools must be equal. ``tolerance`` replaces the one of the dtype.
    """
    if expected.shape != got.shape or expected.dtype != got.dtype:
        return False
    if not is_float(expected.dtype):
        return np.array_equal(expected, got)
    limit = tolerance or TOLERANCES[dtype(expected.dtype).name]
    distance = ulp_distance(expected, got)
    if (distance <= limit.ulp).all():
        return True
    a, b = expected.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(a)
    largest = np.abs(a[finite]).max(initial=0.0)
    with np.errstate(all="ignore"):
        near = finite & (np.abs(a - b) <= limit.scale * largest)
    return bool((near | (distance <= limit.ulp)).all())


def worst(expected: np.ndarray, got: np.ndarray) -> tuple[tuple[int, ...], float]:
    """Index and distance in ulp of the element that differs most."""
    if expected.shape != got.shape or expected.dtype != got.dtype or not expected.size:
        return (), np.inf
    if is_float(expected.dtype):
        distance = ulp_distance(expected, got)
    else:
        distance = np.abs(expected.astype(np.float64) - got.astype(np.float64))
    flat = int(np.argmax(distance))
    index = np.unravel_index(flat, expected.shape)
    return tuple(map(int, index)), float(np.ravel(distance)[flat])


def is_float(kind: np.dtype) -> bool:
    """Whether ``kind`` is one of nir's float types."""
    return dtype(kind).is_float


def ulp_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How many representable numbers lie between elements of two float arrays of one dtype.

    0 for equal numbers, for two nans and for 0 and -0; inf where only one is nan.
    """
    bits = np.dtype(f"i{a.dtype.itemsize}")
    low = np.iinfo(bits).min
    ordered = []
    for x in (a, b):
        # Bit patterns of negative numbers grow downwards: mirror them so that order is by value.
        i = np.ascontiguousarray(x).view(bits)
        ordered.append(np.where(i < 0, low - i, i).astype(np.float64))
    distance = np.abs(ordered[0] - ordered[1])
    nan_a, nan_b = np.isnan(a), np.isnan(b)
    distance[nan_a | nan_b] = np.inf
    distance[nan_a & nan_b] = 0.0
    # Neighbours in float64 are too close for the subtraction above.
    return np.where((distance == 0) & (a != b) & ~(nan_a & nan_b), 1.0, distance)


def _culprit(
    before: Graph, after: Graph, inputs: Sequence[np.ndarray], env: Mapping[str, int] | None
) -> Op | None:
    """The first op of ``after`` whose result is in ``before`` too and differs."""
    known: dict[Value, np.ndarray] = {}
    found: list[Op] = []

    def remember(op: Op, operands: Sequence[np.ndarray], results: Sequence[np.ndarray]) -> None:
        known.update(zip(op.results, results, strict=True))

    def check(op: Op, operands: Sequence[np.ndarray], results: Sequence[np.ndarray]) -> None:
        pairs = zip(op.results, results, strict=True)
        if not found and any(v in known and not agree(known[v], r) for v, r in pairs):
            found.append(op)

    run(before, inputs, env, trace=remember)
    run(after, inputs, env, trace=check)
    return found[0] if found else None


# ---- other precisions --------------------------------------------------------------------------


def _run_in(
    kind: DType,
    before: Graph,
    after: Graph,
    inputs: Sequence[np.ndarray],
    env: Mapping[str, int] | None,
) -> list[list[np.ndarray]] | None:
    arrays = [_retyped(x, kind) for x in inputs]
    try:
        return [run(in_precision(graph, kind), arrays, env) for graph in (before, after)]
    except (NirError, TypeError):
        return None


def _is_rounding(
    in_low: tuple[np.ndarray, np.ndarray],
    in_high: tuple[np.ndarray, np.ndarray],
    noisy: Sequence[np.ndarray],
) -> bool:
    """Whether two results, in f32 and in f64, differ by rounding alone.

    ``noisy`` are the first one in f64 as other roundings of its ops would have it.
    """
    (low_a, low_b), (high_a, high_b) = in_low, in_high
    if agree(high_a, high_b, WIDE):
        return True
    if high_a.shape != high_b.shape or high_a.dtype != high_b.dtype:
        return False
    same = [(r == high_b) | ((r != r) & (high_b != high_b)) for r in (high_a, *noisy)]
    if is_float(high_a.dtype):
        with np.errstate(all="ignore"):
            low = np.abs(low_a.astype(np.float64) - low_b.astype(np.float64))
            spread = np.max([np.abs(r - high_a) for r in noisy], axis=0)
            high = np.abs(high_a - high_b)
        same.append(high <= np.fmax(SHRINKS * low, SPREAD * spread))
    return bool(np.logical_or.reduce(same).all())


def _noisy_runs(
    graph: Graph,
    inputs: Sequence[np.ndarray],
    env: Mapping[str, int] | None,
    in_sums: bool = False,
) -> list[list[np.ndarray]]:
    """The outputs of ``graph`` if each op's results were off by some ulp, at random.

    Where a formula cancels or jumps, they show how far rounding alone may carry its result. With
    ``in_sums``, results of sums and products are off by ulps of the largest of them, as they are
    when the terms are added in another order and cancel.
    """
    rng = np.random.default_rng(0)

    def disturb(op: Op, operands: Sequence[np.ndarray], results: list[np.ndarray]) -> None:
        for i, r in enumerate(results):
            if is_float(r.dtype):
                noise = _EPS[dtype(r.dtype).name] * rng.uniform(-4, 4, r.shape)
                wide = r.astype(np.float64)
                size = wide
                if in_sums and r.size and op.kind in ("contraction", "reduction"):
                    size = np.max(np.abs(wide), initial=0, where=np.isfinite(wide))
                results[i] = np.asarray(wide + noise * size).astype(r.dtype)

    return [run(graph, inputs, env, trace=disturb, deep=True) for _ in range(_RUNS)]


def in_precision(graph: Graph, kind: DType) -> Graph:
    """``graph`` with every float type, constant and attribute turned to ``kind``, unplanned."""
    b = Builder(graph.name)
    env: dict[Value, Value] = {}
    for v, name in zip(graph.inputs, graph.input_names, strict=True):
        env[v] = b.input(_retyped(v.type, kind), name)
    for op in graph.nodes:
        changed = {name: _retyped(a, kind) for name, a in op.attributes.items()}
        new = replace(op.map_operands(env.__getitem__), **changed)
        env.update(zip(op.results, b.emit(new, op.locs or None), strict=True))
    return b.build([env[v] for v in graph.outputs])


def _retyped(value: Any, kind: DType) -> Any:
    match value:
        case DType() if value.is_float:
            return kind
        case TensorType() if value.dtype.is_float:
            return value.with_(dtype=kind)
        case np.ndarray() if is_float(value.dtype):
            return value.astype(kind.numpy)
        case Graph():
            return in_precision(value, kind)
        case tuple():
            return tuple(_retyped(v, kind) for v in value)
    return value
