"""One peer in a process of its own, driven by lines on standard input.

-> case I        <- {"values": [numbers of the result], "size": elements} or {"error": ...}
-> time SECONDS  <- {"seconds": float}  for one step, over at least so many seconds
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
from typing import Any

import numpy as np

from benchmarks import kernels

_SAMPLES = 500


def main() -> None:
    _end_with_parent()
    table, peer, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    replies = sys.stdout
    sys.stdout = sys.stderr  # what a peer prints must not end up among the replies
    # The peers have no common switch for threads; the processors that they may use are one.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    _, cases = kernels.load(table)
    step: kernels.Step | None = None
    for line in sys.stdin:
        reply: dict[str, Any]
        match line.split():
            case ["case", number]:
                step = None  # frees the memory of the last case
                try:
                    step = cases[int(number)].peers[peer]()
                    _limit_threads(peer, threads)
                    reply = {"values": _values(step())}
                except Exception as error:  # a peer without this op is a finding, not a crash
                    reply = {"error": f"{type(error).__name__}: {error}"}
            case ["time", seconds]:
                assert step is not None
                reply = {"seconds": _time(step, float(seconds))}
            case _:
                raise ValueError(f"expected case or time, got {line!r}")
        print(json.dumps(reply), file=replies, flush=True)


def _end_with_parent() -> None:
    """A stopped process would not see its standard input end."""
    set_on_death = 1  # PR_SET_PDEATHSIG
    ctypes.CDLL(None).prctl(set_on_death, signal.SIGKILL)


def _limit_threads(peer: str, threads: int) -> None:
    if peer.startswith("torch"):
        sys.modules["torch"].set_num_threads(threads)


def _time(step: kernels.Step, seconds: float) -> float:
    start = time.perf_counter()
    step()  # other processes ran in between: caches are cold and threads asleep
    warm = time.perf_counter() - start
    steps, start = 0, time.perf_counter()
    # Few looks at the clock: it costs as much as the smallest kernels.
    batch = max(1, int(seconds / 8 / max(warm, 1e-6)))
    while (elapsed := time.perf_counter() - start) < seconds or steps == 0:
        for _ in range(batch):
            step()
        steps += batch
    return elapsed / steps


def _values(result: Any) -> list[float]:
    """A sample of the result's elements, the same for every peer, and the largest."""
    parts = result if isinstance(result, (list, tuple)) else [result]
    values: list[float] = []
    for part in parts:
        flat = np.asarray(part).reshape(-1)
        chosen = np.random.default_rng(0).integers(0, max(flat.size, 1), _SAMPLES)
        values.append(float(np.abs(flat).max(initial=0)))
        values += map(float, flat[chosen] if flat.size else ())
    return values


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        main()
