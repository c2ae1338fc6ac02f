"""Tables of kernels beside their peers: ``python -m benchmarks.kernels --help``.

One file per table. It offers ``TITLE`` and ``CASES``; everything else (processes, rounds, roofs,
ratios) is `measure`'s. ``peers.py`` has what makes a step of a function and arrays.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Does the work once; the result is an array or a sequence of them, for comparison.
Step = Callable[[], Any]

_OWN = {"__main__", "measure", "peers", "report", "worker"}


@dataclass(frozen=True)
class Case:
    """The same work for nir and its peers.

    ``peers`` maps a peer's name to a function that imports it, makes the arrays and returns the
    step. ``flops`` counts what the work needs at least; ``bytes`` what must be read and written,
    for work that memory bounds: a table shows the share of the roof that the two allow. Results
    must agree within ``tolerance`` of the largest element.
    """

    name: str
    group: str
    peers: Mapping[str, Callable[[], Step]]
    flops: float = 0.0
    bytes: float = 0.0
    tolerance: float = 1e-4


def names() -> list[str]:
    """All tables, by file name."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in _OWN)


def load(table: str) -> tuple[str, Sequence[Case]]:
    """Title and cases of a table."""
    module = importlib.import_module(f"{__name__}.{table}")
    return module.TITLE, module.CASES
