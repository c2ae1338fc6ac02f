"""One workload on one peer, in a process of its own; driven by lines on standard input.

-> check N       <- {"values": [what N steps gave, as lists of numbers]}
-> memory        <- {"step_bytes": int, "peak_bytes": int}
-> time SECONDS  <- {"step_seconds": float, "steps": int}
-> quit
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import workloads

_LONG_STEP = 0.2  # seconds, in which waking up is nothing
_SAMPLES = 64  # elements of an array that are compared, besides its mean and its mean size


def main() -> None:
    name, peer, threads = sys.argv[1:]
    # Peers that have no setting for their threads look at the cores that they may use.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(threads)])
    replies = sys.stdout
    sys.stdout = sys.stderr  # what a peer prints must not end up among the replies

    def reply(**fields: object) -> None:
        print(json.dumps(fields), file=replies, flush=True)

    workload = workloads.load(name)
    module = importlib.import_module(workloads.package(peer))
    imported = _status("VmRSS")
    start = time.perf_counter()
    step = workload.peers[peer]()
    built = time.perf_counter()
    value = step()
    reply(
        build_seconds=built - start,
        first_call_seconds=time.perf_counter() - built,
        value=numbers(value),
        version=f"{module.__name__} {getattr(module, '__version__', 'in development')}",
    )
    for line in sys.stdin:
        match line.split():
            case ["check", count]:
                reply(values=[numbers(step()) for _ in range(int(count))])
            case ["memory"]:
                whole = _status("VmHWM")
                during = _peak_during(step)
                held = imported + workload.state_bytes
                reply(peak_bytes=max(whole, during), step_bytes=during - held)
            case ["time", seconds]:
                reply(**_time(step, float(seconds)))
            case ["quit"]:
                return


def numbers(value: Any) -> list[float]:
    """What a step gave, as few enough numbers to be sent: samples of an array, its mean and size.

    >>> numbers(0.5)
    [0.5]
    """
    array = np.asarray(value, np.float64).reshape(-1)
    if array.size == 1:
        return [float(array[0])]
    at = np.linspace(0, array.size - 1, min(_SAMPLES, array.size)).astype(int)
    return [*map(float, array[at]), float(array.mean()), float(np.abs(array).mean())]


def _time(step: workloads.Step, seconds: float) -> dict[str, float]:
    start = time.perf_counter()
    step()  # other processes ran in between: caches are cold and threads asleep
    first = time.perf_counter() - start
    if first > _LONG_STEP:
        return {"step_seconds": first, "steps": 1}
    steps, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds or steps == 0:
        step()
        steps += 1
    return {"step_seconds": elapsed / steps, "steps": steps}


def _peak_during(step: workloads.Step) -> int:
    """The most memory resident while a few steps run, of a process that has run some before."""
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's mark starts again from here
    for _ in range(3):
        step()
    return _status("VmHWM")


def _status(key: str) -> int:
    """Bytes of this process by the kernel; getrusage would count the parent's as well."""
    match = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


if __name__ == "__main__":
    main()
