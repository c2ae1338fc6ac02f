"""Memory as a plan lays it out, for the interpreter: it finds plans that destroy values.

All memory starts poisoned (every byte 0xFF: nan, -1). Each 64-byte block remembers whose bytes it
holds, so a value that was overwritten before it is read is named together with its overwriter. A
result that shares bytes with an operand of the same op is written in two halves, with the operands
read again in between, in both orders: only a true reuse, element by element or row by row, survives
that. Of rows that take several passes (`Op.passes`), halves of the columns are written pass by pass
too. Results that a kernel writes early (`Op.early_results`) are poisoned before operands are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from nir.errors import VerifyError
from nir.frozen import Frozen
from nir.ir.bind import concrete
from nir.ir.dim import value
from nir.ir.graph import Graph, Placement, location_text
from nir.ir.op import Op, Value

_BLOCK = 64
_POISON = 0xFF


def align(offset: int) -> int:
    """``offset`` rounded up to where the executor puts it."""
    return -(-offset // _BLOCK) * _BLOCK


class _Place(Frozen):
    """Bytes start..stop of ``memory``; ``owner`` says whose value lies in each block of it."""

    memory: np.ndarray
    owner: np.ndarray
    start: int
    stop: int

    def blocks(self) -> np.ndarray:
        return self.owner[self.start // _BLOCK : -(-self.stop // _BLOCK)]

    def meets(self, other: _Place) -> bool:
        if self.memory is not other.memory:
            return False
        return self.start < other.stop and other.start < self.stop


class Arena:
    """The memory of one run of a planned graph."""

    def __init__(
        self, graph: Graph, inputs: Sequence[np.ndarray], sizes: Mapping[str, int]
    ) -> None:
        if graph.plan is None:
            raise VerifyError(f"@{graph.name} has no memory plan")
        self._graph, self._sizes = graph, sizes
        self._blocks: dict[Op, _Place] = {}
        # Numbers of values whose bytes a value shares unchanged: a view has its base's content.
        self._content: dict[Value, int] = {}
        self._places: dict[Value, _Place] = {}
        arena = self._allocate(align(value(graph.plan.arena, sizes)))
        for i, (offset, size) in graph.plan.blocks.items():
            start = align(value(offset, sizes))
            stop = start + value(size, sizes)
            self._blocks[graph.nodes[i]] = _Place(arena.memory, arena.owner, start, stop)
        donated = {out: source for source, out in graph.plan.donations}
        for v, x in zip(graph.inputs, inputs, strict=True):
            self._place(v, self._allocate(self._nbytes(v)), 0)
            self._store(v, x)
        outputs = [
            self._places[graph.inputs[donated[k]]] if k in donated
            else self._allocate(self._nbytes(v))
            for k, v in enumerate(graph.outputs)
        ]  # fmt: skip
        for op in graph.nodes:
            for v in op.results:
                match graph.plan.placements.get(graph.number[v]):
                    case Placement("arena", offset):
                        self._place(v, arena, align(value(offset, sizes)))
                    case Placement("output", offset, of):
                        self._place(v, outputs[of], value(offset, sizes))
                    case Placement(_, offset, of):
                        base = self._places[graph.values[of]]
                        self._place(v, base, base.start + value(offset, sizes))
                    case None:  # a constant has its own storage
                        self._place(v, self._allocate(self._nbytes(v)), 0)

    # ---- layout --------------------------------------------------------------------------------

    def _nbytes(self, v: Value) -> int:
        # The interpreter stores packed values in their logical form, which is no larger.
        return value(v.type.nbytes, self._sizes)

    def _allocate(self, nbytes: int) -> _Place:
        memory = np.full(align(nbytes), _POISON, np.uint8)
        return _Place(memory, np.full(len(memory) // _BLOCK, -1, np.int64), 0, len(memory))

    def _place(self, v: Value, inside: _Place, start: int) -> None:
        stop = start + self._nbytes(v)
        if stop > len(inside.memory):
            self._fail(v, f"its place ends at byte {stop} of {len(inside.memory)}")
        self._places[v] = _Place(inside.memory, inside.owner, start, stop)

    # ---- access --------------------------------------------------------------------------------

    def _store(self, v: Value, array: np.ndarray) -> None:
        place = self._places[v]
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        target = place.memory[place.start : place.start + data.size]
        blocks = place.blocks()
        # Writing the same bytes again, as a view does, leaves the content with its owner.
        whole = blocks.size and blocks[0] >= 0 and (blocks == blocks[0]).all()
        if whole and np.array_equal(target, data):
            self._content[v] = int(blocks[0])
            return
        target[...] = data
        self._content[v] = self._graph.number[v]
        blocks[...] = self._content[v]

    def _load(self, v: Value) -> np.ndarray:
        """What lies in ``v``'s place, whoever wrote it."""
        place = self._places[v]
        shape, dtype = concrete(v.type, self._sizes), v.type.dtype.numpy
        count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        return place.memory[place.start : place.start + count].copy().view(dtype).reshape(shape)

    def _checked(self, v: Value, reader: str, line: str) -> np.ndarray:
        blocks = self._places[v].blocks()
        lost = blocks[blocks != self._content[v]]
        if lost.size:
            by = self._graph.values[int(lost[0])]
            raise VerifyError(
                f"{self._name(v)} is overwritten by {self._name(by)} before {reader} reads it",
                line or None,
            )
        return self._load(v)

    def read(self, op: Op) -> list[np.ndarray]:
        """The operands of ``op``; VerifyError names one that another value has overwritten.

        An op with regions overwrites its block before it has read them.
        """
        if (block := self._blocks.get(op)) is not None:
            block.memory[block.start : block.stop] = _POISON
            block.blocks()[...] = self._graph.number[op.results[0]] if op.results else -1
        line = location_text(op.locs)
        return [self._checked(v, op.name, line) for v in op.operands]

    def read_torn(self, op: Op) -> list[np.ndarray]:
        """The operands of ``op`` as they are while its results are being written."""
        return [self._load(v) for v in op.operands]

    def write(
        self,
        op: Op,
        results: Sequence[np.ndarray],
        again: Callable[[int], Sequence[np.ndarray]],
    ) -> None:
        """Store the results of ``op``; ``again(n)`` computes them from `read_torn` from pass n."""
        shared = [
            (x, r)
            for r in op.results
            for x in dict.fromkeys(op.operands)
            if self._places[x].meets(self._places[r]) and not self._is_view(x, r)
        ]
        if shared:
            self._check_in_place(op, results, again, shared)
        for i, r in enumerate(op.results):
            for other in op.results[:i]:
                if self._places[r].meets(self._places[other]):
                    self._fail(r, f"it overlaps {self._name(other)}, a result of the same op")
        for v, array in zip(op.results, results, strict=True):
            self._store(v, array)

    def _is_view(self, x: Value, r: Value) -> bool:
        place = self._graph.plan.placements.get(self._graph.number[r])  # type: ignore[union-attr]
        return place is not None and place.kind == "alias" and self._same_bytes(x, r)

    def _same_bytes(self, x: Value, r: Value) -> bool:
        a, b = self._places[x], self._places[r]
        return (a.start, a.stop) == (b.start, b.stop)

    def _check_in_place(
        self,
        op: Op,
        results: Sequence[np.ndarray],
        again: Callable[[int], Sequence[np.ndarray]],
        shared: Sequence[tuple[Value, Value]],
    ) -> None:
        """Write parts of the results, and see that the others still come out the same."""
        places = [self._places[v] for v in (*op.operands, *op.results)]
        before = [p.memory[p.start : p.stop].copy() for p in places]
        rows = [_as_rows(r, op.row_axes()) for r in results]
        poison = [np.full_like(data, _POISON) for data in rows]
        early = [_ALL if v in op.early_results() else _NONE for v in op.results]
        trials = [(poison, early, [_ALL] * len(rows), 0)]
        trials += [(rows, *parts) for parts in _halves(op, rows)]
        for contents, written, wanted, start in trials:
            for p, data, part in zip(places[len(op.operands) :], contents, written, strict=True):
                p.memory[p.start : p.start + data.size].reshape(data.shape)[part] = data[part]
            torn = [_as_rows(t, op.row_axes()) for t in again(start)]
            for p, saved in zip(places, before, strict=True):
                p.memory[p.start : p.stop] = saved
            for data, t, part in zip(rows, torn, wanted, strict=True):
                if not np.array_equal(data[part], t[part]):
                    x, y = shared[0]
                    self._fail(
                        y, f"it is written over {self._name(x)}, which {op.name} still reads"
                    )

    def outputs(self) -> list[np.ndarray]:
        """The outputs; VerifyError names one that another value has overwritten."""
        return [self._checked(v, "the caller", self._line(v)) for v in self._graph.outputs]

    # ---- messages ------------------------------------------------------------------------------

    def _name(self, v: Value) -> str:
        op = self._graph.producer.get(v)
        name = f"%{self._graph.names[v]}"
        return f"{name} ({op.name} at {location_text(op.locs)})" if op else f"input {name}"

    def _line(self, v: Value) -> str:
        op = self._graph.producer.get(v)
        return location_text(op.locs) if op else ""

    def _fail(self, v: Value, what: str) -> None:
        raise VerifyError(f"memory plan: {self._name(v)}: {what}", self._line(v) or None)


