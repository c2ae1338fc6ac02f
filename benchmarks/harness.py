"""Runs peers side by side and judges what the times are worth.

Every peer has its own process and the same number of threads. A time is the median of the rounds,
its spread the interquartile range over the median. Rounds alternate between the peers, so that a
machine that slows down slows all of them: a ratio is the median of the rounds' own ratios, with the
interval that holds the true median with a probability of 95 %, whatever the noise is like. No ratio
is given where that interval is wide.

A peer that keeps compiled code on disk runs twice: once with an empty cache, for the time of its
first call, and then in a new process with what the first left, in which it is timed.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import workloads

MAX_ERROR = 0.1  # half of a ratio's interval, over the ratio
_ROOT = Path(__file__).parent.parent
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NIR_NUM_THREADS",
    "TVM_NUM_THREADS",
)
# By package: the variable that says where compiled code is kept, and what else turns that on.
_CACHES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "nir": ("NIR_CACHE_DIR", {}),
    "torch_compile": ("TORCHINDUCTOR_CACHE_DIR", {}),
    "jax": (
        "JAX_COMPILATION_CACHE_DIR",
        {
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        },
    ),
}


@dataclass(frozen=True)
class Measurement:
    """What one peer did on one workload. Times in seconds.

    ``first_call`` starts from an empty cache, ``first_call_cached`` (0 for peers without one) from
    a full one. Both are the whole first call in a new process, behind import and building the
    model: tracing, compiling, binding weights, and the first step, which also takes its memory from
    the system. Reports print them less ``median``. ``peak_bytes`` is the most that the process ever
    held, ``step_bytes`` the most during steps less what was resident after import, and less
    parameters and optimiser state.
    """

    workload: str
    peer: str
    version: str = ""
    median: float = 0.0
    spread: float = 0.0
    rounds: list[float] = field(default_factory=list)
    build: float = 0.0
    first_call: float = 0.0
    first_call_cached: float = 0.0
    peak_bytes: int = 0
    step_bytes: int = 0
    values: list[list[float]] = field(default_factory=list)
    error: str = ""


class PeerError(Exception):
    """A peer's process ended early; the message is the end of what it said."""


class _Peer:
    def __init__(self, workload: str, name: str, threads: int, cache: Path) -> None:
        self.name = name
        self.times: list[float] = []
        environment = {**os.environ, **{v: str(threads) for v in _THREAD_VARIABLES}}
        if (keeps := _cache_of(name)) is not None:
            environment |= {keeps[0]: str(cache), **keeps[1]}
        # A file, since a pipe that nobody reads would stop a talkative peer.
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", workload, name, str(threads)],
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

    def pause(self) -> None:
        """Stop the process: threads that spin while they wait would take the others' cores."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()  # waits, and closes the pipes
        self.log.close()


def _cache_of(peer: str) -> tuple[str, Mapping[str, str]] | None:
    return _CACHES.get(peer) or _CACHES.get(workloads.package(peer))


def measure(
    workload: str,
    peers: Sequence[str],
    *,
    threads: int,
    rounds: int,
    seconds: float,
    caches: Path | None = None,
) -> list[Measurement]:
    """Every peer on ``workload``; one that fails has its ``error`` filled in.

    ``caches`` is a folder for the caches of peers, with the times of the first calls that filled
    them: a later run takes both from there.
    """
    running: dict[str, _Peer] = {}
    results: dict[str, dict[str, Any]] = {}
    check_steps = workloads.load(workload).check_steps
    with tempfile.TemporaryDirectory() as temporary:
        try:
            for name in peers:  # one after the other: builds do not disturb each other
                cache = Path(caches or temporary).absolute() / workload / name
                peer: _Peer | None = None
                try:
                    cold = _first_call(workload, name, threads, cache)
                    peer = _Peer(workload, name, threads, cache)
                    hello = peer.read()
                    checked = peer.ask(f"check {check_steps - 1}")
                    memory = peer.ask("memory")
                except PeerError as error:
                    if peer is not None:
                        peer.close()
                    results[name] = {"error": str(error)}
                    continue
                peer.pause()
                running[name] = peer
                first = hello["first_call_seconds"]
                results[name] = {
                    "version": hello["version"],
                    "build": hello["build_seconds"],
                    "first_call": first if cold is None else cold,
                    "first_call_cached": 0.0 if cold is None else first,
                    "values": [hello["value"], *checked["values"]],
                    **memory,
                }
            for i in range(rounds + 1):
                for peer in running.values():
                    peer.resume()
                    taken = peer.ask(f"time {seconds}")["step_seconds"]
                    peer.pause()
                    if i > 0:  # the first round warms up
                        peer.times.append(taken)
            for name, peer in running.items():
                results[name] |= summary(peer.times)
        finally:
            for peer in running.values():
                peer.close()
    return [Measurement(workload, name, **results[name]) for name in peers]


def _first_call(workload: str, name: str, threads: int, cache: Path) -> float | None:
    """Seconds of ``name``'s first call from an empty cache, which it fills; None without one."""
    if _cache_of(name) is None:
        return None
    noted = cache.with_suffix(".first_call")
    if noted.exists():
        return float(noted.read_text())
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir(parents=True)
    peer = _Peer(workload, name, threads, cache)
    try:
        seconds = float(peer.read()["first_call_seconds"])
    finally:
        peer.close()
    noted.write_text(str(seconds))
    return seconds


