"""Checks that random graphs go through, and a shrinker for the graphs that fail.

    python tests/fuzz.py 0:2000          check the graphs of these seeds
    python tests/fuzz.py 17 --write      shrink a failure of seed 17 and write a test for it

`check` runs every entry of `CHECKS`; further ones (passes, backends) are added there, or given to
it. The graphs come from fuzz_graphs.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from fuzz_graphs import Arrays, Case, generate, walk

from nir.errors import NirError
from nir.ir.graph import Graph
from nir.ir.interp import run
from nir.ir.op import Op, Value
from nir.ir.text import parse_graph, print_graph
from nir.ir.verify import verify
from nir.ops import HostCall

__all__ = ["Arrays", "Case", "check", "failure", "generate", "shrink", "walk", "write_test"]

Check = Callable[[Graph, Arrays], None]


# ---- checks ------------------------------------------------------------------------------------


def check_verify(graph: Graph, inputs: Arrays) -> None:
    verify(graph)


def check_text(graph: Graph, inputs: Arrays) -> None:
    arrays: dict[str, np.ndarray] = {}
    text = print_graph(graph, arrays)
    again = parse_graph(text, arrays)
    verify(again)
    assert print_graph(again) == text, "the text prints otherwise when it is read again"
    if not any(isinstance(op, HostCall) for op in walk(graph)):
        assert again == graph, "the text parses to another graph"
        _assert_equal(run(graph, inputs), run(again, inputs))


def check_interp(graph: Graph, inputs: Arrays) -> None:
    kept = [x.copy() for x in inputs]
    _assert_equal(run(graph, inputs), run(graph, inputs))
    _assert_equal(inputs, kept)


def _assert_equal(left: Arrays, right: Arrays) -> None:
    for k, (a, b) in enumerate(zip(left, right, strict=True)):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), f"output {k} has another type"
        assert np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes(), (
            f"output {k} differs"
        )


CHECKS: dict[str, Check] = {"verify": check_verify, "text": check_text, "interp": check_interp}


def check(graph: Graph, inputs: Arrays, checks: Mapping[str, Check] | None = None) -> None:
    """Run every check; an exception is a finding."""
    for run_check in (CHECKS if checks is None else checks).values():
        run_check(graph, inputs)


# ---- shrinking ---------------------------------------------------------------------------------


def shrink(
    graph: Graph, inputs: Arrays, fails: Callable[[Graph, Arrays], str | None]
) -> tuple[Graph, Arrays]:
    """A smaller graph with inputs for which ``fails`` still says the same.

    ``fails`` returns None, or a word for the failure (the type of the exception, say). Steps: fewer
    outputs, ops replaced by inputs that hold their results, ops replaced by an operand.
    """
    reason = fails(graph, inputs)
    assert reason is not None, "there is nothing to shrink: the graph does not fail"
    live = _live(graph, inputs)
    if _says(fails, *live) == reason:
        graph, inputs = live
    else:  # the fault lies in an op that no output needs: let every unread result be an output
        unread = [v for op in graph.nodes for v in op.results if not graph.users[v]]
        rest = [v for v in unread if v not in graph.outputs]
        graph = graph.with_(outputs=(*graph.outputs, *rest), plan=None)
    while True:
        for smaller in _smaller(graph, inputs):
            if _cost(smaller[0]) < _cost(graph) and _says(fails, *smaller) == reason:
                graph, inputs = smaller
                break
        else:
            return graph, inputs


def _cost(graph: Graph) -> tuple[int, int, int]:
    return len(graph.nodes), len(graph.outputs), len(graph.inputs)


def _says(fails: Callable[[Graph, Arrays], str | None], graph: Graph, inputs: Arrays) -> str | None:
    try:
        verify(graph)
    except NirError:
        return None
    return fails(graph, inputs)


def _smaller(graph: Graph, inputs: Arrays) -> Iterator[tuple[Graph, Arrays]]:
    for v in graph.outputs if len(graph.outputs) > 1 else ():
        yield _live(graph.with_(outputs=(v,), donate=(), plan=None), inputs)
    known: dict[Value, np.ndarray] = {}
    try:
        run(graph, inputs, trace=lambda op, xs, ys: known.update(zip(op.results, ys, strict=True)))
    except NirError:
        known.clear()
    size = len(graph.nodes)
    while size:
        for i in range(0, len(graph.nodes), size):
            chunk = graph.nodes[i : i + size]
            if all(v in known for op in chunk for v in op.results):
                yield _cut(graph, inputs, chunk, known)
        size //= 2
    for op in graph.nodes:
        for r in op.results:
            for x in op.operands:
                if x.type == r.type:
                    yield _live(_renamed(graph, r, x), inputs)
    for op in graph.nodes:  # let an inner value be the only output
        for v in op.results:
            yield _live(graph.with_(outputs=(v,)), inputs)


def _renamed(graph: Graph, old: Value, new: Value) -> Graph:
    nodes = [op.map_operands(lambda v: new if v is old else v) for op in graph.nodes]
    outputs = [new if v is old else v for v in graph.outputs]
    return graph.with_(nodes=nodes, outputs=outputs)


def _cut(
    graph: Graph, inputs: Arrays, chunk: Sequence[Op], known: Mapping[Value, np.ndarray]
) -> tuple[Graph, Arrays]:
    """``graph`` without ``chunk``: its results become inputs."""
    results = [v for op in chunk for v in op.results]
    gone = set(chunk)
    names = [*graph.input_names, *(f"cut{v.id}" for v in results)]
    smaller = graph.with_(
        inputs=[*graph.inputs, *results],
        input_names=names,
        nodes=[op for op in graph.nodes if op not in gone],
    )
    return _live(smaller, [*inputs, *(known[v] for v in results)])


def _live(graph: Graph, inputs: Arrays) -> tuple[Graph, Arrays]:
    """``graph`` without the ops and inputs that no output needs."""
    needed = set(graph.outputs)
    nodes: list[Op] = []
    for op in reversed(graph.nodes):
        if needed & set(op.results):
            nodes.append(op)
            needed |= set(op.operands)
    kept = [i for i, v in enumerate(graph.inputs) if v in needed]
    # An input that alone determines the batch size must stay.
    if all(graph.inputs[i].type.is_static for i in kept):
        kept += [i for i, v in enumerate(graph.inputs) if not v.type.is_static][:1]
    smaller = graph.with_(
        inputs=[graph.inputs[i] for i in kept],
        input_names=[graph.input_names[i] for i in kept],
        nodes=nodes[::-1],
        donate=(),
        plan=None,
    )
    return smaller, [inputs[i] for i in kept]


_TEST = '''"""Found by fuzzing, seed {seed}: {reason}"""

import numpy as np
from fuzz import check
from numpy import inf, nan

from nir.ir.text import parse_graph

assert nan is not inf
TEXT = """{text}"""
ARRAYS = {{{arrays}}}
INPUTS = [{inputs}]


def test_seed_{seed}() -> None:
    check(parse_graph(TEXT, ARRAYS), INPUTS)
'''


def write_test(path: Path, case: Case, reason: str) -> None:
    """Write a test module that runs the checks on this graph and these inputs."""
    arrays: dict[str, np.ndarray] = {}
    text = print_graph(case.graph, arrays)
    path.write_text(
        _TEST.format(
            seed=case.seed,
            reason=reason.replace("\n", " ").replace('"', "'")[:80],
            text=text.replace("\\", "\\\\"),
            arrays=", ".join(f'"{k}": {_literal(a)}' for k, a in arrays.items()),
            inputs=", ".join(map(_literal, case.inputs)),
        )
    )


def _literal(a: np.ndarray) -> str:
    if a.dtype.name == "bfloat16":
        raise TypeError("numpy has no literal for bfloat16")
    shaped = f".reshape({a.shape})" if 0 in a.shape else ""
    return f"np.array({a.tolist()!r}, np.{a.dtype.name}){shaped}"


def failure(graph: Graph, inputs: Arrays) -> str | None:
    """The kind of the first exception that `check` raises."""
    try:
        check(graph, inputs)
    except Exception as error:
        return type(error).__name__
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("seeds", help="17 or 0:2000")
    parser.add_argument("--write", action="store_true", help="write a test for each failure")
    args = parser.parse_args(arguments)
    first, colon, last = args.seeds.partition(":")
    seeds = range(int(first), int(last) if colon else int(first) + 1)
    found = 0
    for seed in seeds:
        case = generate(seed)
        try:
            check(case.graph, case.inputs)
        except Exception as error:
            found += 1
            print(f"seed {seed}: {type(error).__name__}: {error}")
            graph, inputs = shrink(case.graph, case.inputs, failure)
            print(print_graph(graph))
            if args.write:
                path = Path(__file__).parent / f"test_found_{seed}.py"
                write_test(path, Case(seed, graph, inputs, case.tame), str(error))
                print(f"wrote {path}")
    print(f"{len(seeds)} graphs, {found} failures")
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
