"""Measurements as text, as JSON and back, as a Markdown table, and as a bar chart."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import workloads
from benchmarks.harness import Measurement, best_peer, disagreement, speedup

MiB = 2**20
_BEGIN, _END = "<!-- benchmarks -->", "<!-- end of benchmarks -->"
Rows = Mapping[str, Sequence[Measurement]]


def ratio(base: Measurement, other: Measurement) -> str:
    """``other``'s time over ``base``'s, or why there is none."""
    found = speedup(base, other)
    return "-" if found is None else str(found)


def text(measured: Sequence[Measurement], roofs: Sequence[Mapping[str, float]] = ()) -> str:
    """The measurements of one workload as a table; ratios are to the first peer."""
    workload = workloads.load(measured[0].workload)
    training = workload.kind == "training"
    lines = [
        workload.title,
        f"  {'peer':<20} {'ms/step':>9} {'spread':>7} {'best':>9} {'ratio':>16} {'first call':>11} "
        f"{'cached':>9} {'peak MiB':>9} {'step MiB' if training else '':>9}  version",
    ]
    for m in measured:
        if m.error:
            lines.append(f"  {m.peer:<20} failed: {m.error}")
            continue
        cold, cached = _first_calls(m)
        step = f"{m.step_bytes / MiB:.1f}" if training else ""
        lines.append(
            f"  {m.peer:<20} {m.median * 1e3:9.3f} {m.spread:7.1%} {min(m.rounds) * 1e3:9.3f} "
            f"{'' if m is measured[0] else ratio(measured[0], m):>16} {cold:>11} {cached:>9} "
            f"{m.peak_bytes / MiB:9.0f} {step:>9}  {m.version}"
        )
    if share := roof_share(measured[0], roofs):
        lines.append(f"  {measured[0].peer} at {share}")
    if sum(not m.error for m in measured) > 1:
        wrong = disagreement(measured, workload.tolerance)
        lines.append(f"  results DISAGREE: {wrong}" if wrong else "  results agree")
    return "\n".join(lines)


def roof_share(m: Measurement, roofs: Sequence[Mapping[str, float]]) -> str:
    """How much of the measured roofs ``m`` reaches, by its arithmetic and by its traffic."""
    if m.error or not roofs:
        return ""
    workload, roof = workloads.load(m.workload), roofs[-1]
    shares = [
        f"{amount * 1e-9 / m.median / roof[key]:.0%} of {name}"
        for amount, key, name in [(workload.flops, "fma", "FMA"), (workload.moved, "read", "read")]
        if amount
    ]
    return ", ".join(shares)


def geometric_mean(rows: Rows) -> tuple[float, int]:
    """Of the best peer's time over nir's, and over how many workloads: those with a ratio."""
    ratios = []
    for measured in rows.values():
        best = best_peer(measured)
        times = None if best is None else speedup(measured[0], best)
        if times is not None and not times.is_noise:
            ratios.append(times.value)
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else math.nan
    return mean, len(ratios)


def summary_line(rows: Rows) -> str:
    mean, count = geometric_mean(rows)
    if not count:
        return "No workload has a ratio to a peer."
    return f"Geometric mean of nir against the best peer over {count} of {len(rows)}: {mean:.2f}x."


# ---- JSON --------------------------------------------------------------------------------------


def to_json(measured: Sequence[Measurement], **context: Any) -> str:
    document: Mapping[str, Any] = {**context, "measurements": [asdict(m) for m in measured]}
    return json.dumps(document, indent=1)


def from_json(paths: Sequence[Path]) -> tuple[Rows, dict[str, Any]]:
    """Measurements by workload, those of later files first, and the last file's context."""
    rows: dict[str, list[Measurement]] = {}
    context: dict[str, Any] = {}
    for path in paths:
        context = json.loads(path.read_text())
        new: dict[str, list[Measurement]] = {}
        for fields in context.pop("measurements"):
            new.setdefault(fields["workload"], []).append(Measurement(**fields))
        rows |= new
    return dict(sorted(rows.items())), context


# ---- Markdown and chart ------------------------------------------------------------------------