def summary(times: Sequence[float]) -> dict[str, Any]:
    """Median, spread and the rounds themselves."""
    low, middle, high = statistics.quantiles(times, n=4)
    return {"median": middle, "spread": (high - low) / middle, "rounds": list(times)}


def disagreement(measured: Sequence[Measurement], tolerance: float) -> str:
    """How the peers' numbers differ by more than ``tolerance``; "" if they agree."""
    done = [m for m in measured if not m.error]
    for other in done[1:]:
        for i, (mine, theirs) in enumerate(zip(done[0].values, other.values, strict=True)):
            if len(mine) != len(theirs):
                return f"step {i + 1}: {done[0].peer} and {other.peer} give unlike shapes"
            scale = max(map(abs, [*mine, *theirs]))
            for a, b in zip(mine, theirs, strict=True):
                if not abs(a - b) <= tolerance * scale:
                    return f"step {i + 1}: {done[0].peer} gives {a:.6g}, {other.peer} gives {b:.6g}"
    return ""


@dataclass(frozen=True)
class Ratio:
    """A ratio of times, and half of its 95 % interval over the ratio."""

    value: float
    error: float

    @property
    def is_noise(self) -> bool:
        return self.error > MAX_ERROR

    def __str__(self) -> str:
        return f"too noisy (±{self.error:.0%})" if self.is_noise else f"{self.value:.2f}x"


def speedup(base: Measurement, other: Measurement) -> Ratio | None:
    """``other``'s time over ``base``'s in the same rounds; None where one failed."""
    if base.error or other.error:
        return None
    ratios = sorted(b / a for a, b in zip(base.rounds, other.rounds, strict=True))
    cut = _outside(len(ratios))
    middle = statistics.median(ratios)
    return Ratio(middle, (ratios[-1 - cut] - ratios[cut]) / 2 / middle)


def _outside(count: int) -> int:
    """How many of ``count`` sorted samples may be cut off at each end of a 95 % interval.

    The median lies below the sample of rank k + 1 with the probability that at most k of the
    samples fall below the median: binomial, with probability 1/2 for each.
    """
    cut, below = 0, 1 / 2**count
    while 2 * (below + math.comb(count, cut + 1) / 2**count) <= 0.05:
        cut += 1
        below += math.comb(count, cut) / 2**count
    return cut


def best_peer(measured: Sequence[Measurement]) -> Measurement | None:
    """The fastest of the peers, which are all but nir itself in either of its faces."""
    others = [m for m in measured if not m.error and workloads.package(m.peer) != "nir"]
    return min(others, key=lambda m: m.median, default=None)


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
