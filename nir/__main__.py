"""The command line: read, run, optimise and compare graphs in files.

    python -m nir print model.nir
    python -m nir run   model.nir --inputs x.npz --output y.npz
    python -m nir run   model.nir --random 0 --size B=8
    python -m nir opt   model.nir --passes simplify,cse -o smaller.nir
    python -m nir diff  before.nir after.nir
    python -m nir flow  model.nir -o model.graphml
    python -m nir profile model.nir --size B=128 --trace trace.json

Exit status: 0 done, 1 the graphs of `diff` differ, 2 an error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nir import flags
from nir.compile import compile_graph
from nir.errors import NirError
from nir.ir.compare import compare
from nir.ir.diff import diff
from nir.ir.dump import Dumper, op_counts
from nir.ir.graph import Graph
from nir.ir.interp import random_inputs, run
from nir.ir.op import Value
from nir.ir.program import Target
from nir.ir.text import print_graph, read_graph, write_graph
from nir.ir.to_networkx import to_networkx
from nir.ir.types import dtype
from nir.ir.verify import verify
from nir.passes.pipeline import PASSES, run_pipeline
from nir.runtime import Executable, Roofs, load
from nir.targets import cpu


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = _parser().parse_args(arguments)
    try:
        return int(args.command(args))
    except (NirError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nir",
        description="Read, run, optimise and compare graphs in .nir files.",
        epilog="Environment: " + "; ".join(f"{f.name} ({f.value})" for f in flags.FLAGS),
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    show = commands.add_parser("print", help="check a graph and print it in canonical form")
    show.add_argument("file")
    show.add_argument("--counts", action="store_true", help="print how often each op occurs")
    show.set_defaults(command=_print)

    execute = commands.add_parser("run", help="run a graph with the reference interpreter")
    execute.add_argument("file")
    source = execute.add_mutually_exclusive_group()
    source.add_argument("--inputs", metavar="X.npz", help="arrays by input name")
    source.add_argument("--random", type=int, metavar="SEED", help="random inputs from this seed")
    execute.add_argument(
        "--size", action="append", default=[], metavar="B=8", help="the value of a symbolic size"
    )
    execute.add_argument("--output", metavar="Y.npz", help="write out0, out1, ... here")
    execute.add_argument(
        "--arena", action="store_true", help="keep values where the memory plan puts them"
    )
    execute.set_defaults(command=_run)

    optimise = commands.add_parser("opt", help="apply passes and print the graph")
    optimise.add_argument("file")
    optimise.add_argument(
        "--passes", metavar="A,B", help=f"passes in order, of: {', '.join(PASSES)}; default: all"
    )
    optimise.add_argument("--isa", choices=flags.ISA_LEVELS, help="the ISA level to lower for")
    optimise.add_argument("-o", "--output", metavar="OUT.nir", help="write the graph here")
    optimise.set_defaults(command=_opt)

    compared = commands.add_parser("diff", help="structural difference of two graphs")
    compared.add_argument("first")
    compared.add_argument("second")
    compared.add_argument("--limit", type=int, default=40, help="print at most so many lines")
    compared.set_defaults(command=_diff)

    measured = commands.add_parser(
        "profile", help="time a graph or a package (.nirp) by line, call or kernel"
    )
    measured.add_argument("file")
    measured.add_argument(
        "--size", action="append", default=[], metavar="B=8", help="the value of a symbolic size"
    )
    measured.add_argument("--inputs", metavar="X.npz", help="arrays by input name; else random")
    measured.add_argument("--runs", type=int, default=5, help="measured runs")
    measured.add_argument("--by", choices=("line", "call", "kernel"), default="line")
    measured.add_argument("--limit", type=int, default=40, help="print at most so many rows")
    measured.add_argument(
        "--roofs", metavar="GFLOPS,GBPS", help="the machine's, for the share that calls reach"
    )
    measured.add_argument("--trace", metavar="OUT.json", help="write a Chrome trace")
    measured.set_defaults(command=_profile)

    flow = commands.add_parser("flow", help="size and longest chain of the data flow")
    flow.add_argument("file")
    flow.add_argument("-o", "--output", metavar="OUT.graphml", help="write it for graph viewers")
    flow.set_defaults(command=_flow)
    return parser


def _print(args: argparse.Namespace) -> int:
    graph = verify(read_graph(args.file))
    print(op_counts(graph) if args.counts else print_graph(graph), end="\n" if args.counts else "")
    return 0


def _run(args: argparse.Namespace) -> int:
    graph = verify(read_graph(args.file))
    sizes = dict(_size(text) for text in args.size)
    if args.inputs:
        inputs = _load_inputs(graph, args.inputs)
    elif args.random is not None or not graph.inputs:
        inputs = random_inputs(graph, args.random or 0, sizes)
    else:
        raise NirError(f"run: expected --inputs or --random for {len(graph.inputs)} inputs")
    outputs = run(graph, inputs, sizes, arena=args.arena)
    for k, (v, y) in enumerate(zip(graph.outputs, outputs, strict=True)):
        print(f"out{k} %{graph.names[v]}: {dtype(y.dtype)}{list(y.shape)}")
        shown = y.astype(np.float64) if dtype(y.dtype).is_float else y
        print(np.array2string(shown, precision=6, threshold=64, edgeitems=3))
    if args.output:
        # .npy files have no bfloat16: its bits are stored.
        arrays: dict[str, Any] = {
            f"out{k}": y.view(np.uint16) if dtype(y.dtype).name == "bf16" else y
            for k, y in enumerate(outputs)
        }
        np.savez(args.output, **arrays)
    return 0


def _size(text: str) -> tuple[str, int]:
    name, equals, number = text.partition("=")
    if not (equals and name.isidentifier() and number.isdecimal()):
        raise NirError(f"--size: expected NAME=NUMBER, got {text!r}")
    return name, int(number)


def _load_inputs(graph: Graph, path: str) -> list[np.ndarray]:
    with np.load(path) as arrays:
        missing = [name for name in graph.input_names if name not in arrays.files]
        if missing:
            raise NirError(
                f"{path}: expected arrays {', '.join(graph.input_names)}, "
                f"got {', '.join(arrays.files) or 'none'}"
            )
        found = [arrays[name] for name in graph.input_names]
    return [
        x.view(t.dtype.numpy) if t.dtype.name == "bf16" and x.dtype == np.uint16 else x
        for x, t in zip(found, graph.input_types, strict=True)
    ]


def _opt(args: argparse.Namespace) -> int:
    graph = verify(read_graph(args.file))
    target = cpu.target(args.isa)
    inputs = random_inputs(graph) if flags.verify() else None
    if args.passes is None:
        graph = run_pipeline(graph, target, Dumper.from_flags(graph.name), inputs)
    else:
        graph = _apply(graph, args.passes.split(","), target, inputs)
    verify(graph)
    if args.output:
        write_graph(Path(args.output), graph, header=op_counts(graph))
    else:
        print(print_graph(graph), end="")
    return 0


def _apply(
    graph: Graph, names: Sequence[str], target: Target, inputs: Sequence[np.ndarray] | None
) -> Graph:
    for name in names:
        if name not in PASSES:
            raise NirError(f"--passes: expected some of {', '.join(PASSES)}, got {name!r}")
    for name in names:
        before, graph = graph, PASSES[name](graph, target)
        difference = compare(before, graph, inputs) if inputs is not None else None
        if difference is not None:
            raise NirError(f"pass {name} changed a result: {difference}")
    return graph


def _diff(args: argparse.Namespace) -> int:
    lines = diff(read_graph(args.first), read_graph(args.second), args.limit)
    print("\n".join(lines) if lines else "equal")
    return 1 if lines else 0


def _flow(args: argparse.Namespace) -> int:
    import networkx

    flow = to_networkx(verify(read_graph(args.file)))
    chain = networkx.dag_longest_path(flow)
    reads = flow.number_of_edges()
    print(f"{flow.number_of_nodes()} nodes, {reads} edges, longest chain {len(chain)}:")
    for name in chain:
        node = flow.nodes[name]
        print(f"  {name} = {node['op']} : {node['type']}  @ {node['lines']}".rstrip(" @:"))
    if args.output:
        networkx.write_graphml(flow, args.output)
    return 0


def _profile(args: argparse.Namespace) -> int:
    sizes = dict(_size(text) for text in args.size)
    package = args.file.endswith(".nirp")
    executable = load(args.file) if package else compile_graph(verify(read_graph(args.file)))
    assert isinstance(executable, Executable)
    p = executable.program
    signature = Graph(p.name, [Value(i, t) for i, t in enumerate(p.inputs)], [], [], p.input_names)
    inputs = (
        _load_inputs(signature, args.inputs) if args.inputs else random_inputs(signature, 0, sizes)
    )
    roofs = None if args.roofs is None else _roofs(args.roofs)
    profile = executable.profile(inputs, args.runs, roofs)
    print(profile.text(args.by, args.limit))
    if args.trace:
        profile.trace(args.trace)
    return 0


def _roofs(text: str) -> Roofs:
    try:
        flops, moved = (float(x) * 1e9 for x in text.split(","))
        return Roofs(flops, moved)
    except ValueError:
        raise NirError(f"--roofs: expected GFLOPS,GBPS, got {text!r}") from None


if __name__ == "__main__":
    sys.exit(main())
