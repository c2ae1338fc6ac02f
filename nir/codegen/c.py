"""A loop kernel as C11 text: readable, and an oracle for the LLVM printer.

The loops are plain ones over single elements; reductions keep the 16 lanes and the accumulators
of the loop IR, so the bits agree with the AVX levels when it is compiled with -ffp-contract=off.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from nir.codegen.llvm_ops import scalar_literal
from nir.codegen.loop import INNER, LANES, LEAD, OUTER, ROW, LoopKernel, Stage
from nir.codegen.nodes import (
    COMBINE,
    COMPARISONS,
    FLOATS,
    Affine,
    Node,
    constant_value,
    int_bits,
    int_range,
    reduction_identity,
)  # fmt: skip
from nir.ir.dim import Dim, prod

_TYPES = {
    "f32": "float", "f64": "double", "i64": "int64_t", "i32": "int32_t", "i16": "int16_t",
    "i8": "int8_t", "u16": "uint16_t", "u8": "uint8_t", "bool": "bool", "f16": "_Float16",
    "bf16": "uint16_t",
}  # fmt: skip
_OPERATORS = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "rem": "%", "and": "&", "or": "|", "xor": "^",
    "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=",
}  # fmt: skip
_LIBRARY = {
    "fma": "fma", "abs": "fabs", "sqrt": "sqrt", "copysign": "copysign", "ldexp": "ldexp",
    "rint": "rint", "floor": "floor", "ceil": "ceil", "trunc": "trunc",
}  # fmt: skip
_HEAD = """\
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