def write(rows: Rows, context: Mapping[str, Any], folder: Path) -> None:
    """``benchmarks.md`` and ``benchmarks.png`` in ``folder``, and the README's table beside it.

    The README has its table between two comments; a README without them is left alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "benchmarks.md").write_text(markdown(rows, context))
    chart(rows, folder / "benchmarks.png")
    readme = folder.parent / "README.md"
    if readme.exists() and _BEGIN in (old := readme.read_text()):
        new = f"{_BEGIN}\n{short_table(rows)}\n\n{summary_line(rows)}\n{_END}"
        between = re.compile(f"{re.escape(_BEGIN)}.*?{re.escape(_END)}", re.DOTALL)
        readme.write_text(between.sub(lambda _: new, old))


def markdown(rows: Rows, context: Mapping[str, Any]) -> str:
    """The whole report."""
    versions = sorted({m.version for measured in rows.values() for m in measured if not m.error})
    roofs = context.get("roofs", [])
    parts = [
        "# Benchmarks",
        "Written by `python -m benchmarks --report`. Each peer runs in a process of its own with "
        f"{context.get('threads')} threads, in alternating rounds; times are medians of at least "
        "ten rounds with their interquartile spread. A ratio is the peer's time over nir's, the "
        "median over the rounds; there is none where its 95 % interval is wider than ±10 %. A "
        "first call traces, compiles, binds weights and runs the first step; it is given less a "
        "later step's time, from an empty cache, and from a full one in a new process. The memory "
        "of a step is the most that is resident "
        "while steps run, less what is after import, and less parameters and optimiser state.",
        f"{context.get('cpu')}, {context.get('cores')} cores, Python {context.get('python')}; "
        f"{'; '.join(versions)}.",
    ]
    if roofs:
        parts.append("Measured roofs: " + "; ".join(map(_roof_words, roofs)) + ".")
    parts += [short_table(rows), summary_line(rows), "![times beside the peers](benchmarks.png)"]
    parts += [_detail(measured, roofs) for measured in rows.values()]
    return "\n\n".join(parts) + "\n"


def short_table(rows: Rows) -> str:
    """One line for each workload: nir, the best peer and their ratio."""
    lines = ["| workload | nir | best peer | nir is faster |", "|---|---|---|---|"]
    for name, measured in rows.items():
        nir, best = measured[0], best_peer(measured)
        title = workloads.load(name).title
        if nir.error or best is None:
            lines.append(f"| {title} | {_ms(nir)} | - | - |")
        else:
            faster = ratio(nir, best)
            lines.append(f"| {title} | {_ms(nir)} | {_ms(best)} ({best.peer}) | {faster} |")
    return "\n".join(lines)


def _detail(measured: Sequence[Measurement], roofs: Sequence[Mapping[str, float]]) -> str:
    workload = workloads.load(measured[0].workload)
    lines = [
        f"## {workload.title}",
        "",
        "| peer | time | spread | ratio | first call | from the cache | peak | step memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for m in measured:
        if m.error:
            lines.append(f"| {m.peer} | failed: {m.error.replace('|', '/')} | | | | | | |")
            continue
        cold, cached = _first_calls(m)
        step = f"{m.step_bytes / MiB:.0f} MiB" if workload.kind == "training" else ""
        faster = "" if m is measured[0] else ratio(measured[0], m)
        lines.append(
            f"| {m.peer} | {_ms(m)} | {m.spread:.0%} | {faster} | {cold} | {cached} "
            f"| {m.peak_bytes / MiB:.0f} MiB | {step} |"
        )
    share = roof_share(measured[0], roofs)
    notes = [f"{measured[0].peer} is at {share}."] if share else []
    if sum(not m.error for m in measured) > 1:
        wrong = disagreement(measured, workload.tolerance)
        notes.append(f"Results disagree: {wrong}." if wrong else "Results agree.")
    return "\n".join([*lines, "", " ".join(notes)]).strip()


def _roof_words(roof: Mapping[str, float]) -> str:
    return (
        f"{roof['threads']} thread{'s' * (roof['threads'] > 1)} {roof['fma']:.0f} GFLOP/s of "
        f"multiply-adds, {roof['triad']:.1f} GB/s in a triad, {roof['read']:.1f} GB/s reading"
    )


def _first_calls(m: Measurement) -> tuple[str, str]:
    """What tracing and compiling took, from an empty cache and from a full one: less the step."""
    found = (m.first_call, m.first_call_cached)
    cold, cached = (f"{max(t - m.median, 0):.2f} s" if t else "" for t in found)
    return cold, cached


def _ms(m: Measurement) -> str:
    return "failed" if m.error else f"{m.median * 1e3:.3g} ms"


def chart(rows: Rows, path: Path) -> None:
    """Bars of each peer's ratio to nir, where there is one."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    peers = sorted({m.peer for measured in rows.values() for m in measured[1:] if not m.error})
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.18 * (len(peers) + 2) * len(rows)))
    thickness = 0.8 / max(len(peers), 1)
    for k, peer in enumerate(peers):
        found = [
            (i, times.value)
            for i, measured in enumerate(rows.values())
            for m in measured
            if m.peer == peer
            and (times := speedup(measured[0], m)) is not None
            and not times.is_noise
        ]
        at = [i + (k + 0.5) * thickness - 0.4 for i, _ in found]
        bars = axes.barh(at, [r for _, r in found], thickness, label=peer)
        axes.bar_label(bars, [f"{r:.2f}" for _, r in found], fontsize=6, padding=2)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set_xlabel("time over nir's (right of the line nir is faster)")
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
