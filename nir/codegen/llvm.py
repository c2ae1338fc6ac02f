"""A loop kernel as LLVM IR text: explicit vectors of 16 lanes on every ISA level.

No IR pass runs on this text, so it is written the way the machine should see it: values that do not
vary in a loop are computed before it, unrolled copies are interleaved operation by operation, and
accumulators are phi nodes. The text depends on the kernel and the ISA level only.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from nir.codegen.llvm_ops import literal, type_of
from nir.codegen.llvm_values import Block, Values, Vectors
from nir.codegen.loop import INNER, LANES, LEAD, OUTER, ROW, LoopKernel, Stage
from nir.codegen.nodes import reduction_identity
from nir.ir.dim import prod

ISA_LEVELS = ("plain", "avx2", "avx512")

# Texts by `text_key`: a model has many loops that differ in sizes only.
_texts: dict[Hashable, str] = {}
_MAX_TEXTS = 1024


def print_llvm(kernel: LoopKernel, isa: str, name: str = "k") -> str:
    """The function ``name``, of the signature in kernels/cpu/nir_kernel.h, for an ISA level."""
    if isa not in ISA_LEVELS:
        raise ValueError(f"expected an ISA level of {', '.join(ISA_LEVELS)}, got {isa!r}")
    key = (kernel.text_key, isa, name)
    text = _texts.get(key)
    if text is None:
        if len(_texts) >= _MAX_TEXTS:
            _texts.clear()
        text = _texts[key] = _Printer(kernel, isa).run(name)
    return text


class _Printer(Values):
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
        elif self.k.streams:
            self.streamed_nest()
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
        metadata = ["!0 = !{i32 1}"] if self.k.streams else []
        parts = [head, *t.lines, "}", *t.declared, attributes, *metadata]
        return "\n".join(parts) + "\n"

    # ---- rows: map, row, epilogue --------------------------------------------------------------

    def streamed_nest(self) -> None:
        """The loops with stores that pass by the caches, and without, as the results lie.

        Such stores need aligned memory, and are slow where a result takes over an operand.
        """
        t = self.t
        bad = []
        for b in self.k.streams:
            address = t.let(f"ptrtoint ptr %b{b} to i64", "a")
            low = t.let(f"and i64 {address}, 63", "a")
            bad.append(t.let(f"icmp ne i64 {low}, 0", "c"))
            for i, other in enumerate(self.k.buffers):
                if other.kind == "operand":
                    bad.append(t.let(f"icmp eq ptr %b{b}, %b{i}", "c"))
        ordinary = bad[0]
        for c in bad[1:]:
            ordinary = t.let(f"or i1 {ordinary}, {c}", "c")
        t.line(f"br i1 {ordinary}, label %ordinary, label %streamed")
        self.open("streamed")
        self.streaming = frozenset(self.k.streams)
        self.rows_nest()
        t.line("fence seq_cst")  # such stores are ordered by fences alone
        t.line("br label %exit")
        self.streaming = frozenset()
        self.scalars, self.splats, self.pointers, self.kept = {}, {}, {}, {}
        self.open("ordinary")
        self.rows_nest()

    def rows_nest(self) -> None:
        k = self.k
        fixed = [n for n in range(len(k.nodes)) if not k.level[n] and n not in k.after_reduce]
        if k.col_grain:
            # A thread may get no columns; then scalars need not exist either.
            some = self.t.let("icmp slt i64 %c0, %c1", "cols.left")
            start = f"start.{self.block}"
            self.t.line(f"br i1 {some}, label %{start}, label %exit")
            self.open(start)
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
                self.write_scalar(
                    dtype, self.scalar(st.node), self.step(f"%b{st.buffer}", dtype, r)
                )
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
        value = self.pairs(n, values)
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

    def stage_block(self, stage: Stage, offset: str, column_offset: str = "0") -> Block:
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
                    at = self.place(
                        st.node, "result", st.buffer, self.plus(offset, column), here, u
                    )
                    dtype = k.buffers[st.buffer].dtype
                    streams = st.buffer in self.streaming
                    self.write(dtype, self.lanes(vectors, st.node, u), at, masks[u], streams)
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

    def chunk_block(self, first: str, last: str, offset: str) -> Block:
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
                    phases = [(j * k.row_unroll + p) * copies + u for p in range(k.row_unroll)]
                    vectors[n, u] = self.pairs(n, [values[a] for a in phases])
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