# ---- parts of results --------------------------------------------------------------------------

# Rows and bytes of each row of a result.
_Part = tuple[slice, slice]
_ALL: _Part = (slice(None), slice(None))
_NONE: _Part = (slice(0), slice(None))


def _as_rows(array: np.ndarray, axes: int | None) -> np.ndarray:
    """The bytes of an array by rows, as `Op.row_axes` says what a row is."""
    rows = array.size if axes is None else int(np.prod(array.shape[:axes], dtype=np.int64))
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return data.reshape(rows, data.size // max(rows, 1))


def _halves(op: Op, rows: Sequence[np.ndarray]) -> Iterator[tuple[list[_Part], list[_Part], int]]:
    """(parts written, parts that must not suffer from it, the first pass that follows)."""
    middle = [len(data) // 2 for data in rows]
    upper = [(slice(k), slice(None)) for k in middle]
    lower = [(slice(k, None), slice(None)) for k in middle]
    yield upper, lower, 0
    yield lower, upper, 0
    if op.row_axes() is None:
        return
    sizes = [v.type.dtype.numpy.itemsize for v in op.results]
    middle = [data.shape[1] // size // 2 * size for data, size in zip(rows, sizes, strict=True)]
    left = [(slice(None), slice(k)) for k in middle]
    right = [(slice(None), slice(k, None)) for k in middle]
    passes = op.passes()
    for n in sorted(set(passes)):
        for half, rest in ((left, right), (right, left)):
            # A block of columns is read before it is written; what is reduced then is known later.
            written = [
                _ALL if p < n else h if p == n else _NONE for p, h in zip(passes, half, strict=True)
            ]
            wanted = [h if p == n else _NONE for p, h in zip(passes, rest, strict=True)]
            yield written, wanted, n
        done = [_ALL if p <= n else _NONE for p in passes]
        yield done, [_NONE if p <= n else _ALL for p in passes], n + 1