struct nir_ctx { void *scratch; };
"""


def print_c(kernel: LoopKernel, name: str = "k") -> str:
    """The kernel as a C function ``name`` with the signature of kernels/cpu/nir_kernel.h."""
    return _Printer(kernel).run(name)


class _Printer:
    def __init__(self, kernel: LoopKernel) -> None:
        self.k = kernel
        self.lines: list[str] = []
        self.depth = 1
        self.casts: set[tuple[str, str]] = set()

    def run(self, name: str) -> str:
        k = self.k
        for i, b in enumerate(k.buffers):
            const = "const " if b.kind == "operand" else ""
            self.line(f"{const}{_TYPES[b.dtype]} *b{i} = ptrs[{i}];  // {b.kind} {b.index}")
            self.line(f"(void)b{i};")
        for i, d in enumerate(k.dims):
            self.line(f"const int64_t d{i} = dims[{i}];  // {d}")
            self.line(f"(void)d{i};")
        self.line("(void)ctx, (void)dims, (void)c0, (void)c1;")
        self.line("if (r0 >= r1) return 0;")
        if k.col_grain:
            self.line("if (c0 >= c1) return 0;")
        ids = range(len(k.nodes))
        self.compute(n for n in ids if not k.level[n] and n not in k.after_reduce)
        self.open("for (int64_t r = r0; r < r1; ++r)")
        if k.form == "column":
            self.chunk()
        else:
            self.row()
        self.close()
        self.line("return 0;")
        signature = (
            f"int32_t {name}(struct nir_ctx *ctx, void *const *ptrs, const int64_t *dims, "
            "int64_t r0, int64_t r1,\n          int64_t c0, int64_t c1);"
        )
        casts = [
            f"static inline {_TYPES[b]} bits_{a}_{b}({_TYPES[a]} x) "
            f"{{ {_TYPES[b]} y; memcpy(&y, &x, sizeof y); return y; }}"
            for a, b in sorted(self.casts)
        ]
        body = signature.rstrip(";") + " {"
        return "\n".join([_HEAD, *casts, signature, body, *self.lines, "}"]) + "\n"

    # ---- text ----------------------------------------------------------------------------------

    def line(self, text: str) -> None:
        self.lines.append("  " * self.depth + text)

    def open(self, head: str) -> None:
        self.line(head + " {")
        self.depth += 1

    def close(self) -> None:
        self.depth -= 1
        self.line("}")

    def dim(self, d: Dim) -> str:
        return str(d) if isinstance(d, int) else f"d{self.k.dim(d)}"

    def value_of(self, index: Affine) -> str:
        terms = [f"i{a} * {self.dim(c)}" if c != 1 else f"i{a}" for a, c in index.terms]
        if index.base != 0 or not terms:
            terms.append(self.dim(index.base))
        return " + ".join(terms)

    def decompose(self, linear: str, axes: range, sizes: Sequence[Dim]) -> None:
        """Declare the axes' indices from a row-major number."""
        rest = linear
        parts = []
        for a, size in reversed(list(zip(axes, sizes, strict=True))[1:]):
            parts.append(f"const int64_t i{a} = {rest} % {self.dim(size)};")
            rest = f"({rest} / {self.dim(size)})"
        if sizes:
            parts.append(f"const int64_t i{axes[0]} = {rest};")
        for text in parts:
            self.line(text)
        for a in axes:
            self.line(f"(void)i{a};")

    # ---- expressions ---------------------------------------------------------------------------

    def compute(self, ids: Iterable[int]) -> None:
        """Declare the values of nodes, in order."""
        for n in sorted(ids):
            node = self.k.nodes[n]
            if node.op in ("const", "reduce"):
                continue
            self.line(f"const {_TYPES[node.dtype]} v{n} = {self.expression(node)};")
            self.line(f"(void)v{n};")

    def use(self, n: int) -> str:
        node = self.k.nodes[n]
        return self.literal(node) if node.op == "const" else f"v{n}"

    def literal(self, node: Node) -> str:
        return number(node.dtype, constant_value(node))

    def expression(self, node: Node) -> str:
        t = _TYPES[node.dtype]
        args = [self.use(a) for a in node.args]
        source = self.k.nodes[node.args[0]].dtype if node.args else node.dtype
        match node.op:
            case "load":
                return f"b{node.buffer}[{self.value_of(node.offset)}]"
            case "index":
                return self.value_of(node.offset)
            case "size":
                return self.dim(node.attr)
            case "select":
                return f"{args[0]} ? {args[1]} : {args[2]}"
            case "convert":
                return f"({t}){args[0]}"
            case "bitcast":
                self.casts.add((source, node.dtype))
                return f"bits_{source}_{node.dtype}({args[0]})"
            case "max" | "min":
                return extreme(node.op, node.dtype, *args)
        return operation(node.op, node.dtype, source, args)

    # ---- rows ----------------------------------------------------------------------------------

    def row(self) -> None:
        k = self.k
        ids = range(len(k.nodes))
        self.decompose("r", k.axes(ROW), k.row_sizes)
        fixed = {n for n in ids if not k.level[n] and n not in k.after_reduce}
        on_rows = [n for n in ids if not k.level[n] & (OUTER | INNER) and n not in fixed]
        done: set[int] = set()
        for s, stage in enumerate(k.stages):
            now = [n for n in on_rows if k.ready[n] == s]
            self.compute(now)
            done.update(now)
            if stage.stores or stage.reduces:
                self.stage(stage)
        self.compute(n for n in on_rows if n not in done)
        for st in k.stores:
            if st.per_row:
                self.line(f"b{st.buffer}[r] = {self.use(st.node)};")

    def accumulators(self, n: int, count: int) -> None:
        node = self.k.nodes[n]
        t = _TYPES[node.dtype]
        start = number(node.dtype, reduction_identity(str(node.attr), node.dtype))
        self.line(f"{t} s{n}[{count}];")
        self.line(f"for (int j = 0; j < {count}; ++j) s{n}[j] = {start};")

    def stage(self, stage: Stage) -> None:
        """One pass over the columns, recomputing what earlier passes knew."""
        k = self.k
        for n in stage.reduces:
            self.accumulators(n, LANES * k.unroll)
        if k.outer_sizes:
            self.open(f"for (int64_t q = 0; q < {self.dim(prod(k.outer_sizes))}; ++q)")
            self.decompose("q", k.axes(OUTER), k.outer_sizes)
        first, last = ("c0", "c1") if k.col_grain else ("0", self.dim(k.width))
        piece = LANES * k.unroll
        self.open(f"for (int64_t c = {first}; c < {last}; ++c)")
        self.line(f"const int64_t i{k.inner} = c;")
        self.line(f"(void)i{k.inner};")
        roots = [st.node for st in stage.stores] + [k.nodes[n].args[0] for n in stage.reduces]
        self.compute(self.on_columns(roots))
        column = f"q * {self.dim(k.width)} + c" if k.outer_sizes else "c"
        place = f"r * {self.dim(k.columns)} + {column}" if k.row_sizes else column
        for st in stage.stores:
            self.line(f"b{st.buffer}[{place}] = {self.use(st.node)};")
        for n in stage.reduces:
            node = k.nodes[n]
            lane = f"(c < {last} / {piece} * {piece} ? c % {piece} : c % {LANES})"
            self.accumulate(n, f"s{n}[{lane}]", self.use(node.args[0]))
        self.close()
        if k.outer_sizes:
            self.close()
        for n in stage.reduces:
            self.join(n, k.unroll)

    def on_columns(self, roots: Iterable[int]) -> set[int]:
        """The nodes that vary with columns below ``roots``."""
        k = self.k
        found: set[int] = set()
        stack = list(roots)
        while stack:
            n = stack.pop()
            if n not in found and k.level[n] & (OUTER | INNER):
                found.add(n)
                stack.extend(k.nodes[n].args)
        return found

    def accumulate(self, n: int, to: str, value: str) -> None:
        node = self.k.nodes[n]
        self.line(f"{to} = {combined(str(node.attr), node.dtype, value, to)};")

    def join(self, n: int, unroll: int) -> None:
        """Accumulators in pairs, then halves of the lanes."""
        node = self.k.nodes[n]
        op, dtype = str(node.attr), node.dtype
        for a, b in pair_order(unroll):
            x, y = f"s{n}[{a * LANES} + j]", f"s{n}[{b * LANES} + j]"
            self.line(f"for (int j = 0; j < {LANES}; ++j) {x} = {combined(op, dtype, x, y)};")
        self.open(f"for (int h = {LANES // 2}; h > 0; h /= 2)")
        x, y = f"s{n}[j]", f"s{n}[h + j]"
        self.line(f"for (int j = 0; j < h; ++j) {x} = {combined(op, dtype, x, y)};")
        self.close()
        self.line(f"const {_TYPES[dtype]} v{n} = s{n}[0];")

    # ---- columns -------------------------------------------------------------------------------

    def chunk(self) -> None:
        k = self.k
        ids = range(len(k.nodes))
        rest = "r"
        for a, size in reversed(list(zip(k.axes(ROW), k.row_sizes, strict=True))):
            # A full reduction has one chunk: its rows are outer columns alone.
            alone = a == 0 and k.chunk is None
            self.line(f"const int64_t i{a} = {rest}{'' if alone else f' % {self.dim(size)}'};")
            self.line(f"(void)i{a};")
            rest = f"({rest} / {self.dim(size)})" if not alone else "0"
        first, last = "0", self.dim(k.lead_rows)
        if k.chunk is not None:
            self.line(f"const int64_t l0 = {rest} * {k.chunk};")
            self.line(f"const int64_t l1 = l0 + {k.chunk} < {last} ? l0 + {k.chunk} : {last};")
            first, last = "l0", "l1"
        reduces = [n for n in ids if k.nodes[n].op == "reduce"]
        before = [n for n in ids if not k.level[n] & LEAD and n not in k.after_reduce]
        fixed = {n for n in ids if not k.level[n] and n not in k.after_reduce}
        self.compute(n for n in before if not k.level[n] & INNER and n not in fixed)
        left, right = ("c0", "c1") if k.col_grain else ("0", self.dim(k.width))
        self.open(f"for (int64_t c = {left}; c < {right}; ++c)")
        self.line(f"const int64_t i{k.inner} = c;")
        self.line(f"(void)i{k.inner};")
        self.compute(n for n in before if k.level[n] & INNER)
        for n in reduces:
            self.accumulators(n, k.row_unroll)
        self.open(f"for (int64_t l = {first}; l < {last}; ++l)")
        self.decompose("l", k.axes(LEAD), k.lead_sizes)
        self.compute(n for n in ids if k.level[n] & LEAD and n not in k.after_reduce)
        u = k.row_unroll
        whole = f"{first} + ({last} - {first}) / {u} * {u}"
        phase = f"l < {whole} ? (l - {first}) % {u} : 0" if u > 1 else "0"
        for n in reduces:
            to = f"s{n}[{phase}]"
            node = k.nodes[n]
            self.line(f"{to} = {combined(str(node.attr), node.dtype, to, self.use(node.args[0]))};")
        self.close()
        for n in reduces:
            node = k.nodes[n]
            for a, b in pair_order(u):
                x, y = f"s{n}[{a}]", f"s{n}[{b}]"
                self.line(f"{x} = {combined(str(node.attr), node.dtype, x, y)};")
            self.line(f"const {_TYPES[node.dtype]} v{n} = s{n}[0];")
        self.compute(k.after_reduce)
        rows = k.row_sizes or k.chunk is not None
        place = f"r * {self.dim(k.width)} + c" if rows else "c"
        for st in k.stores:
            self.line(f"b{st.buffer}[{place}] = {self.use(st.node)};")
        self.close()


