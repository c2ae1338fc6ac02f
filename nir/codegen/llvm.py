"""A loop kernel as LLVM IR text: explicit vectors of 16 lanes on every ISA level.

No IR pass runs on this text, so it is written the way the machine should see it: values that do not
vary in a loop are computed before it, unrolled copies are interleaved operation by operation, and
accumulators are phi nodes. The text depends on the kernel and the ISA level only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from nir.codegen.llvm_ops import Text, literal, mangled, memory_type, type_of
from nir.codegen.loop import INNER, LANES, LEAD, OUTER, ROW, LoopKernel, Stage, Store
from nir.codegen.nodes import COMBINE, ITEMSIZE, Affine, reduction_identity
from nir.ir.dim import Dim, prod

ISA_LEVELS = ("plain", "avx2", "avx512")
_LANE_NUMBERS = ", ".join(f"i32 {k}" for k in range(LANES))

# Vectors of one block: (node, copy) -> name.
Vectors = dict[tuple[int, int], str]


def print_llvm(kernel: LoopKernel, isa: str, name: str = "k") -> str:
    """The function ``name`` of kernels/cpu/nir_kernel.h's signature, for "plain", "avx2" or "avx512"."""
    if isa not in ISA_LEVELS:
        raise ValueError(f"expected an ISA level of {', '.join(ISA_LEVELS)}, got {isa!r}")
    return _Printer(kernel, isa).run(name)


