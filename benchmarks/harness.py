"""Runs peers side by side and judges what the times are worth.

Every peer has its own process and the same number of threads. Rounds alternate between the peers,
so that a machine that slows down slows all of them; a time is the median of the rounds, its spread
the interquartile range over the median. No ratio is given where a spread says that it would be
noise.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import workloads

MAX_SPREAD = 0.15
_ROOT = Path(__file__).parent.parent
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NIR_NUM_THREADS",
)


@dataclass(frozen=True)
class Measurement:
    """What one peer did on one workload. Times in seconds."""

    workload: str
    peer: str
    version: str = ""
    median: float = 0.0
    spread: float = 0.0
    rounds: list[float] = field(default_factory=list)
    build: float = 0.0
    first_call: float = 0.0
    peak_bytes: int = 0
    values: list[float] = field(default_factory=list)
    error: str = ""


class PeerError(Exception):
    """A peer's process ended early; the message is the end of what it said."""


class _Peer:
    def __init__(self, workload: str, name: str, threads: int) -> None:
        self.name = name
        self.times: list[float] = []
        environment = {**os.environ, **{v: str(threads) for v in _THREAD_VARIABLES}}
        # A file, since a pipe that nobody reads would stop a talkative peer.
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", workload, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            cwd=_ROOT,
            env=environment,
        )

    def read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            self.log.seek(0)
            said = self.log.read().decode(errors="replace").strip().splitlines()
            raise PeerError(said[-1] if said else f"ended with code {code}")
        return json.loads(line)

    def ask(self, question: str) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        return self.read()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()  # waits, and closes the pipes
        self.log.close()


def measure(
    workload: str, peers: Sequence[str], *, threads: int, rounds: int, seconds: float
) -> list[Measurement]:
    """Every peer on ``workload``; one that fails has its ``error`` filled in."""
    running: dict[str, _Peer] = {}
    results: dict[str, dict[str, Any]] = {}
    try:
        for name in peers:  # one after the other: builds do not disturb each other
            peer = _Peer(workload, name, threads)
            try:
                hello = peer.read()
                checked = peer.ask(f"check {workloads.load(workload).check_steps - 1}")
            except PeerError as error:
                peer.close()
                results[name] = {"error": str(error)}
                continue
            running[name] = peer
            results[name] = {
                "version": hello["version"],
                "build": hello["build_seconds"],
                "first_call": hello["first_call_seconds"],
                "values": [hello["value"], *checked["values"]],
            }
        for i in range(rounds + 1):
            for peer in running.values():
                taken = peer.ask(f"time {seconds}")["step_seconds"]
                if i > 0:  # the first round warms up
                    peer.times.append(taken)
        for name, peer in running.items():
            results[name] |= summary(peer.times)
            results[name]["peak_bytes"] = peer.ask("quit")["peak_bytes"]
    finally:
        for peer in running.values():
            peer.close()
    return [Measurement(workload, name, **results[name]) for name in peers]


def summary(times: Sequence[float]) -> dict[str, Any]:
    """Median, spread and the rounds themselves."""
    low, middle, high = statistics.quantiles(times, n=4)
    return {"median": middle, "spread": (high - low) / middle, "rounds": list(times)}


def disagreement(measured: Sequence[Measurement], tolerance: float) -> str:
    """How the peers' numbers differ by more than ``tolerance``; "" if they agree."""
    done = [m for m in measured if not m.error]
    for other in done[1:]:
        for i, (a, b) in enumerate(zip(done[0].values, other.values, strict=True)):
            if not abs(a - b) <= tolerance * max(abs(a), abs(b)):
                return f"step {i + 1}: {done[0].peer} gives {a:.6g}, {other.peer} gives {b:.6g}"
    return ""


def ratio(base: Measurement, other: Measurement) -> str:
    """``other``'s time over ``base``'s, or why there is none."""
    if base.error or other.error:
        return "-"
    worst = max(base.spread, other.spread)
    if worst > MAX_SPREAD:
        return f"too noisy ({worst:.0%})"
    return f"{other.median / base.median:.2f}x"


def report(measured: Sequence[Measurement]) -> str:
    """The measurements of one workload as a table; ratios are to the first peer."""
    workload = workloads.load(measured[0].workload)
    lines = [
        workload.title,
        f"  {'peer':<14} {'ms/step':>9} {'spread':>7} {'best':>9} {'ratio':>16} "
        f"{'first call':>11} {'peak MiB':>9}  version",
    ]
    for m in measured:
        if m.error:
            lines.append(f"  {m.peer:<14} failed: {m.error}")
            continue
        lines.append(
            f"  {m.peer:<14} {m.median * 1e3:9.3f} {m.spread:7.1%} {min(m.rounds) * 1e3:9.3f} "
            f"{ratio(measured[0], m):>16} {m.first_call:9.2f} s "
            f"{m.peak_bytes / 2**20:9.0f}  {m.version}"
        )
    if sum(not m.error for m in measured) > 1:
        wrong = disagreement(measured, workload.tolerance)
        lines.append(f"  results DISAGREE: {wrong}" if wrong else "  results agree")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "python": sys.version.split()[0],
    }


def to_json(measured: Sequence[Measurement], **context: Any) -> str:
    document: Mapping[str, Any] = {**context, "measurements": [asdict(m) for m in measured]}
    return json.dumps(document, indent=1)