def pair_order(count: int) -> list[tuple[int, int]]:
    """(into, from) steps that join ``count`` accumulators as the LLVM printer does."""
    steps, left = [], list(range(count))
    while len(left) > 1:
        pairs = list(zip(left[::2], left[1::2], strict=False))
        steps.extend(pairs)
        left = [a for a, _ in pairs] + ([left[-1]] if len(left) % 2 else [])
    return steps


def number(dtype: str, value: float | int) -> str:
    """A C literal with exactly this value."""
    if dtype in FLOATS:
        if math.isnan(value):
            return f"({_TYPES[dtype]})NAN"
        if math.isinf(value):
            return f"({_TYPES[dtype]}){'-' if value < 0 else ''}INFINITY"
        return f"({_TYPES[dtype]}){float(value).hex()}"
    if dtype == "bool":
        return scalar_literal(dtype, value)
    if value == int_range("i64")[0]:
        return "INT64_MIN"
    return f"({_TYPES[dtype]}){int(value)}" + ("LL" if int_bits(dtype) == 64 else "")


def combined(op: str, dtype: str, a: str, b: str) -> str:
    """a and b joined by a reduction."""
    name = COMBINE[op]
    if name in ("max", "min"):
        return extreme(name, dtype, a, b)
    return operation(name, dtype, dtype, [a, b])


