"""Random graphs through every pass: the reference interpreter judges each step and the plan."""

from __future__ import annotations

import pytest
from fuzz import Arrays, check, generate

from nir.frozen import replace
from nir.ir.graph import Graph
from nir.ir.verify import verify
from nir.passes.pipeline import run_pipeline
from nir.targets import cpu

CHUNK = 100
# Their executor form comes with a later issue.
NOT_YET = frozenset({"scan", "cond"})
TARGET = cpu.target("avx512")
# With a limit that nothing keeps to: values are computed again as far as that helps.
TIGHT = replace(TARGET, memory=1)


def check_passes(graph: Graph, inputs: Arrays) -> None:
    """Every pass keeps the meaning of the graph, and the plan keeps every value."""
    verify(run_pipeline(graph, TARGET, None, inputs))


def check_tight(graph: Graph, inputs: Arrays) -> None:
    """The same where memory is short."""
    verify(run_pipeline(graph, TIGHT, None, inputs))


@pytest.mark.parametrize("first", range(0, 2000, CHUNK))
def test_passes_keep_the_meaning_of_random_graphs(
    first: int, request: pytest.FixtureRequest
) -> None:
    count = request.config.getoption("--fuzz-graphs")
    if first >= count:
        pytest.skip(f"--fuzz-graphs={count}")
    for seed in range(first, min(first + CHUNK, count)):
        case = generate(seed, without=NOT_YET)
        try:
            check(
                case.graph, case.inputs, {"passes": check_tight if seed % 3 == 0 else check_passes}
            )
        except Exception as error:
            pytest.fail(f"seed {seed}: {type(error).__name__}: {error}")
