"""What every loop nest needs to print LLVM IR: loops, offsets, values on lanes, blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from nir.codegen.llvm_ops import Text, mangled, memory_type, type_of
from nir.codegen.loop import INNER, LANES, ROW, LoopKernel
from nir.codegen.nodes import COMBINE, Affine
from nir.ir.dim import Dim

_LANE_NUMBERS = ", ".join(f"i32 {k}" for k in range(LANES))

# Vectors of one block: (node, copy) -> name.
Vectors = dict[tuple[int, int], str]
# The code of a block: (column, copies, masks, accumulators) -> accumulators.
Block = Callable[[str, int, "list[str | None]", "list[str]"], "list[str]"]


class Values:
    """The function being printed, and the names of what has been computed so far."""

    def __init__(self, kernel: LoopKernel, isa: str) -> None:
        self.k, self.isa = kernel, isa
        self.t = Text(isa)
        self.block = "entry"
        self.scalars: dict[int, str] = {}
        self.splats: dict[int, str] = {}
        self.axis: dict[int, str] = {}
        # (buffer, offset without the inner axis) -> pointer, for the loops entered so far
        self.pointers: dict[tuple[int, Affine], str] = {}
        self.streaming: frozenset[int] = frozenset()  # buffers whose stores pass by the caches
        self.kept: Vectors = {}  # vectors that stay in registers from stage to stage

    # ---- loops ---------------------------------------------------------------------------------

    def open(self, label: str) -> None:
        self.t.lines.append(f"{label}:")
        self.block = label

    def loop(
        self,
        start: str,
        stop: str,
        step: int,
        carried: Sequence[tuple[str, str]],
        body: Callable[[str, list[str]], list[str]],
    ) -> list[str]:
        """while index <= stop - step: body. ``carried`` are (type, first value) pairs."""
        t = self.t
        t.count += 1
        k, before = t.count, self.block
        limit = stop if step == 1 else t.let(f"sub i64 {stop}, {step - 1}", "limit")
        t.line(f"br label %head{k}")
        self.open(f"head{k}")
        at = len(t.lines)
        index, names = f"%i{k}", [f"%a{k}.{j}" for j in range(len(carried))]
        t.lines.extend([""] * (1 + len(carried)))
        more = t.let(f"icmp slt i64 {index}, {limit}", "c")
        t.line(f"br i1 {more}, label %body{k}, label %done{k}")
        self.open(f"body{k}")
        nexts = body(index, names)
        t.line(f"%i{k}.next = add i64 {index}, {step}")
        t.line(f"br label %head{k}")
        latch = self.block
        phis = [("i64", start, f"%i{k}.next", index)]
        phis += [(ty, v, n, m) for (ty, v), n, m in zip(carried, nexts, names, strict=True)]
        for j, (ty, first, then, to) in enumerate(phis):
            t.lines[at + j] = f"  {to} = phi {ty} [ {first}, %{before} ], [ {then}, %{latch} ]"
        self.open(f"done{k}")
        return names

    # ---- sizes and offsets ---------------------------------------------------------------------

    def dim(self, d: Dim) -> str:
        return str(d) if isinstance(d, int) else f"%d{self.k.dim(d)}"

    def times(self, a: str, d: Dim) -> str:
        if d == 1 or a == "0":
            return a
        if a.lstrip("-").isdigit() and isinstance(d, int):
            return str(int(a) * d)
        return self.t.let(f"mul i64 {a}, {self.dim(d)}", "o")

    def plus(self, a: str, b: str) -> str:
        if "0" in (a, b):
            return b if a == "0" else a
        if a.lstrip("-").isdigit() and b.lstrip("-").isdigit():
            return str(int(a) + int(b))
        return self.t.let(f"add i64 {a}, {b}", "o")

    def value_of(self, index: Affine) -> str:
        """An affine index of axes whose loops have been entered."""
        total = self.dim(index.base)
        for a, c in index.terms:
            total = self.plus(total, self.times(self.axis[a], c))
        return total

    def step(self, pointer: str, dtype: str, offset: str) -> str:
        if offset == "0":
            return pointer
        return self.t.let(
            f"getelementptr {memory_type(dtype, 1)}, ptr {pointer}, i64 {offset}", "p"
        )

    def decompose(self, linear: str, axes: range, sizes: Sequence[Dim]) -> str:
        """Set the axes' indices from a row-major number; returns what is left above the first."""
        t = self.t
        for a, size in reversed(list(zip(axes, sizes, strict=True))[1:]):
            self.axis[a] = t.let(f"urem i64 {linear}, {self.dim(size)}", "r")
            linear = t.let(f"udiv i64 {linear}, {self.dim(size)}", "r")
        if sizes:
            self.axis[axes[0]] = linear
        return linear

    def pointer(self, n: int, level: int) -> str:
        """Where the load ``n`` reads in the loops of ``level``, at inner column 0."""
        buffer, offset = self.k.nodes[n].buffer, self.k.nodes[n].offset.without(self.k.inner)
        key = (buffer, offset)
        if key not in self.pointers:
            # What the outer loop fixes is added there once (see `enter`).
            row = Affine(offset.base, tuple(t for t in offset.terms if t[0] in self.k.axes(ROW)))
            rest = Affine(0, tuple(t for t in offset.terms if t not in row.terms))
            dtype = self.k.nodes[n].dtype
            if rest.terms and (buffer, row) in self.pointers:
                base = self.pointers[buffer, row]
                at = self.step(base, dtype, self.value_of(rest))
            else:
                at = self.step(f"%b{buffer}", dtype, self.value_of(offset))
            self.pointers[key] = at
        return self.pointers[key]

    def prepare_rows(self, needed: Iterable[int]) -> None:
        """Pointers of this row for loads that vary further in, and the row's own."""
        for n in needed:
            node = self.k.nodes[n]
            if node.op != "load":
                continue
            buffer, offset = node.buffer, node.offset
            rows = self.k.axes(ROW)
            row = Affine(offset.base, tuple(t for t in offset.terms if t[0] in rows))
            if (buffer, row) not in self.pointers:
                at = self.step(f"%b{buffer}", node.dtype, self.value_of(row))
                self.pointers[buffer, row] = at

    # ---- values --------------------------------------------------------------------------------

    def scalar_nodes(self, ids: Iterable[int], level: int) -> None:
        """Compute nodes that are the same for all lanes."""
        for n in sorted(ids):
            node = self.k.nodes[n]
            if n in self.scalars or node.op in ("const", "reduce"):
                continue
            match node.op:
                case "load":
                    value = self.load_scalar(node.dtype, self.pointer(n, level))
                case "index":
                    value = self.value_of(node.offset)
                case "size":
                    value = self.dim(node.attr)
                case _:
                    args = [self.scalar(a) for a in node.args]
                    value = self.t.primitive(node, self.k.nodes[node.args[0]].dtype, args, 1)
            self.define(n, value)

    def define(self, n: int, value: str) -> None:
        self.scalars[n] = value
        if n in self.k.needs_splat:
            self.splats[n] = self.t.splat(self.k.nodes[n].dtype, value, LANES)

    def scalar(self, n: int) -> str:
        node = self.k.nodes[n]
        return self.t.constant(node, 1) if node.op == "const" else self.scalars[n]

    def lanes(self, vectors: Vectors, n: int, u: int) -> str:
        node = self.k.nodes[n]
        if node.op == "const":
            return self.t.constant(node, LANES)
        return vectors.get((n, u)) or self.splats[n]

    def load_scalar(self, dtype: str, pointer: str) -> str:
        value = self.t.let(f"load {memory_type(dtype, 1)}, ptr {pointer}, align 1", "x")
        return self.t.let(f"icmp ne i8 {value}, 0", "x") if dtype == "bool" else value

    def vector_nodes(
        self,
        ids: Sequence[int],
        vectors: Vectors,
        copies: int,
        column: str,
        masks: list[str | None],
    ) -> None:
        """Compute nodes on lanes, the copies interleaved operation by operation."""
        for n in ids:
            node = self.k.nodes[n]
            if node.op in ("const", "reduce"):
                continue
            for u in range(copies):
                if (n, u) in vectors:
                    continue
                match node.op:
                    case "load":
                        value = self.load_vector(n, column, u, masks[u])
                    case "index":
                        value = self.index_vector(node.offset, column, u)
                    case _:
                        args = [self.lanes(vectors, a, u) for a in node.args]
                        source = self.k.nodes[node.args[0]].dtype
                        value = self.t.primitive(node, source, args, LANES)
                vectors[n, u] = value

    def load_vector(self, n: int, column: str, u: int, mask: str | None) -> str:
        node = self.k.nodes[n]
        stride = node.offset.coefficient(self.k.inner)
        base = self.pointer(n, INNER)
        first = self.plus(self.times(column, stride), self.times(str(LANES * u), stride))
        at = self.step(base, node.dtype, first)
        if stride == 1:
            return self.read(node.dtype, at, mask)
        if stride == -1 and mask is None:
            # A flipped axis: one load of the lanes in memory order, then a shuffle.
            start = self.step(at, node.dtype, str(1 - LANES))
            value = self.read(node.dtype, start, None)
            t = type_of(node.dtype, LANES)
            order = ", ".join(f"i32 {LANES - 1 - j}" for j in range(LANES))
            return self.t.let(
                f"shufflevector {t} {value}, {t} poison, <{LANES} x i32> <{order}>", "x"
            )
        offsets = self.lane_offsets(stride)
        m = memory_type(node.dtype, 1)
        ps = self.t.let(f"getelementptr {m}, ptr {at}, <{LANES} x i64> {offsets}", "p")
        lanes = memory_type(node.dtype, LANES)
        name = mangled("i8" if node.dtype == "bool" else node.dtype, LANES)
        value = self.t.call(
            lanes,
            f"llvm.masked.gather.{name}.v{LANES}p0",
            [
                f"<{LANES} x ptr> align 1 {ps}",
                f"<{LANES} x i1> {mask or 'splat (i1 true)'}",
                f"{lanes} zeroinitializer",
            ],
            "x",
        )
        return self.to_bool(value) if node.dtype == "bool" else value

    def lane_offsets(self, stride: Dim) -> str:
        if isinstance(stride, int):
            return "<" + ", ".join(f"i64 {stride * k}" for k in range(LANES)) + ">"
        wide = self.t.splat("i64", self.dim(stride), LANES)
        numbers = "<" + ", ".join(f"i64 {k}" for k in range(LANES)) + ">"
        return self.t.let(f"mul <{LANES} x i64> {wide}, {numbers}", "o")

    def index_vector(self, index: Affine, column: str, u: int) -> str:
        stride = index.coefficient(self.k.inner)
        start = self.plus(self.value_of(index.without(self.k.inner)), self.times(column, stride))
        start = self.plus(start, self.times(str(LANES * u), stride))
        wide = self.t.splat("i64", start, LANES)
        return self.t.let(f"add <{LANES} x i64> {wide}, {self.lane_offsets(stride)}", "x")

    def read(self, dtype: str, at: str, mask: str | None) -> str:
        m = memory_type(dtype, LANES)
        if mask is None:
            value = self.t.let(f"load {m}, ptr {at}, align 1", "x")
        else:
            name = mangled("i8" if dtype == "bool" else dtype, LANES)
            args = [f"ptr align 1 {at}", f"<{LANES} x i1> {mask}", f"{m} zeroinitializer"]
            value = self.t.call(m, f"llvm.masked.load.{name}.p0", args, "x")
        return self.to_bool(value) if dtype == "bool" else value

    def to_bool(self, value: str) -> str:
        return self.t.let(f"icmp ne <{LANES} x i8> {value}, zeroinitializer", "x")

    def write(
        self, dtype: str, value: str, at: str, mask: str | None, streams: bool = False
    ) -> None:
        m = memory_type(dtype, LANES)
        if dtype == "bool":
            value = self.t.let(f"zext <{LANES} x i1> {value} to {m}", "x")
        if mask is None:
            how = "align 64, !nontemporal !0" if streams else "align 1"
            self.t.line(f"store {m} {value}, ptr {at}, {how}")
            return
        name = mangled("i8" if dtype == "bool" else dtype, LANES)
        args = [f"{m} {value}", f"ptr align 1 {at}", f"<{LANES} x i1> {mask}"]
        self.t.call("void", f"llvm.masked.store.{name}.p0", args)

    def write_scalar(self, dtype: str, value: str, at: str) -> None:
        if dtype == "bool":
            value = self.t.let(f"zext i1 {value} to i8", "x")
        self.t.line(f"store {memory_type(dtype, 1)} {value}, ptr {at}, align 1")

    # ---- blocks of columns ---------------------------------------------------------------------

    def over_columns(
        self,
        accumulators: list[tuple[str, str]],
        block: Block,
    ) -> list[str]:
        """Run ``block(column, copies, masks, accumulators)`` over this row's inner columns.

        Whole blocks of ``unroll`` vectors first, then single vectors, the last one masked. A width
        that is known gives straight code.
        """
        unroll, width = self.k.unroll, self.k.width
        piece = LANES * unroll
        types = [ty for ty, _ in accumulators]
        values = [v for _, v in accumulators]

        def carried() -> list[tuple[str, str]]:
            return list(zip(types, values, strict=True))

        if isinstance(width, int) and not self.k.col_grain:
            whole = width // piece
            if whole == 1 or self.k.in_registers:
                for i in range(whole):
                    values = block(str(i * piece), unroll, [None] * unroll, values)
            elif whole:
                values = self.loop(
                    "0", str(whole * piece), piece, carried(),
                    lambda i, a: block(i, unroll, [None] * unroll, a),
                )  # fmt: skip
            rest = width - whole * piece
            if rest:
                masks = [self.constant_mask(rest - LANES * u) for u in range(-(-rest // LANES))]
                values = block(str(whole * piece), len(masks), masks, values)
            return values
        first, last = ("%c0", "%c1") if self.k.col_grain else ("0", self.dim(width))
        count = self.t.let(f"sub i64 {last}, {first}", "n")
        blocks = self.t.let(f"sdiv i64 {count}, {piece}", "n")
        extent = self.t.let(f"mul i64 {blocks}, {piece}", "n")
        middle = self.t.let(f"add i64 {first}, {extent}", "n")
        values = self.loop(
            first, middle, piece, carried(), lambda i, a: block(i, unroll, [None] * unroll, a)
        )

        def masked(i: str, a: list[str]) -> list[str]:
            left = self.t.let(f"sub i64 {last}, {i}", "n")
            small = self.t.let(f"trunc i64 {left} to i32", "n")
            wide = self.t.splat("i32", small, LANES)
            mask = self.t.let(f"icmp slt <{LANES} x i32> <{_LANE_NUMBERS}>, {wide}", "m")
            return block(i, 1, [mask], a)

        end = self.t.let(f"add i64 {last}, {LANES - 1}", "n")
        return self.loop(middle, end, LANES, carried(), masked)

    def constant_mask(self, left: int) -> str | None:
        if left >= LANES:
            return None
        return "<" + ", ".join(f"i1 {'true' if k < left else 'false'}" for k in range(LANES)) + ">"

    def combine(self, op: str, dtype: str, a: str, b: str, lanes: int) -> str:
        return self.t.apply(COMBINE[op], dtype, dtype, [a, b], lanes)

    def pairs(self, n: int, values: list[str]) -> str:
        """Accumulators of one reduction joined in pairs, neighbours first."""
        node = self.k.nodes[n]
        while len(values) > 1:
            pairs = zip(values[::2], values[1::2], strict=False)
            odd = [values[-1]] if len(values) % 2 else []
            values = [self.combine(str(node.attr), node.dtype, a, b, LANES) for a, b in pairs] + odd
        return values[0]
