"""Rows as a table: times, ratios to the peers, shares of the measured roofs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.kernels.measure import MAX_SPREAD, RETRY, Row
from benchmarks.roof import Roof


def share(row: Row, roof: Roof) -> float:
    """The least time that the roofs allow over nir's: of arithmetic, or of memory if that is more.

    Above 1 where the data lies in a cache and memory would have been the bound.
    """
    if "nir" not in row.times:
        return 0.0
    least = max(row.case.flops / roof.fma, row.case.bytes / roof.read) * 1e-9
    return least / row.times["nir"].median


def header(peers: Sequence[str]) -> str:
    others = "".join(f"{p + ' us':>12}" for p in peers if p != "nir")
    return (
        f"{'case':<34} {'thr':>3} {'nir us':>11} {'GFLOP/s':>8} {'GB/s':>6} {'roof':>5}"
        f"{others} {'ratio':>6} {'spread':>6}"
    )


def line(row: Row, roof: Roof, peers: Sequence[str]) -> str:
    own = row.times.get("nir")
    case = row.case
    text = f"{case.name:<34} {row.threads:>3} "
    if own is None:
        return text + f"nir failed: {row.errors['nir']}"
    rate = f"{case.flops / own.median * 1e-9:8.1f}" if case.flops else " " * 8
    bandwidth = f"{case.bytes / own.median * 1e-9:6.1f}" if case.bytes else " " * 6
    text += f"{own.median * 1e6:11.1f} {rate} {bandwidth} {share(row, roof):5.0%}"
    for peer in peers:
        if peer != "nir":
            t = row.times.get(peer)
            text += f"{t.median * 1e6:12.1f}" if t else f"{'-':>12}"
    text += f" {row.ratio:6.2f} {row.spread:6.0%}" if row.ratio else ""
    text += " <" if 0 < row.ratio < RETRY else ""
    text += " noisy" if row.spread > MAX_SPREAD else ""
    return text + "".join(f"\n    {peer}: {error}" for peer, error in row.errors.items())


def geometric_mean(rows: Sequence[Row]) -> float:
    ratios = [math.log(r.ratio) for r in rows if r.ratio]
    return math.exp(sum(ratios) / len(ratios)) if ratios else 0.0


def summary(rows: Sequence[Row]) -> str:
    """The geometric mean against the best peer, by group and number of threads."""
    lines = []
    for threads in sorted({r.threads for r in rows}):
        own = [r for r in rows if r.threads == threads]
        for group in [*dict.fromkeys(r.case.group for r in own), None]:
            some = [r for r in own if group in (None, r.case.group) and r.ratio]
            if some:
                worst = min(some, key=lambda r: r.ratio)
                lines.append(
                    f"{group or 'all':<16} {threads} threads: {len(some):3} cases, geometric mean "
                    f"{geometric_mean(some):.2f}x the best peer, least {worst.ratio:.2f} "
                    f"({worst.case.name}), {sum(r.ratio < RETRY for r in some)} under {RETRY}"
                )
    return "\n".join(lines)


def to_json(rows: Sequence[Row], roofs: Mapping[int, Roof], **context: Any) -> str:
    return json.dumps(
        {
            **context,
            "roofs": [asdict(r) for r in roofs.values()],
            "rows": [
                {
                    "case": r.case.name,
                    "group": r.case.group,
                    "threads": r.threads,
                    "flops": r.case.flops,
                    "bytes": r.case.bytes,
                    "times": {p: asdict(t) for p, t in r.times.items()},
                    "ratio": r.ratio,
                    "share": share(r, roofs[r.threads]),
                    "errors": r.errors,
                }
                for r in rows
            ],
        },
        indent=1,
    )
