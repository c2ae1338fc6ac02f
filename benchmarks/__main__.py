"""The command line of the benchmarks."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks import harness, report, roof, workloads

_PEERS = "torch,torch_channels_last,torch_compile,jax,ort,tvm"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", action="append", choices=workloads.names(), help="a workload")
    parser.add_argument("--peers", default=_PEERS, help="comma-separated; needle is one too")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12, help="at least 10")
    parser.add_argument("--seconds", type=float, default=0.4, help="length of a round")
    parser.add_argument("--caches", type=Path, help="keep what peers compile in this folder")
    parser.add_argument("--json", type=Path, help="also write the measurements to this file")
    parser.add_argument("--report", type=Path, metavar="FOLDER", help="write table and chart there")
    parser.add_argument(
        "--from", type=Path, nargs="+", dest="files", metavar="JSON",
        help="run nothing: report what these files hold, of each workload the last",
    )  # fmt: skip
    args = parser.parse_args()
    if args.files:
        rows, context = report.from_json(args.files)
        for measured in rows.values():
            print(report.text(measured, context.get("roofs", ())))
        print(report.summary_line(rows))
        if args.report:
            report.write(rows, context, args.report)
        return 0
    if args.rounds < 10:
        parser.error("--rounds: a median of fewer than 10 rounds is not worth reporting")
    return _run(args)


def _run(args: argparse.Namespace) -> int:
    context = harness.machine() | {"threads": args.threads, "rounds": args.rounds}
    print(", ".join(f"{key}: {value}" for key, value in context.items()))
    if context["load"] > 0.5:
        print("the machine is not idle: expect noise")
    roofs = [roof.measure(n) for n in sorted({1, args.threads})]
    for r in roofs:
        print(f"roof, {r}")
    context["roofs"] = [asdict(r) for r in roofs]
    asked = args.peers.split(",")
    if absent := [p for p in asked if not _installed(p)]:
        print(f"left out, not installed: {', '.join(absent)}")
    rows, failed = {}, False
    for name in args.only or workloads.names():
        workload = workloads.load(name)
        peers = ["nir", *(p for p in asked if p in workload.peers and p not in absent)]
        rows[name] = measured = harness.measure(
            name,
            peers,
            threads=args.threads,
            rounds=args.rounds,
            seconds=args.seconds,
            caches=args.caches,
        )
        print(report.text(measured, context["roofs"]), flush=True)
        failed |= bool(harness.disagreement(measured, workload.tolerance))
        failed |= any(m.error for m in measured)
    print(report.summary_line(rows))
    if args.json:
        args.json.write_text(report.to_json([m for ms in rows.values() for m in ms], **context))
    if args.report:
        report.write(rows, context, args.report)
    return int(failed)


def _installed(peer: str) -> bool:
    return importlib.util.find_spec(workloads.package(peer)) is not None


if __name__ == "__main__":
    sys.exit(main())
