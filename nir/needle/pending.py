"""What has been recorded and not yet run, and when it runs.

Values of the face are nir Tensors that nir's front end records. They run when somebody looks at
one, when an optimiser has stepped, and at the latest at the next `backward`, always together with
the updates of parameters and running statistics made since and with what models returned. So a
training loop runs one program a step, and its structure is the same in each.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable

import nir
from nir.frontend import flush, lazy
from nir.frontend.lazy import Cell

_updates: weakref.WeakSet[Cell] = weakref.WeakSet()  # new values of leaves
_statistics: weakref.WeakSet[Cell] = weakref.WeakSet()  # made by a forward pass
_outputs: weakref.WeakSet[Cell] = weakref.WeakSet()  # results of models
_last_backward = 0


def add_update(t: nir.Tensor, statistic: bool = False) -> None:
    """Let ``t``, the new value of a leaf, run with whatever runs next."""
    if lazy.tracing() is None and t._cell.is_pending:
        (_statistics if statistic else _updates).add(lazy.resolve(t._cell))


def add_output(t: nir.Tensor) -> None:
    """Let ``t``, which a model returned, run with whatever runs next: users look at these."""
    if lazy.tracing() is None and t._cell.is_pending:
        _outputs.add(lazy.resolve(t._cell))


def run(tensors: Iterable[nir.Tensor]) -> None:
    """Store the values of ``tensors``, and all updates. While a function is traced: nothing."""
    cells = [t._cell for t in tensors]
    if lazy.tracing() is None and any(c.is_pending for c in cells):
        _run(cells, [*_updates, *_statistics, *_outputs])


def run_updates() -> None:
    """Run all updates: what an optimiser does after its step."""
    if lazy.tracing() is None:
        _run([], [*_updates, *_statistics, *_outputs])


def _run(cells: list[Cell], updates: list[Cell]) -> None:
    updates.sort(key=lambda c: c.born)  # one order, so that the programs of all steps are one
    _updates.difference_update(updates)
    _statistics.difference_update(updates)
    _outputs.difference_update(updates)
    flush.realize([*cells, *updates])


def before_backward() -> None:
    """Run the updates of earlier steps, so that loops that never look stay bounded.

    Statistics of the step that is under way wait for its end.
    """
    if lazy.tracing() is None and (_updates or _statistics):
        older = [c for c in (*_statistics, *_outputs) if c.born < _last_backward]
        _run([], [*_updates, *older])


def after_backward(loss: nir.Tensor) -> None:
    """Note a `backward`; the value of ``loss`` is computed along with what runs next."""
    global _last_backward
    if lazy.tracing() is None:
        flush.add_loss(loss._cell)
        _last_backward = lazy.fresh(loss.type).id
