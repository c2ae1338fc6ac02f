"""What runs together.

Values of the face run when somebody looks at one, when an optimiser has stepped, and at the latest
at the next `backward`, always together with the updates of parameters and running statistics made
since and with what models returned. So a training loop runs one program a step, and its structure
is the same in each.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable

from nir.frontend import lazy
from nir.needle import deferred
from nir.needle.deferred import Ref

_updates: weakref.WeakSet[Ref] = weakref.WeakSet()  # new values of leaves
_others: weakref.WeakSet[Ref] = weakref.WeakSet()  # running statistics, results, losses
_last_backward = 0


def add_update(ref: Ref) -> None:
    """Let ``ref``, the new value of a leaf, run with whatever runs next."""
    if ref.data is None and lazy.tracing() is None:
        _updates.add(ref)


def add_result(ref: Ref) -> None:
    """Let ``ref``, which a forward pass made and users look at, run with whatever runs next."""
    if ref.data is None and lazy.tracing() is None:
        _others.add(ref)


def run(refs: Iterable[Ref]) -> None:
    """Store the values of ``refs``, and all that waits. While a function is traced: nothing."""
    refs = [r for r in refs if r.data is None]
    if refs and lazy.tracing() is None:
        _run([*_updates, *_others], refs)


def run_updates() -> None:
    """Run all that waits: what an optimiser does after its step."""
    if lazy.tracing() is None:
        _run([*_updates, *_others], [])


def _run(waiting: list[Ref], refs: list[Ref]) -> None:
    waiting.sort(key=lambda r: r.number)  # one order, so that the programs of all steps are one
    _updates.difference_update(waiting)
    _others.difference_update(waiting)
    deferred.run([*waiting, *refs])


def before_backward() -> None:
    """Run the updates of earlier steps, so that loops that never look stay bounded.

    What the forward pass of the step under way has made waits for the end of the step.
    """
    if lazy.tracing() is None and (_updates or _others):
        _run([*_updates, *(r for r in _others if r.number < _last_backward)], [])


def after_backward(loss: Ref) -> None:
    """Note a `backward`; the value of ``loss`` is computed along with what runs next."""
    global _last_backward
    add_result(loss)
    _last_backward = Ref(loss.type).number