def extreme(op: str, dtype: str, a: str, b: str) -> str:
    if dtype == "bool":
        return f"{a} {'|' if op == 'max' else '&'} {b}"
    better = f"{a} {'>' if op == 'max' else '<'} {b} ? {a} : {b}"
    return f"{a} != {a} ? {a} : ({better})" if dtype in FLOATS else better


def operation(op: str, dtype: str, source: str, args: Sequence[str]) -> str:
    """A primitive of C values; integers wrap."""
    t = _TYPES[dtype]
    if op in COMPARISONS:
        return f"{args[0]} {_OPERATORS[op]} {args[1]}"
    if dtype in FLOATS:
        if op in _LIBRARY:
            suffix = "f" if dtype == "f32" else ""
            last = [f"(int){args[1]}"] if op == "ldexp" else args[1:]
            return f"{_LIBRARY[op]}{suffix}({', '.join([args[0], *last])})"
        return f"-{args[0]}" if op == "neg" else f"{args[0]} {_OPERATORS[op]} {args[1]}"
    if dtype == "bool":
        return f"!{args[0]}" if op == "not" else f"{args[0]} {_OPERATORS[op]} {args[1]}"
    # Unsigned arithmetic wraps where signed overflow is undefined.
    u = f"uint{int_bits(dtype)}_t"
    match op:
        case "neg":
            return f"({t})(({u})0 - ({u}){args[0]})"
        case "not":
            return f"({t})~{args[0]}"
        case "mul" if int_bits(dtype) < 32:
            return f"({t})((uint32_t){args[0]} * (uint32_t){args[1]})"
        case "add" | "sub" | "mul":
            return f"({t})(({u}){args[0]} {_OPERATORS[op]} ({u}){args[1]})"
        case "shl":
            return f"({t})(({u}){args[0]} << {args[1]})"
        case "lshr":
            return f"({t})(({u}){args[0]} >> {args[1]})"
        case "shr":
            return f"({t})({args[0]} >> {args[1]})"
    return f"({t})({args[0]} {_OPERATORS[op]} {args[1]})"
