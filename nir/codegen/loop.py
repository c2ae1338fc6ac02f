"""The loop IR: one kernel as a nest of loops around scalar expressions.

Two shapes of nest cover every form of fused region:

    rows     for r in rows: stages over the columns, each storing and reducing; results of
             reductions and what follows from them are computed once per row
             (forms map, row, epilogue)
    columns  for r in chunks x outer columns: for each column: reduce over the rows of the chunk,
             then finish and store (form column)

Axes of the space are numbered: rows first, then the rows that a column kernel reduces, then outer
columns, then the inner columns, along which lanes run. Reductions have 16 lanes, ``unroll``
accumulators and one tree to join them on every ISA level, so they agree bit for bit.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Literal

from nir.codegen.nodes import Affine, Node
from nir.errors import CodegenError
from nir.frozen import Frozen, kept
from nir.ir.dim import Dim, Poly, Shape, prod

LANES = 16

# What a node depends on besides its operands' buffers.
ROW, LEAD, OUTER, INNER = 1, 2, 4, 8
# Primitives too dear to compute again in a later stage, in units of an addition.
_COST = {"div": 4, "sqrt": 4, "ldexp": 2, "rem": 8, "load": 0, "index": 0, "const": 0, "size": 0}
_DEAR = 6


class LoopBuffer(Frozen):
    """One entry of ptrs: operand or result ``index`` of the region, or an epilogue's accumulator.

    An accumulator's ``index`` names the result whose storage the heavy kernel writes to.
    """

    kind: Literal["operand", "accumulator", "result"]
    index: int
    dtype: str


class Store(Frozen):
    """``node`` goes to ``buffer``: one element for each row, or one for each point of the space."""

    buffer: int
    node: int
    per_row: bool = False


class Stage(Frozen):
    """One pass over the columns of a row.

    ``saves`` are (node, slot): kept in scratch for later stages; ``reloads`` are read back, from a
    slot or from the result that a store of an earlier stage wrote.
    """

    nodes: tuple[int, ...]
    stores: tuple[Store, ...]
    reduces: tuple[int, ...]
    saves: tuple[tuple[int, int], ...] = ()
    reloads: tuple[tuple[int, str, int], ...] = ()


class LoopKernel(Frozen):
    """A kernel's loops, and what the runtime must know to call it.

    ``buffers`` gives the order of ptrs, ``dims`` the sizes to pass. The kernel covers rows x cols;
    it may be called on any range of rows and, if ``col_grain`` is not 0, of columns. ``scratch`` is
    bytes for each thread, ``work`` the cost of the whole in bytes moved. ``streams`` are buffers
    that no cache will hold: where they are aligned and nothing reads them, stores pass by it.
    """

    form: str
    nodes: tuple[Node, ...]
    buffers: tuple[LoopBuffer, ...]
    stores: tuple[Store, ...]
    row_sizes: Shape
    lead_sizes: Shape
    outer_sizes: Shape
    width: Dim
    unroll: int
    row_unroll: int = 1
    chunk: int | None = None
    dims: tuple[Dim, ...] = ()
    rows: Dim = 1
    cols: Dim = 1
    row_grain: int = 1
    col_grain: int = 0
    work: Dim = 0
    streams: tuple[int, ...] = ()

    @property
    def inner(self) -> int:
        """The number of the inner column axis."""
        return len(self.row_sizes) + len(self.lead_sizes) + len(self.outer_sizes)

    @property
    def columns(self) -> Dim:
        """Elements of one row."""
        return prod(self.outer_sizes) * self.width

    @property
    def lead_rows(self) -> Dim:
        return prod(self.lead_sizes)

    @property
    def accumulator(self) -> int | None:
        """The result that the heavy kernel writes and this epilogue finishes, if it is one."""
        found = [b.index for b in self.buffers if b.kind == "accumulator"]
        return found[0] if found else None

    @kept
    def text_key(self) -> Hashable:
        """What the printed text depends on: equal keys print equally, whatever the sizes are."""
        # The number of rows is an argument, unless chunks lie above them; so is a flat width.
        rows = self.row_sizes if self.chunk is not None else self.row_sizes[1:]
        flat = self.form == "map" and not self.row_sizes
        return (
            self.form, len(self.row_sizes), len(self.dims), self.buffers, self.stores,
            self._placed((rows, self.lead_sizes, self.outer_sizes, None if flat else self.width)),
            self.unroll, self.row_unroll, self.chunk, bool(self.col_grain), self.in_registers,
            self.streams,
            tuple((n.op, n.dtype, n.args, self._placed(n.attr)) for n in self.nodes),
        )  # fmt: skip

    def _placed(self, x: object) -> Hashable:
        """``x`` with symbolic sizes as their places in dims."""
        match x:
            case Poly():
                return ("dim", self.dims.index(x) if x in self.dims else None)
            case Affine(base=base, terms=terms):
                return self._placed((base, terms))
            case tuple():
                return tuple(map(self._placed, x))
        assert isinstance(x, Hashable)
        return x

    def dim(self, d: Dim) -> int:
        """The place of a symbolic size in dims."""
        return self.dims.index(d)

    def axes(self, level: int) -> range:
        """The numbers of the row, lead or outer axes."""
        r, n, o = len(self.row_sizes), len(self.lead_sizes), len(self.outer_sizes)
        return {ROW: range(r), LEAD: range(r, r + n), OUTER: range(r + n, r + n + o)}[level]

    @kept
    def level(self) -> tuple[int, ...]:
        """For each node, the loops that it varies with."""
        out: list[int] = []
        for node in self.nodes:
            found = 0
            for a in node.args:
                found |= out[a]
            match node.op:
                case "load":
                    found = self._level_of(node.offset)
                case "index":
                    found = self._level_of(node.offset)
                case "reduce" if self.form == "column":
                    found = (found & ~LEAD) | ROW | INNER
                case "reduce":
                    found = (found & ~(OUTER | INNER)) | ROW
            out.append(found)
        return tuple(out)

    def _level_of(self, index: Affine) -> int:
        found = 0
        for a, _ in index.terms:
            if a == self.inner:
                found |= INNER
            else:
                found |= next(bit for bit in (ROW, LEAD, OUTER) if a in self.axes(bit))
        return found

    @kept
    def ready(self) -> tuple[int, ...]:
        """For each node the stage in which it can be computed: one later than what it reduces."""
        out: list[int] = []
        for node in self.nodes:
            when = max((out[a] for a in node.args), default=0)
            out.append(when + (node.op == "reduce"))
        return tuple(out)

    @kept
    def after_reduce(self) -> frozenset[int]:
        """Nodes that depend on a reduction."""
        return frozenset(n for n, when in enumerate(self.ready) if when)

    @kept
    def needs_splat(self) -> frozenset[int]:
        """Nodes of one value for all lanes that something on lanes reads."""
        found: set[int] = set()
        for n, node in enumerate(self.nodes):
            if self.level[n] & INNER or node.op == "reduce":
                found.update(a for a in node.args if not self.level[a] & INNER)
        whole = [s.node for s in self.stores if not s.per_row]
        found.update(n for n in whole if not self.level[n] & INNER)
        return frozenset(found)

    @kept
    def in_registers(self) -> bool:
        """A row is so short that its values stay in registers from stage to stage."""
        short = isinstance(self.width, int) and self.width <= LANES * min(8, 2 * self.unroll)
        return short and not self.outer_sizes and not self.col_grain

    @kept
    def stages(self) -> tuple[Stage, ...]:
        """The passes over the columns of a row (forms of the shape "rows")."""
        if self.form == "column":
            raise CodegenError("a column kernel has no stages")
        full = [s for s in self.stores if not s.per_row]
        reduces = [n for n, node in enumerate(self.nodes) if node.op == "reduce"]
        count = 1 + max(
            [self.ready[s.node] for s in full] + [self.ready[n] - 1 for n in reduces], default=0
        )
        done: set[int] = set()
        slots: dict[int, int] = {}
        plans = []
        for s in range(count):
            stores = [st for st in full if self.ready[st.node] == s]
            ends = [n for n in reduces if self.ready[n] - 1 == s]
            roots = [st.node for st in stores] + [self.nodes[n].args[0] for n in ends]
            needed, reloads = self._needed(roots, done)
            done |= needed
            plans.append((needed, stores, ends, reloads))
        # A value is read back from the result it was stored to, else from scratch.
        stored = {st.node: st.buffer for st in full}
        for _, _, _, reloads in plans:
            for n in reloads:
                if n not in stored:
                    slots.setdefault(n, len(slots))
        out = []
        saved: set[int] = set()
        for needed, stores, ends, reloads in plans:
            fresh = [(n, slots[n]) for n in sorted(needed) if n in slots and n not in saved]
            saved |= {n for n, _ in fresh}
            sources = [
                (n, "result", stored[n]) if n in stored else (n, "scratch", slots[n])
                for n in sorted(reloads)
            ]
            order = tuple(sorted(needed))
            out.append(Stage(order, tuple(stores), tuple(ends), tuple(fresh), tuple(sources)))
        return tuple(out)

    def _needed(self, roots: list[int], done: set[int]) -> tuple[set[int], set[int]]:
        """Nodes on columns to compute for ``roots``, and those to read back instead."""
        needed: set[int] = set()
        reloads: set[int] = set()
        stack = [n for n in roots if self.level[n] & (OUTER | INNER)]
        while stack:
            n = stack.pop()
            if n in needed or n in reloads:
                continue
            if n in done and (self.in_registers or self._is_dear(n)):
                if not self.in_registers:
                    reloads.add(n)
                continue
            needed.add(n)
            stack.extend(a for a in self.nodes[n].args if self.level[a] & (OUTER | INNER))
        return needed, reloads

    def _is_dear(self, n: int) -> bool:
        if not self.level[n] & INNER:
            return False
        total, stack, seen = 0, [n], {n}
        while stack and total < _DEAR:
            node = self.nodes[stack.pop()]
            total += _COST.get(node.op, 1)
            new = [a for a in node.args if self.level[a] & INNER and a not in seen]
            seen.update(new)
            stack.extend(new)
        return total >= _DEAR

    @kept
    def scratch_slots(self) -> int:
        if self.form == "column":
            return 0
        return sum(len(stage.saves) for stage in self.stages)

    @property
    def slot_bytes(self) -> Dim:
        """Bytes of one row in scratch: room for the widest dtype, and for whole vectors."""
        return (self.columns + LANES) * 8

    @property
    def scratch(self) -> Dim:
        return self.slot_bytes * self.scratch_slots if self.scratch_slots else 0


def symbolic_sizes(kernel: LoopKernel) -> tuple[Dim, ...]:
    """The sizes that the kernel's text does not hold, in order of use."""
    found: dict[Dim, None] = {}

    def use(d: Dim) -> None:
        if isinstance(d, Poly):
            found.setdefault(d)

    def use_affine(index: Affine) -> None:
        use(index.base)
        for _, c in index.terms:
            use(c)

    for node in kernel.nodes:
        match node.op:
            case "load":
                use_affine(node.offset)
            case "index":
                use_affine(node.offset)
            case "size":
                use(node.attr)
    for sizes in (kernel.row_sizes, kernel.lead_sizes, kernel.outer_sizes):
        # The outermost size of a group is divided by only below chunks.
        for d in sizes if sizes is kernel.row_sizes and kernel.chunk is not None else sizes[1:]:
            use(d)
    if kernel.form == "column":
        use(kernel.lead_rows)
    if not kernel.col_grain or kernel.row_sizes or kernel.form == "column":
        use(kernel.width)
    if kernel.outer_sizes:
        use(prod(kernel.outer_sizes))
        use(kernel.columns)
    if kernel.scratch_slots:
        use(kernel.slot_bytes)
    return tuple(found)
