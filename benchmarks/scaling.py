"""How the time of every stage grows with the graph: 1k, 2k, 4k and 8k ops, and the fitted exponent.

python -m benchmarks.scaling              a table; exit status 1 if an exponent exceeds 1.2, of a
                                          stage that takes at least 2 ms: below, one walk over the
                                          ops is timed, and the caches decide
python -m benchmarks.scaling --sizes 500,1000 --repeat 1
python -m benchmarks.scaling --collector  with Python's collector on: it walks all that lives at
                                          thresholds of its own, which no stage decides
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

from nir.ir.diff import diff
from nir.ir.dim import symbol
from nir.ir.graph import Builder, Graph
from nir.ir.location import Location
from nir.ir.text import parse_graph, print_graph
from nir.ir.types import TensorType, f32
from nir.ir.verify import verify
from nir.ops.expr import Expr
from nir.ops.vjp import gradient
from nir.passes.pipeline import PIPELINE
from nir.targets import cpu

SIZES = (1000, 2000, 4000, 8000)
LIMIT = 1.2
MEASURABLE = 2e-3


def residual_mlp(layers: int) -> Graph:
    """A network of residual layers over f32[B,32], five ops each, and the sum of its outputs."""
    b = Builder("residual_mlp")
    batch = symbol("B")
    x = Expr(b, b.input(TensorType(f32, (batch, 32)), "x"))
    for i in range(layers):
        b.locs = frozenset({Location("model.py", 1 + i)})
        w = Expr(b, b.input(TensorType(f32, (32, 32)), f"w{i}"))
        bias = Expr(b, b.input(TensorType(f32, (32,)), f"b{i}"))
        x = x + (x.matmul(w) + bias.broadcast(x.shape, (1,))).relu()
    return b.build([x.sum((0, 1)).value])


def training_graph(ops: int) -> Graph:
    """A residual network with its gradients, about ``ops`` ops in all."""
    per_layer = (len(_with_gradient(20).nodes) - len(_with_gradient(10).nodes)) / 10
    return _with_gradient(max(1, round(ops / per_layer)))


def _with_gradient(layers: int) -> Graph:
    return gradient(residual_mlp(layers))


def stages(graph: Graph) -> list[tuple[str, Callable[[], object]]]:
    """(name, what to time) of every stage that ``graph`` goes through; passes in their order."""
    arrays: dict[str, np.ndarray] = {}
    traced, text = graph, print_graph(graph, arrays)
    other = traced.with_(outputs=traced.outputs[:1])
    found: list[tuple[str, Callable[[], object]]] = [
        ("print", lambda: print_graph(_fresh(traced))),
        ("parse", lambda: parse_graph(text, arrays)),
        ("verify", lambda: verify(_fresh(traced))),
        ("key", lambda: _fresh(traced).key),
        ("diff", lambda: diff(_fresh(traced), _fresh(other))),
    ]
    target = cpu.target("avx512")
    for i, p in enumerate(PIPELINE):
        name = f"{i:02d} {p.name}"
        found.append((name, lambda g=graph, p=p: p.run(_fresh(g), target)))  # type: ignore[misc]
        graph = p.run(graph, target)
    planned = graph
    found.append(("print planned", lambda: print_graph(_fresh(planned))))
    found.append(("verify planned", lambda: verify(_fresh(planned))))
    return found


def _fresh(graph: Graph) -> Graph:
    """The same graph without the tables that it has computed already."""
    return graph.with_()


def measure(sizes: Sequence[int], repeat: int) -> dict[str, list[tuple[int, float]]]:
    """(ops, least seconds of ``repeat``) of each stage at each size.

    All stages take turns: a slow stretch of a shared machine then hits one try of many stages, and
    not every try of one.
    """
    graphs = [training_graph(size) for size in sizes]
    runs = [stages(graph) for graph in graphs]
    best: dict[tuple[str, int], float] = {}
    for _ in range(repeat):
        for graph, found in zip(graphs, runs, strict=True):
            gc.collect()
            for name, run in found:
                start = time.perf_counter()
                run()
                took, key = time.perf_counter() - start, (name, len(graph.nodes))
                best[key] = min(best.get(key, took), took)
    table: dict[str, list[tuple[int, float]]] = {}
    for (name, ops), seconds in best.items():
        table.setdefault(name, []).append((ops, seconds))
    return table


def exponent(points: Sequence[tuple[int, float]]) -> float:
    """The slope of a straight line through log(size), log(cost)."""
    x, y = np.log(np.array(points, float)).T
    return float(np.polyfit(x, y, 1)[0])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--collector", action="store_true", help="leave Python's collector on")
    args = parser.parse_args()
    if not args.collector:
        gc.disable()  # as timeit does
    table = measure([int(s) for s in args.sizes.split(",")], args.repeat)
    failed = False
    print("milliseconds".ljust(24) + "".join(f"{n:>10}" for n, _ in table["print"]) + "  exponent")
    for name, points in table.items():
        slope = exponent(points)
        above = slope > LIMIT and points[-1][1] >= MEASURABLE
        failed |= above
        row = "".join(f"{1e3 * seconds:10.1f}" for _, seconds in points)
        print(f"{name:<24}{row}{slope:10.2f}{' > ' + str(LIMIT) if above else ''}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
