"""Random graphs: every check on each, every op often enough, and failures that shrink."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fuzz import Case, check, failure, generate, shrink, walk, write_test
from fuzz_graphs import FUZZED

from nir.ir.graph import Builder, Graph
from nir.ir.interp import run
from nir.ir.types import TensorType, f32
from nir.ops import Add, Exp, Sqrt, Tanh

CHUNK = 100


def _chunk(first: int, count: int) -> list[Case]:
    return [generate(seed) for seed in range(first, min(first + CHUNK, count))]


# Filled by the chunks: what the coverage test counts.
_seen: Counter[str] = Counter()
_graphs = 0


@pytest.mark.parametrize("first", range(0, 2000, CHUNK))
def test_random_graphs(first: int, request: pytest.FixtureRequest) -> None:
    global _graphs
    count = request.config.getoption("--fuzz-graphs")
    if first >= count:
        pytest.skip(f"--fuzz-graphs={count}")
    for case in _chunk(first, count):
        _graphs += 1
        _seen.update({op.name for op in walk(case.graph)})
        try:
            check(case.graph, case.inputs)
        except Exception as error:
            pytest.fail(
                f"seed {case.seed}: {type(error).__name__}: {error}\n"
                f"shrink it with: python tests/fuzz.py {case.seed} --write"
            )


def test_every_op_occurs_often_and_so_do_regions_and_gradients() -> None:
    if _graphs < 2000:
        pytest.skip("counted over 2000 graphs")
    rare = {name: _seen[name] for name in FUZZED if _seen[name] < 20}
    assert not rare, f"ops in fewer than 20 of {_graphs} graphs"
    cases = _chunk(0, CHUNK)
    gradients = sum("_grad" in case.graph.name for case in cases)
    symbolic = sum(any(not v.type.is_static for v in case.graph.outputs) for case in cases)
    assert gradients >= 15 and symbolic >= 50
    assert sum(case.tame for case in cases) >= 35


def test_generation_is_deterministic() -> None:
    for seed in (3, 4):
        one, two = generate(seed), generate(seed)
        assert one.graph == two.graph and one.tame == two.tame
        assert [x.tobytes() for x in one.inputs] == [x.tobytes() for x in two.inputs]


def test_tame_graphs_have_moderate_values() -> None:
    for seed in range(0, 60, 2):
        case = generate(seed)
        for y in run(case.graph, case.inputs) if case.tame else ():
            assert np.isfinite(y.astype(np.float64)).all()


# ---- shrinking ---------------------------------------------------------------------------------


def _fails_on_sqrt(graph: Graph, inputs: list[np.ndarray]) -> str | None:
    """A stand-in for a bug: any sqrt of a negative number."""
    found: list[str] = []

    def see(op: object, xs: object, ys: object) -> None:
        if isinstance(op, Sqrt) and np.isnan(ys[0]).any():  # type: ignore[index]
            found.append("nan")

    run(graph, inputs, trace=see)
    return found[0] if found else None


def test_shrinking_leaves_the_culprit_alone() -> None:
    b = Builder()
    values = [b.input(TensorType(f32, (4,)), f"x{i}") for i in range(3)]
    for i in range(30):
        op = (Tanh, Exp)[i % 2](values[-1]) if i % 3 else Add(values[-1], values[-2])
        values += b.emit(op)
    values += b.emit(Sqrt(values[1]))
    values += b.emit(Add(values[-1], values[5]))
    graph = b.build(values[-2:])
    inputs = [np.linspace(-1, 1, 4, dtype=np.float32)] * 3
    small, arrays = shrink(graph, inputs, _fails_on_sqrt)
    assert [op.name for op in small.nodes] == ["sqrt"]
    assert len(arrays) == len(small.inputs) == 1
    assert _fails_on_sqrt(small, arrays) == "nan"


def test_random_failures_shrink_to_few_ops() -> None:
    shrunk = 0
    for seed in range(1, 400, 2):
        case = generate(seed)
        if _fails_on_sqrt(case.graph, case.inputs):
            small, _ = shrink(case.graph, case.inputs, _fails_on_sqrt)
            assert len(small.nodes) == 1
            shrunk += 1
            if shrunk == 3:
                return
    pytest.fail("no graph of these seeds takes the root of a negative number")


def test_a_failure_becomes_a_test_module(tmp_path: Path) -> None:
    for seed in (1, 8, 77):
        case = generate(seed)
        path = tmp_path / f"test_found_{seed}.py"
        write_test(path, case, "it was\nwrong")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        getattr(module, f"test_seed_{seed}")()
        assert failure(case.graph, case.inputs) is None
        for a, b in zip(module.INPUTS, case.inputs, strict=True):
            assert (a.dtype, a.tobytes()) == (b.dtype, b.tobytes())
