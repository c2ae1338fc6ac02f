"""One workload on one peer, in a process of its own; driven by lines on standard input.

-> check N       <- {"values": [N numbers]}
-> time SECONDS  <- {"step_seconds": float, "steps": int}
-> quit          <- {"peak_bytes": int}
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

from benchmarks import workloads


def main() -> None:
    name, peer = sys.argv[1:]
    replies = sys.stdout
    sys.stdout = sys.stderr  # what a peer prints must not end up among the replies

    def reply(**fields: object) -> None:
        print(json.dumps(fields), file=replies, flush=True)

    start = time.perf_counter()
    step = workloads.load(name).peers[peer]()
    built = time.perf_counter()
    value = step()
    reply(
        build_seconds=built - start,
        first_call_seconds=time.perf_counter() - built,
        value=value,
        version=_version(peer),
    )
    for line in sys.stdin:
        match line.split():
            case ["check", count]:
                reply(values=[step() for _ in range(int(count))])
            case ["time", seconds]:
                reply(**_time(step, float(seconds)))
            case ["quit"]:
                reply(peak_bytes=_peak_bytes())
                return


def _time(step: workloads.Step, seconds: float) -> dict[str, float]:
    step()  # other processes ran in between: caches are cold and threads asleep
    steps, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds or steps == 0:
        step()
        steps += 1
    return {"step_seconds": elapsed / steps, "steps": steps}


def _peak_bytes() -> int:
    """The most memory that this process has held; getrusage would count the parent's as well."""
    status = Path("/proc/self/status").read_text()
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert match is not None
    return int(match[1]) * 1024


def _version(peer: str) -> str:
    module = sys.modules[workloads.package(peer)]
    return f"{module.__name__} {getattr(module, '__version__', 'in development')}"


if __name__ == "__main__":
    main()
