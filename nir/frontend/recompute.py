"""`checkpoint`: what a function keeps for its gradient is computed again in the backward."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable
from typing import Any

from nir.frontend import lazy
from nir.frontend.lazy import Cell, Record, resolve
from nir.ir.op import Value
from nir.ops.vjp import Segment

_numbers = itertools.count(1)


def checkpoint(fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn``, of whose intermediate results the backward keeps none: it runs ``fn`` again.

    For memory at the price of time: only what fn reads and returns lives from the forward to the
    backward. Results and gradients are those of ``fn`` to the bit; random numbers are the same
    ones, and state that fn changes (statistics, a generator) changes once. A checkpoint inside of
    another is part of that one. It works wherever gradients are taken: in eager code, under `jit`,
    in `grad` and in the bodies of loops.

    >>> import nir
    >>> block = nir.checkpoint(lambda x: (x.exp() + 1).log())
    >>> nir.grad(lambda x: block(x).sum())(nir.zeros(2)).tolist()
    [0.5, 0.5]
    """

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        if lazy.segment() or not lazy.grad_enabled():
            return fn(*args, **kwargs)
        with lazy.new_segment(next(_numbers)):
            return fn(*args, **kwargs)

    return call


def segments_of(records: Iterable[Record], cells: dict[Value, Cell]) -> dict[int, Segment]:
    """What a backward through ``records`` computes again; puts the cells read into ``cells``."""
    ends: dict[int, list[Record]] = {}
    for r in records:
        if r.op.segment:
            ends.setdefault(r.op.segment, []).append(r)
    return {number: _segment(number, own, cells) for number, own in ends.items()}


def _segment(number: int, ends: Iterable[Record], cells: dict[Value, Cell]) -> Segment:
    """All records of a segment that ``ends`` need: gradients do not flow through each of them."""
    order: list[Record] = []
    names: dict[Value, Value] = {}
    seen: set[int] = set()
    stack = [(r, False) for r in ends]
    while stack:
        r, ready = stack.pop()
        if ready:
            order.append(r)
            continue
        if id(r) in seen:
            continue
        seen.add(id(r))
        stack.append((r, True))
        for c in (*r.args, *r.cells()):
            cells[c.value] = c
        for c in r.args:
            source = resolve(c)
            behind = source.record
            if behind is None or behind.op.segment != number:
                continue
            if source is not c:
                names[c.value] = source.value
            stack.append((behind, False))
    return Segment([r.op for r in order], names)
