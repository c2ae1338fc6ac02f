"""Where a run's time went: by call, by op and by the user's line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nir.ir.graph import location_text
from nir.ir.location import Locations
from nir.ir.program import Program


@dataclass(frozen=True, slots=True)
class CallTime:
    """One call's time in seconds, over the ``count`` times that it ran."""

    op: str
    kernel: str
    locs: Locations
    seconds: float
    count: int = 1


@dataclass(frozen=True, slots=True)
class Profile:
    """The times of all calls, in the order in which they run."""

    calls: tuple[CallTime, ...]

    @property
    def seconds(self) -> float:
        return sum(c.seconds for c in self.calls)

    def by_kernel(self) -> dict[str, float]:
        """Seconds by kernel, most first."""
        return _totals((c.kernel, c.seconds) for c in self.calls)

    def by_line(self) -> dict[str, float]:
        """Seconds by source line, most first; a call of several lines is shared out among them."""
        return _totals(
            (str(loc), c.seconds / len(c.locs)) for c in self.calls for loc in sorted(c.locs)
        )

    def __str__(self) -> str:
        total = self.seconds or 1.0
        rows = [f"{'us':>10} {'%':>6} {'count':>6}  kernel"]
        for c in sorted(self.calls, key=lambda c: -c.seconds):
            share = 100 * c.seconds / total
            name = c.kernel if c.op in c.kernel else f"{c.kernel} ({c.op})"
            time = f"{c.seconds * 1e6:10.1f} {share:6.1f} {c.count:6}"
            rows.append(f"{time}  {name}  @ {location_text(c.locs)}")
        return "\n".join(rows)


def profile_of(
    program: Program,
    sites: Sequence[tuple[str, Locations]],
    nanoseconds: Sequence[int],
    counts: Sequence[int],
) -> Profile:
    """The Profile of one run."""
    return Profile(
        tuple(
            CallTime(op, call.kernel, locs, ns * 1e-9, count)
            for call, (op, locs), ns, count in zip(
                program.calls, sites, nanoseconds, counts, strict=True
            )
        )
    )


def _totals(items: Iterable[tuple[str, float]]) -> dict[str, float]:
    out: dict[str, float] = {}
    for key, seconds in items:
        out[key] = out.get(key, 0.0) + seconds
    return dict(sorted(out.items(), key=lambda item: -item[1]))
