"""Runs the cases of a table: peers in processes of their own, in alternating rounds.

While one peer runs the others are stopped: some spin for 20 ms after their work.
A time is the median of the rounds, its spread the interquartile range over the median. A case on
which nir is slower than ``RETRY`` of the best peer, or with a spread above ``MAX_SPREAD``, is
measured again with twice the rounds before it is reported.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.kernels import Case

RETRY = 0.85
MAX_SPREAD = 0.15
_ROOT = Path(__file__).parents[2]
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NIR_NUM_THREADS")


@dataclass(frozen=True)
class Time:
    """Seconds of one peer on one case."""

    median: float
    spread: float
    best: float


@dataclass(frozen=True)
class Row:
    """One case on so many threads. ``errors``: what a peer failed with, or how results differ."""

    case: Case
    threads: int
    times: dict[str, Time]
    errors: dict[str, str] = field(default_factory=dict)

    @property
    def best_peer(self) -> str:
        """The fastest peer but nir; "" if there is none."""
        others = [p for p in self.times if p != "nir"]
        return min(others, key=lambda p: self.times[p].median, default="")

    @property
    def ratio(self) -> float:
        """The best peer's time over nir's; 0 where one of the two is missing."""
        if not self.best_peer or "nir" not in self.times:
            return 0.0
        return self.times[self.best_peer].median / self.times["nir"].median

    @property
    def spread(self) -> float:
        return max((t.spread for t in self.times.values()), default=0.0)


class _Worker:
    def __init__(self, table: str, peer: str, threads: int) -> None:
        self.peer = peer
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.kernels.worker", table, peer, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            cwd=_ROOT,
            env={**os.environ, **{v: str(threads) for v in _THREADS}},
        )

    def ask(self, question: str) -> dict[str, Any]:
        """The answer to ``question``; the process runs only meanwhile."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            said = self.log.read().decode(errors="replace").strip().splitlines()
            raise RuntimeError(f"{self.peer} ended: {said[-1] if said else self.process.wait()}")
        self.process.send_signal(signal.SIGSTOP)
        reply: dict[str, Any] = json.loads(line)
        return reply

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.log.close()


def run(
    table: str,
    cases: Sequence[tuple[int, Case]],
    peers: Sequence[str],
    *,
    threads: int,
    rounds: int,
    seconds: float,
) -> Iterator[Row]:
    """A row for each of ``cases`` (with its number in the table), as it is done."""
    workers = {p: _Worker(table, p, threads) for p in peers}
    try:
        for number, case in cases:
            yield _row(case, number, workers, threads, rounds, seconds)
    finally:
        for w in workers.values():
            w.close()


def _row(
    case: Case,
    number: int,
    workers: dict[str, _Worker],
    threads: int,
    rounds: int,
    seconds: float,
) -> Row:
    values: dict[str, list[float]] = {}
    errors: dict[str, str] = {}
    for peer, worker in workers.items():
        if peer in case.peers:
            reply = worker.ask(f"case {number}")
            if "error" in reply:
                errors[peer] = reply["error"]
            else:
                values[peer] = reply["values"]
    for peer, own in values.items():
        if "nir" in values and (wrong := _differ(values["nir"], own, case.tolerance)):
            errors[peer] = f"differs from nir: {wrong}"

    def times(rounds: int) -> Row:
        taken: dict[str, list[float]] = {p: [] for p in values}
        for i in range(rounds + 1):
            for peer, list_ in taken.items():
                one = workers[peer].ask(f"time {seconds}")["seconds"]
                if i > 0:  # the first round warms up
                    list_.append(one)
        return Row(case, threads, {p: _summary(t) for p, t in taken.items()}, errors)

    row = times(rounds)
    if 0 < row.ratio < RETRY or row.spread > MAX_SPREAD:
        row = times(2 * rounds)
    return row


def _summary(times: Sequence[float]) -> Time:
    low, middle, high = statistics.quantiles(times, n=4)
    return Time(middle, (high - low) / middle, min(times))


def _differ(a: Sequence[float], b: Sequence[float], tolerance: float) -> str:
    if len(a) != len(b):
        return "other shapes"
    largest = max(map(abs, a), default=0.0)
    for x, y in zip(a, b, strict=True):
        if not (x == y or abs(x - y) <= tolerance * largest):  # a nan is a difference
            return f"{y:.6g} for {x:.6g}, the largest being {largest:.3g}"
    return ""
