"""Where a run's time and memory went: by call, by kernel and by the user's line.

A profile is made of measured runs: what each call took at least, and, of the fastest run, which
thread worked on it when. `Profile.text` prints tables, `Profile.trace` writes what
chrome://tracing and ui.perfetto.dev show.
"""

from __future__ import annotations

import json
import linecache
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from nir.errors import NirError
from nir.frozen import Frozen
from nir.ir.dim import value
from nir.ir.graph import location_text
from nir.ir.location import Location, Locations
from nir.ir.program import Program

K = TypeVar("K")


class Roofs(Frozen):
    """What a machine reaches at most: arithmetic and bytes from memory, in a second."""

    flops: float
    bytes: float


class CallTime(Frozen):
    """One call, over the ``count`` times that it ran: ``seconds``, ``flops`` and ``bytes``.

    ``bytes`` counts operands and results once each time, whatever the caches do with them.
    ``live`` is the most bytes of intermediate results and outputs that are kept while it runs.
    """

    op: str
    kernel: str
    locs: Locations
    seconds: float
    count: int = 1
    flops: int = 0
    bytes: int = 0
    live: int = 0
    shares: tuple[tuple[Location, int], ...] = ()

    def by_line(self) -> list[tuple[Location, float]]:
        """Its lines, and how much of it belongs to each."""
        shares = self.shares or [(loc, 1) for loc in sorted(self.locs)]
        total = sum(share for _, share in shares)
        return [(loc, share / total) for loc, share in shares]

    def roof(self, roofs: Roofs) -> float:
        """The share of the roof that is nearer: of arithmetic or of memory."""
        if not self.seconds:
            return 0.0
        return max(self.flops / roofs.flops, self.bytes / roofs.bytes) / self.seconds


class Piece(Frozen):
    """The work of one thread on one call; seconds since the run began."""

    call: int
    thread: int
    start: float
    end: float


class Line(Frozen):
    """What the calls of one source line took; those of its gradient apart.

    A call of several lines is shared out among them by their ops' arithmetic; ``live`` is the most
    of any call.
    """

    file: str
    line: int
    backward: bool
    seconds: float
    flops: float
    bytes: float
    live: int
    calls: int

    @property
    def source(self) -> str:
        """The text of the line, where its file can be read."""
        return linecache.getline(self.file, self.line).strip() if self.line else ""


class Profile(Frozen):
    """All calls of a run, in the order in which they stand in the program.

    ``roofs`` are those of the machine, where they are known.
    """

    calls: tuple[CallTime, ...]
    pieces: tuple[Piece, ...] = ()
    roofs: Roofs | None = None

    @property
    def seconds(self) -> float:
        return sum(c.seconds for c in self.calls)

    def by_kernel(self) -> dict[str, float]:
        """Seconds by kernel, most first."""
        return _totals((c.kernel, c.seconds) for c in self.calls)

    def by_line(self) -> dict[str, float]:
        """Seconds by source line, most first; gradients included."""
        return _totals((f"{r.file}:{r.line}", r.seconds) for r in self.lines())

    def lines(self) -> list[Line]:
        """A row for each line and direction: lines by their time, most first, forward first."""
        found: dict[Location, list[tuple[CallTime, float]]] = {}
        for c in self.calls:
            for loc, share in c.by_line():
                found.setdefault(loc, []).append((c, share))
        rows = [
            Line(
                loc.file,
                loc.line,
                loc.backward,
                sum(share * c.seconds for c, share in calls),
                sum(share * c.flops for c, share in calls),
                sum(share * c.bytes for c, share in calls),
                max(c.live for c, _ in calls),
                len(calls),
            )
            for loc, calls in found.items()
        ]
        total = _totals(((r.file, r.line), r.seconds) for r in rows)
        return sorted(rows, key=lambda r: (-total[r.file, r.line], r.file, r.line, r.backward))

    def text(self, by: str = "line", limit: int = 40) -> str:
        """A table by "line", "call" or "kernel", of at most ``limit`` rows, most time first."""
        match by:
            case "line":
                return _line_table(self, limit)
            case "call":
                return _call_table(self, limit)
            case "kernel":
                return _kernel_table(self, limit)
        raise NirError(f"profile: expected a table by line, call or kernel, got {by!r}")

    def __str__(self) -> str:
        return f"{self.text('line')}\n\n{self.text('call')}"

    def trace(self, path: str | os.PathLike[str]) -> None:
        """Write the run as Chrome trace events (JSON): a row for each thread, calls with lines."""
        events: list[dict[str, object]] = [
            {"ph": "M", "pid": 0, "tid": t, "name": "thread_name", "args": {"name": f"thread {t}"}}
            for t in sorted({p.thread for p in self.pieces})
        ]
        for p in self.pieces:
            c = self.calls[p.call]
            events.append(
                {
                    "ph": "X",
                    "pid": 0,
                    "tid": p.thread,
                    "ts": p.start * 1e6,
                    "dur": (p.end - p.start) * 1e6,
                    "name": c.op or c.kernel,
                    "cat": "backward" if all(loc.backward for loc in c.locs) else "forward",
                    "args": {
                        "kernel": c.kernel,
                        "lines": location_text(c.locs),
                        "call": p.call,
                        "flops": c.flops // c.count,
                        "bytes": c.bytes // c.count,
                        "live bytes": c.live,
                    },
                }
            )
        Path(path).write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))