class _Printer:
    def __init__(self, kernel: LoopKernel, isa: str) -> None:
        self.k, self.isa = kernel, isa
        self.t = Text(isa)
        self.block = "entry"
        self.scalars: dict[int, str] = {}
        self.splats: dict[int, str] = {}
        self.axis: dict[int, str] = {}
        # (buffer, offset without the inner axis) -> pointer, for the loops entered so far
        self.pointers: dict[tuple[int, Affine], str] = {}
        self.kept: Vectors = {}  # vectors that stay in registers from stage to stage

    # ---- structure -----------------------------------------------------------------------------

    def run(self, name: str) -> str:
        t = self.t
        t.line("%rows.left = icmp slt i64 %r0, %r1")
        t.line("br i1 %rows.left, label %setup, label %exit")
        self.open("setup")
        for i, b in enumerate(self.k.buffers):
            at = "%ptrs" if i == 0 else t.let(f"getelementptr ptr, ptr %ptrs, i64 {i}", "a")
            t.line(f"%b{i} = load ptr, ptr {at}  ; {b.kind} {b.index}, {b.dtype}")
        for i in range(len(self.k.dims)):
            at = "%dims" if i == 0 else t.let(f"getelementptr i64, ptr %dims, i64 {i}", "a")
            t.line(f"%d{i} = load i64, ptr {at}")
        if self.k.scratch_slots:
            t.line("%scratch = load ptr, ptr %ctx")
        if self.k.form == "column":
            self.columns_nest()
        else:
            self.rows_nest()
        t.line("br label %exit")
        self.open("exit")
        t.line("ret i32 0")
        head = (
            f"define i32 @{name}(ptr %ctx, ptr %ptrs, ptr %dims, i64 %r0, i64 %r1, "
            "i64 %c0, i64 %c1) #0 {\nentry:"
        )
        attributes = 'attributes #0 = { nounwind "no-builtins"%s }' % (
            ' "prefer-vector-width"="512"' if self.isa == "avx512" else ""
        )
        parts = [head, *t.lines, "}", *t.declared, attributes]
        return "\n".join(parts) + "\n"

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
        """while index <= stop - step: body. ``carried`` are (type, first value); returns the last."""
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
        buffer, offset = self.k.nodes[n].attr  # type: ignore[misc]
        offset = offset.without(self.k.inner)
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
            buffer, offset = node.attr  # type: ignore[misc]
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
                    value = self.value_of(node.attr)  # type: ignore[arg-type]
                case "size":
                    value = self.dim(node.attr)  # type: ignore[arg-type]
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
        self, ids: Sequence[int], vectors: Vectors, copies: int, column: str, masks: list[str | None]
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
                        value = self.index_vector(node.attr, column, u)  # type: ignore[arg-type]
                    case _:
                        args = [self.lanes(vectors, a, u) for a in node.args]
                        source = self.k.nodes[node.args[0]].dtype
                        value = self.t.primitive(node, source, args, LANES)
                vectors[n, u] = value

    def load_vector(self, n: int, column: str, u: int, mask: str | None) -> str:
        node = self.k.nodes[n]
        stride = node.attr[1].coefficient(self.k.inner)  # type: ignore[index]
        base = self.pointer(n, INNER)
        first = self.plus(self.times(column, stride), self.times(str(LANES * u), stride))
        at = self.step(base, node.dtype, first)
        if stride == 1:
            return self.read(node.dtype, at, mask)
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

    def write(self, dtype: str, value: str, at: str, mask: str | None) -> None:
        m = memory_type(dtype, LANES)
        if dtype == "bool":
            value = self.t.let(f"zext <{LANES} x i1> {value} to {m}", "x")
        if mask is None:
            self.t.line(f"store {m} {value}, ptr {at}, align 1")
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
        block: Callable[[str, int, list[str | None], list[str]], list[str]],
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

    # ---- rows: map, row, epilogue --------------------------------------------------------------

    def rows_nest(self) -> None:
        k = self.k
        fixed = [n for n in range(len(k.nodes)) if not k.level[n] and n not in k.after_reduce]
        if k.col_grain:
            # A thread may get no columns; then scalars need not exist either.
            self.t.line("%cols.left = icmp slt i64 %c0, %c1")
            self.t.line("br i1 %cols.left, label %start, label %exit")
            self.open("start")
        self.scalar_nodes(fixed, 0)
        self.loop("%r0", "%r1", 1, [], lambda r, _: self.row(r))

    def row(self, r: str) -> list[str]:
        k = self.k
        outside = dict(self.scalars), dict(self.splats), dict(self.pointers)
        self.decompose(r, k.axes(ROW), k.row_sizes)
        self.prepare_rows(range(len(k.nodes)))
        on_rows = [n for n in range(len(k.nodes)) if not k.level[n] & (OUTER | INNER)]
        self.kept = {}
        for s, stage in enumerate(k.stages):
            self.scalar_nodes([n for n in on_rows if k.ready[n] == s], ROW)
            self.stage(r, stage)
        self.scalar_nodes(on_rows, ROW)
        for st in k.stores:
            if st.per_row:
                dtype = k.buffers[st.buffer].dtype
                self.write_scalar(dtype, self.scalar(st.node), self.step(f"%b{st.buffer}", dtype, r))
        self.scalars, self.splats, self.pointers = outside
        return []

    def stage(self, r: str, stage: Stage) -> None:
        k = self.k
        if not stage.stores and not stage.reduces:
            return
        types, firsts = [], []
        for n in stage.reduces:
            node = k.nodes[n]
            start = literal(node.dtype, reduction_identity(str(node.attr), node.dtype), LANES)
            types += [type_of(node.dtype, LANES)] * k.unroll
            firsts += [start] * k.unroll
        carried = list(zip(types, firsts, strict=True))
        offset = self.times(r, k.columns) if k.row_sizes else "0"
        if not k.outer_sizes:
            values = self.over_columns(carried, self.stage_block(stage, offset))
        else:

            def outer(q: str, accumulators: list[str]) -> list[str]:
                saved = dict(self.scalars), dict(self.splats), dict(self.pointers)
                self.decompose(q, k.axes(OUTER), k.outer_sizes)
                self.scalar_nodes([n for n in stage.nodes if not k.level[n] & INNER], OUTER)
                for n in stage.nodes:
                    if k.nodes[n].op == "load":
                        self.pointer(n, OUTER)
                inner = self.plus(offset, self.times(q, k.width))
                block = self.stage_block(stage, inner, self.times(q, k.width))
                out = self.over_columns(list(zip(types, accumulators, strict=True)), block)
                self.scalars, self.splats, self.pointers = saved
                return out

            values = self.loop("0", self.dim(prod(k.outer_sizes)), 1, carried, outer)
        for i, n in enumerate(stage.reduces):
            self.define(n, self.join(n, values[i * k.unroll : (i + 1) * k.unroll]))

    def join(self, n: int, values: list[str]) -> str:
        """Accumulators in pairs, then halves of the lanes: one fixed tree."""
        node = self.k.nodes[n]
        op, dtype = str(node.attr), node.dtype
        while len(values) > 1:
            pairs = zip(values[::2], values[1::2], strict=False)
            odd = [values[-1]] if len(values) % 2 else []
            values = [self.combine(op, dtype, a, b, LANES) for a, b in pairs] + odd
        (value,) = values
        lanes = LANES
        while lanes > 1:
            t, half = type_of(dtype, lanes), lanes // 2
            parts = []
            for first in (0, half):
                numbers = ", ".join(f"i32 {first + j}" for j in range(half))
                if half == 1:
                    parts.append(self.t.let(f"extractelement {t} {value}, i64 {first}", "x"))
                else:
                    shuffle = f"shufflevector {t} {value}, {t} poison, <{half} x i32> <{numbers}>"
                    parts.append(self.t.let(shuffle, "x"))
            value = self.combine(op, dtype, parts[0], parts[1], half)
            lanes = half
        return value

    def stage_block(
        self, stage: Stage, offset: str, column_offset: str = "0"
    ) -> Callable[[str, int, list[str | None], list[str]], list[str]]:
        """The straight code of a stage for some vectors; ``offset`` is the row's first element."""
        k = self.k
        on_lanes = [n for n in stage.nodes if k.level[n] & INNER]

        def block(
            column: str, copies: int, masks: list[str | None], accumulators: list[str]
        ) -> list[str]:
            # Blocks of a short row keep their vectors apart by the number of their first copy.
            first = int(column) // LANES if k.in_registers else 0
            vectors: Vectors = {}
            if k.in_registers:
                vectors = {(n, u - first): v for (n, u), v in self.kept.items() if u >= first}
            here = self.plus(column_offset, column)
            for n, kind, source in stage.reloads:
                for u in range(copies):
                    at = self.place(n, kind, source, self.plus(offset, column), here, u)
                    vectors[n, u] = self.read(k.nodes[n].dtype, at, masks[u])
            self.vector_nodes(on_lanes, vectors, copies, column, masks)
            if k.in_registers:
                self.kept.update({(n, u + first): v for (n, u), v in vectors.items()})
            for st in stage.stores:
                for u in range(copies):
                    at = self.place(st.node, "result", st.buffer, self.plus(offset, column), here, u)
                    dtype = k.buffers[st.buffer].dtype
                    self.write(dtype, self.lanes(vectors, st.node, u), at, masks[u])
            for n, slot in stage.saves:
                for u in range(copies):
                    at = self.place(n, "scratch", slot, "", here, u)
                    # Scratch has room for whole vectors, so no mask.
                    self.write(k.nodes[n].dtype, vectors[n, u], at, None)
            out = list(accumulators)
            # Vectors beyond the last whole block all go to the first accumulator.
            whole = copies == k.unroll and all(m is None for m in masks)
            for i, n in enumerate(stage.reduces):
                for u in range(copies):
                    node = k.nodes[n]
                    j = i * k.unroll + (u if whole else 0)
                    value = self.lanes(vectors, node.args[0], u)
                    total = self.combine(str(node.attr), node.dtype, value, out[j], LANES)
                    if masks[u] is not None:
                        args = [str(masks[u]), total, out[j]]
                        total = self.t.apply("select", node.dtype, "bool", args, LANES)
                    out[j] = total
            return out

        return block

    def place(self, n: int, kind: str, source: int, element: str, here: str, u: int) -> str:
        """The address of copy ``u`` of a value in a result or in scratch."""
        extra = str(LANES * u)
        if kind == "result":
            dtype = self.k.buffers[source].dtype
            return self.step(self.step(f"%b{source}", dtype, element), dtype, extra)
        dtype = self.k.nodes[n].dtype
        start = self.times(str(source), self.k.slot_bytes)
        base = self.step("%scratch", "i8", start)
        return self.step(self.step(base, dtype, here), dtype, extra)

    # ---- columns: reductions over leading axes -------------------------------------------------

    def columns_nest(self) -> None:
        k = self.k
        fixed = [n for n in range(len(k.nodes)) if not k.level[n] and n not in k.after_reduce]
        if k.col_grain:
            self.t.line("%cols.left = icmp slt i64 %c0, %c1")
            self.t.line("br i1 %cols.left, label %start, label %exit")
            self.open("start")
        self.scalar_nodes(fixed, 0)
        self.loop("%r0", "%r1", 1, [], lambda r, _: self.chunk_row(r))

    def chunk_row(self, r: str) -> list[str]:
        k = self.k
        outside = dict(self.scalars), dict(self.splats), dict(self.pointers)
        chunk = r
        for a, size in reversed(list(zip(k.axes(ROW), k.row_sizes, strict=True))):
            # A full reduction has one chunk: the rows of the call are its outer columns alone.
            if a == 0 and k.chunk is None:
                self.axis[a] = chunk
                break
            self.axis[a] = self.t.let(f"urem i64 {chunk}, {self.dim(size)}", "r")
            chunk = self.t.let(f"udiv i64 {chunk}, {self.dim(size)}", "r")
        rows = self.dim(k.lead_rows)
        first = "0"
        if k.chunk is not None:
            first = self.t.let(f"mul i64 {chunk}, {k.chunk}", "l")
            end = self.t.let(f"add i64 {first}, {k.chunk}", "l")
            rows = self.call_min(end, rows)
        ids = range(len(k.nodes))
        self.prepare_rows(ids)
        on_rows = [n for n in ids if not k.level[n] & ~ROW and n not in k.after_reduce]
        self.scalar_nodes(on_rows, ROW)
        offset = self.times(r, k.width) if k.row_sizes or k.chunk is not None else "0"
        self.over_columns([], self.chunk_block(first, rows, offset))
        self.scalars, self.splats, self.pointers = outside
        return []

    def call_min(self, a: str, b: str) -> str:
        return self.t.call("i64", "llvm.smin.i64", [f"i64 {a}", f"i64 {b}"], "l")

    def chunk_block(
        self, first: str, last: str, offset: str
    ) -> Callable[[str, int, list[str | None], list[str]], list[str]]:
        """Some vectors of columns over the rows first .. last."""
        k = self.k
        ids = range(len(k.nodes))
        reduces = [n for n in ids if k.nodes[n].op == "reduce"]
        inputs = [n for n in ids if n not in k.after_reduce]
        post = [n for n in ids if n in k.after_reduce]
        # Before the rows: what does not vary with them. Values of columns alone are vectors.
        early = [n for n in inputs if k.level[n] & INNER and not k.level[n] & LEAD]
        late = [n for n in inputs if k.level[n] & LEAD]

        def block(column: str, copies: int, masks: list[str | None], _: list[str]) -> list[str]:
            outside = dict(self.scalars), dict(self.splats), dict(self.pointers)
            hoisted: Vectors = {}
            self.vector_nodes(early, hoisted, copies, column, masks)
            types, firsts = [], []
            for n in reduces:
                node = k.nodes[n]
                start = literal(node.dtype, reduction_identity(str(node.attr), node.dtype), LANES)
                types += [type_of(node.dtype, LANES)] * (copies * k.row_unroll)
                firsts += [start] * (copies * k.row_unroll)

            def rows(count: int) -> Callable[[str, list[str]], list[str]]:
                def body(i: str, accumulators: list[str]) -> list[str]:
                    out = list(accumulators)
                    for phase in range(count):
                        inner = dict(self.scalars), dict(self.splats), dict(self.pointers)
                        row = self.plus(i, str(phase))
                        self.decompose(row, k.axes(LEAD), k.lead_sizes)
                        self.scalar_nodes([n for n in late if not k.level[n] & INNER], LEAD)
                        vectors = dict(hoisted)
                        self.vector_nodes(
                            [n for n in late if k.level[n] & INNER], vectors, copies, column, masks
                        )
                        for j, n in enumerate(reduces):
                            node = k.nodes[n]
                            for u in range(copies):
                                at = (j * k.row_unroll + phase) * copies + u
                                value = self.lanes(vectors, node.args[0], u)
                                out[at] = self.combine(
                                    str(node.attr), node.dtype, out[at], value, LANES
                                )
                        self.scalars, self.splats, self.pointers = inner
                    return out

                return body

            values = firsts
            middle = first
            if k.row_unroll > 1:
                count = self.t.let(f"sub i64 {last}, {first}", "l")
                whole = self.t.let(f"sdiv i64 {count}, {k.row_unroll}", "l")
                whole = self.t.let(f"mul i64 {whole}, {k.row_unroll}", "l")
                middle = self.t.let(f"add i64 {first}, {whole}", "l")
                carried = list(zip(types, values, strict=True))
                values = self.loop(first, middle, k.row_unroll, carried, rows(k.row_unroll))
            carried = list(zip(types, values, strict=True))
            values = self.loop(middle, last, 1, carried, rows(1))
            vectors = dict(hoisted)
            for j, n in enumerate(reduces):
                for u in range(copies):
                    at = [(j * k.row_unroll + p) * copies + u for p in range(k.row_unroll)]
                    vectors[n, u] = self.pairs(n, [values[a] for a in at])
            self.vector_nodes(post, vectors, copies, column, masks)
            for st in k.stores:
                dtype = k.buffers[st.buffer].dtype
                start = self.step(f"%b{st.buffer}", dtype, self.plus(offset, column))
                for u in range(copies):
                    at = self.step(start, dtype, str(LANES * u))
                    self.write(dtype, self.lanes(vectors, st.node, u), at, masks[u])
            self.scalars, self.splats, self.pointers = outside
            return []

        return block

    def pairs(self, n: int, values: list[str]) -> str:
        """The rows' phases joined in pairs."""
        node = self.k.nodes[n]
        while len(values) > 1:
            pairs = zip(values[::2], values[1::2], strict=False)
            odd = [values[-1]] if len(values) % 2 else []
            values = [
                self.combine(str(node.attr), node.dtype, a, b, LANES) for a, b in pairs
            ] + odd
        return values[0]
