"""The command line of the kernel tables."""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
from pathlib import Path

from benchmarks import harness, kernels, roof
from benchmarks.kernels import measure, report


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("table", choices=kernels.names())
    parser.add_argument("--only", default="", help="cases whose group or name match this pattern")
    parser.add_argument(
        "--peers", default="torch,torch_last,torch_blocked,numpy,jax", help="comma-separated"
    )
    parser.add_argument("--threads", default="1,2", help="numbers of threads, comma-separated")
    parser.add_argument("--rounds", type=int, default=11, help="at least 10")
    parser.add_argument("--seconds", type=float, default=0.01, help="least length of a round")
    parser.add_argument("--json", type=Path, help="also write the measurements to this file")
    args = parser.parse_args()
    if args.rounds < 10:
        parser.error("--rounds: a median of fewer than 10 rounds is not worth reporting")
    title, every = kernels.load(args.table)
    cases = [(i, c) for i, c in enumerate(every) if re.search(args.only, f"{c.group} {c.name}")]
    if not cases:
        parser.error(f"--only {args.only}: no such case")
    wanted = [p for p in args.peers.split(",") if p and any(p in c.peers for _, c in cases)]
    peers = ["nir", *(p for p in wanted if importlib.util.find_spec(p.split("_")[0]))]
    context = harness.machine() | {"table": args.table, "rounds": args.rounds}
    print(", ".join(f"{key}: {value}" for key, value in context.items()))
    roofs: dict[int, roof.Roof] = {}
    rows: list[measure.Row] = []
    for threads in map(int, args.threads.split(",")):
        roofs[threads] = roof.measure(threads)
        print(f"\n{title}. {roofs[threads]}\n{report.header(peers)}", flush=True)
        for row in measure.run(
            args.table, cases, peers, threads=threads, rounds=args.rounds, seconds=args.seconds
        ):
            print(report.line(row, roofs[threads], peers), flush=True)
            rows.append(row)
    print(f"\n{report.summary(rows)}")
    if args.json:
        args.json.write_text(report.to_json(rows, roofs, **context))
    return int(any(r.errors for r in rows))


if __name__ == "__main__":
    sys.exit(main())
