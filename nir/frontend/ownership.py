"""Who else relies on a buffer: reference counts of cells and storages.

A buffer may be given to a run only if its Tensor alone holds it: no op recorded and not yet run,
no detached Tensor. (Views, of numpy or DLPack, are counted by the runtime.) Counts are compared
with those of a probe that is solely owned, since they include whoever does the counting.
"""

from __future__ import annotations

from collections.abc import Sequence
from sys import getrefcount
from typing import TYPE_CHECKING, Any

from nir.frontend.lazy import Cell
from nir.runtime import Storage

if TYPE_CHECKING:
    from nir.frontend.tensor import Tensor


class _Probe:
    """The outline of a Tensor, its cell and its storage."""

    __slots__ = ("_cell", "data")

    def __init__(self, depth: int) -> None:
        self._cell = self.data = None
        if depth == 0:
            self._cell = _Probe(1)
        elif depth == 1:
            self.data = _Probe(2)


def _counts(cells: list[Any], data: list[Any]) -> tuple[list[int], list[int]]:
    return list(map(getrefcount, cells)), list(map(getrefcount, data))


def holdings(tensors: Sequence[Any]) -> tuple[list[Cell], list[Storage | None], list[bool]]:
    """The cells of ``tensors``, their storages, and whether the Tensor alone holds both."""
    cells = [t._cell for t in tensors]
    data = [c.data for c in cells]
    counts = zip(*_counts(cells, data), strict=True)
    return cells, data, list(map(_SOLE.__eq__, counts))


def _sole_counts() -> tuple[int, int]:
    """The counts of a cell and a storage with one owner, taken as in `holdings`."""
    tensors: list[Any] = [_Probe(0)]
    cells = [t._cell for t in tensors]
    data = [c.data for c in cells]
    (counts,) = zip(*_counts(cells, data), strict=True)
    return counts


_SOLE = _sole_counts()


def is_shared(t: Tensor) -> bool:
    """Whether ops not yet run, or other Tensors, rely on the buffer of ``t``."""
    return not holdings([t])[2][0]
