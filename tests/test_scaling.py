"""Every stage is near-linear in the graph: calls are counted, not seconds, so this cannot flicker.

`python -m benchmarks.scaling` measures the time itself at 1k to 8k ops.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from benchmarks.scaling import LIMIT, exponent, stages, training_graph

SIZES = (300, 600, 1200)

# Built once: the stages of each size, with what they need.
_STAGES = [(size, dict(stages(training_graph(size)))) for size in SIZES]


def count_calls(run: Callable[[], object]) -> int:
    """Calls of Python and C functions while ``run`` runs."""
    count = 0

    def see(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(see)
    try:
        run()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("name", _STAGES[0][1])
def test_calls_grow_almost_linearly(name: str) -> None:
    points = [(size, count_calls(table[name])) for size, table in _STAGES]
    assert exponent(points) <= LIMIT, points


def test_the_count_sees_quadratic_work() -> None:
    def quadratic(n: int) -> Callable[[], object]:
        return lambda: [abs(i - j) for i in range(n) for j in range(n)]

    points = [(n, count_calls(quadratic(n))) for n in (20, 40, 80)]
    assert exponent(points) > 1.9
