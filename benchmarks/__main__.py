"""The command line of the benchmarks."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

from benchmarks import harness, workloads


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", action="append", choices=workloads.names(), help="a workload")
    parser.add_argument("--peers", default="needle,torch,torch_compile", help="comma-separated")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12, help="at least 10")
    parser.add_argument("--seconds", type=float, default=0.4, help="length of a round")
    parser.add_argument("--json", type=Path, help="also write the measurements to this file")
    args = parser.parse_args()
    if args.rounds < 10:
        parser.error("--rounds: a median of fewer than 10 rounds is not worth reporting")
    context = harness.machine() | {"threads": args.threads, "rounds": args.rounds}
    print(", ".join(f"{key}: {value}" for key, value in context.items()))
    if context["load"] > 0.5:
        print("the machine is not idle: expect noise")
    everything, failed = [], False
    for name in args.only or workloads.names():
        workload = workloads.load(name)
        wanted = [p for p in args.peers.split(",") if p in workload.peers]
        peers = ["nir", *filter(_installed, wanted)]
        measured = harness.measure(
            name, peers, threads=args.threads, rounds=args.rounds, seconds=args.seconds
        )
        print(harness.report(measured), flush=True)
        failed |= bool(harness.disagreement(measured, workload.tolerance))
        failed |= any(m.error for m in measured)
        everything += measured
    if args.json:
        args.json.write_text(harness.to_json(everything, **context))
    return int(failed)


def _installed(peer: str) -> bool:
    return importlib.util.find_spec(workloads.package(peer)) is not None


if __name__ == "__main__":
    sys.exit(main())
