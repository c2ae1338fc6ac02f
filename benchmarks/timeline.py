"""Where a step's time goes, call by call: python -m benchmarks.timeline WORKLOAD.

The times are those of real steps; training overwrites its state in place. A call's rate is what the
compiler estimates that it must do, over its time: floating-point operations for products, bytes for
the rest, each also as a share of the machine's measured roof. What lies between the calls and the
step is the front end's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import roof, workloads
from benchmarks.workloads import Step
from nir.ir.bind import bind_shapes
from nir.ir.dim import evaluate
from nir.ir.graph import location_text
from nir.runtime import Executable

_STEPS = 20  # of each kind; fewer where they are long
_PRODUCTS = ("matmul", "conv", "attention", "attend")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.timeline", description=__doc__)
    parser.add_argument("workload", choices=workloads.names())
    parser.add_argument("--calls", type=int, default=25, help="how many to list")
    parser.add_argument("--kinds", type=int, default=12, help="how many kinds to list")
    parser.add_argument("--order", action="store_true", help="in the order of the program")
    args = parser.parse_args()
    step = workloads.load(args.workload).peers["nir"]()
    step()
    executable, shapes = observed(step)
    whole, runs, calls, counts = timed(step, executable)
    limits = roof.measure(2)
    print(f"{args.workload}: step {whole * 1e3:.3f} ms, calls {sum(calls) * 1e3:.3f} ms,")
    print(f"run {runs * 1e3:.3f} ms, front end {(whole - runs) * 1e3:.3f} ms; {limits}")
    rows = described(executable, shapes, calls, counts)
    total: dict[str, float] = {}
    for seconds, kind, *_ in rows:
        total[kind] = total.get(kind, 0.0) + seconds
    for kind, seconds in sorted(total.items(), key=lambda item: -item[1])[: args.kinds]:
        print(f"{seconds * 1e3:9.3f} ms {seconds / sum(calls):6.1%}  {kind}")
    print(f"{'us':>9} {'%':>6} {'count':>6} {'rate':>12} {'roof':>5}  call")
    listed = rows if args.order else sorted(rows, reverse=True)[: args.calls]
    for seconds, kind, count, work, text in listed:
        product = kind == "products"
        rate = work * (8 if product else 1) / max(seconds, 1e-9) * 1e-9
        share = rate / (limits.fma if product else limits.triad)
        unit = "GFLOP/s" if product else "GB/s   "
        print(
            f"{seconds * 1e6:9.1f} {seconds / sum(calls):6.1%} {count:6} {rate:5.0f} {unit} "
            f"{share:5.0%}  {text}"
        )


def observed(step: Step) -> tuple[Any, list[tuple[int, ...]]]:
    """The largest executable that a step runs, and the shapes of its inputs."""
    found: list[tuple[Any, list[tuple[int, ...]]]] = []
    plain = Executable.run

    def noted(self: Any, inputs: Sequence[Any], *rest: Any) -> Any:
        found.append((self, [tuple(x.shape) for x in inputs]))
        return plain(self, inputs, *rest)

    Executable.run = noted  # type: ignore[method-assign]
    try:
        step()
    finally:
        Executable.run = plain  # type: ignore[method-assign]
    return max(found, key=lambda f: len(f[0].program.calls))


def timed(step: Step, executable: Any) -> tuple[float, float, list[float], list[int]]:
    """Medians: seconds of a step, of its run, and of each call when they are timed; how often each
    call ran."""
    core, plain = executable._core, executable.run
    wholes: list[float] = []
    runs: list[float] = []
    noted: list[dict[str, Any]] = []

    def clocked(inputs: Sequence[Any], donate: Sequence[int] = (), in_place: bool = False) -> Any:
        start = time.perf_counter()
        outputs = core.run(inputs, donate, None, in_place)
        runs.append(time.perf_counter() - start)
        return outputs

    def profiled(inputs: Sequence[Any], donate: Sequence[int] = (), in_place: bool = False) -> Any:
        noted.append({})
        return core.run(inputs, donate, noted[-1], in_place)

    start = time.perf_counter()
    step()
    steps = _STEPS if time.perf_counter() - start < 0.05 else _STEPS // 3
    for _ in range(steps):
        executable.run = clocked
        start = time.perf_counter()
        step()
        wholes.append(time.perf_counter() - start)
        executable.run = profiled
        step()
    executable.run = plain
    counts = [count for _, count in noted[0]["calls"]]
    times = zip(*([ns for ns, _ in n["calls"]] for n in noted), strict=True)
    calls = [statistics.median(t) * 1e-9 for t in times]
    return statistics.median(wholes), statistics.median(runs), calls, counts


def described(
    executable: Any,
    shapes: Sequence[tuple[int, ...]],
    calls: Sequence[float],
    counts: Sequence[int],
) -> list[tuple[float, str, int, float, str]]:
    """(seconds, kind, count, work, words) of each call."""
    program = executable.program
    env = bind_shapes(program.inputs, shapes, program.input_names)
    out = []
    sites = zip(calls, program.calls, executable.sites, counts, strict=True)
    for seconds, call, (op, locs), count in sites:
        dims = "x".join(str(evaluate(d, env)) for d in call.dims)
        kind = "products" if any(p in call.kernel for p in _PRODUCTS) else _kind(call.kernel)
        name = call.kernel if op in call.kernel else f"{call.kernel} ({op})"
        more = " + epilogue" if call.epilogue else ""
        where = location_text(locs)[:60]
        work = float(evaluate(call.work, env)) * count
        out.append((seconds, kind, count, work, f"{name}{more} [{dims}] @ {where}"))
    return out


def _kind(kernel: str) -> str:
    """The kernel, or the form of a generated loop."""
    return kernel if kernel.startswith("nir_") else f"loops: {kernel.partition('_')[2]}"


if __name__ == "__main__":
    main()