# ---- making one --------------------------------------------------------------------------------


def profile_of(
    program: Program,
    sizes: Mapping[str, int],
    timeline: Mapping[str, Sequence[Sequence[int]]],
    roofs: Roofs | None = None,
) -> Profile:
    """The Profile of a run with symbols of these ``sizes``, of what the executor noted.

    ``timeline["calls"]`` has (nanoseconds, count) of each call, ``timeline["threads"]`` the flat
    triples (call, start, end) of each thread.
    """
    calls = tuple(
        CallTime(
            call.op,
            call.kernel,
            call.locs,
            ns * 1e-9,
            count,
            count * value(call.flops, sizes),
            count * value(call.traffic, sizes),
            value(call.live, sizes),
            call.shares,
        )
        for call, (ns, count) in zip(program.calls, timeline["calls"], strict=True)
    )
    threads = timeline["threads"]
    begin = min((own[1] for own in threads if own), default=0)
    pieces = tuple(
        Piece(own[i], t, (own[i + 1] - begin) * 1e-9, (own[i + 2] - begin) * 1e-9)
        for t, own in enumerate(threads)
        for i in range(0, len(own), 3)
    )
    return Profile(calls, tuple(sorted(pieces, key=lambda p: (p.start, p.thread))), roofs)


# ---- tables ------------------------------------------------------------------------------------

_HEAD = f"{'us':>10} {'%':>6} {'GFLOP/s':>8} {'GB/s':>7} {'roof %':>6} {'live MiB':>9}"


def _figures(
    seconds: float, total: float, flops: float, moved: float, roof: float | None, live: int
) -> str:
    s = seconds or 1.0
    share = "" if roof is None else f"{100 * roof:.0f}"
    return (
        f"{seconds * 1e6:10.1f} {100 * seconds / total:6.1f} {flops / s * 1e-9:8.2f} "
        f"{moved / s * 1e-9:7.2f} {share:>6} {live / 2**20:9.2f}"
    )


def _line_table(profile: Profile, limit: int) -> str:
    total = profile.seconds or 1.0
    rows = [f"{_HEAD} {'calls':>6}  line"]
    found = profile.lines()
    for r in found[:limit]:
        roof = None
        if profile.roofs is not None and r.seconds:
            roof = max(r.flops / profile.roofs.flops, r.bytes / profile.roofs.bytes) / r.seconds
        where = f"{r.file}:{r.line}{' backward' if r.backward else ''}"
        source = f"  | {r.source}" if r.source and not r.backward else ""
        figures = _figures(r.seconds, total, r.flops, r.bytes, roof, r.live)
        rows.append(f"{figures} {r.calls:6}  {where}{source}")
    return "\n".join([*rows, *_left_out(len(found), limit)])


def _call_table(profile: Profile, limit: int) -> str:
    total = profile.seconds or 1.0
    rows = [f"{_HEAD} {'count':>6}  call"]
    for c in sorted(profile.calls, key=lambda c: -c.seconds)[:limit]:
        roof = None if profile.roofs is None else c.roof(profile.roofs)
        name = c.kernel if c.op in c.kernel else f"{c.kernel} ({c.op})"
        figures = _figures(c.seconds, total, c.flops, c.bytes, roof, c.live)
        rows.append(f"{figures} {c.count:6}  {name}  @ {location_text(c.locs)}")
    return "\n".join([*rows, *_left_out(len(profile.calls), limit)])


def _kernel_table(profile: Profile, limit: int) -> str:
    total = profile.seconds or 1.0
    found = profile.by_kernel()
    rows = [f"{'us':>10} {'%':>6}  kernel"]
    for kernel, seconds in list(found.items())[:limit]:
        rows.append(f"{seconds * 1e6:10.1f} {100 * seconds / total:6.1f}  {kernel}")
    return "\n".join([*rows, *_left_out(len(found), limit)])


def _left_out(count: int, limit: int) -> list[str]:
    return [f"... and {count - limit} more"] if count > limit else []


def _totals(items: Iterable[tuple[K, float]]) -> dict[K, float]:
    out: dict[K, float] = {}
    for key, seconds in items:
        out[key] = out.get(key, 0.0) + seconds
    return dict(sorted(out.items(), key=lambda item: -item[1]))
