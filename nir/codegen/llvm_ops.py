"""Primitives as LLVM IR text, on scalars and on vectors of any number of lanes."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from nir.codegen.nodes import COMPARISONS, FLOATS, ITEMSIZE, UNSIGNED, Node, constant_value
from nir.errors import CodegenError

BASE = {
    "f32": "float", "f64": "double", "f16": "i16", "bf16": "i16", "i64": "i64", "i32": "i32",
    "i16": "i16", "u16": "i16", "i8": "i8", "u8": "i8", "bool": "i1",
}  # fmt: skip
MANGLED = {"float": "f32", "double": "f64"}
_FLOAT_BINARY = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}
_INT_BINARY = {
    "add": "add", "sub": "sub", "mul": "mul", "and": "and", "or": "or", "xor": "xor",
    "shl": "shl", "shr": "ashr", "lshr": "lshr",
}  # fmt: skip
_FLOAT_COMPARE = {"eq": "oeq", "ne": "une", "lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge"}
_INTRINSIC = {"abs": "fabs", "sqrt": "sqrt", "copysign": "copysign"}
_ROUNDING = {"rint": "rint", "floor": "floor", "ceil": "ceil", "trunc": "trunc"}
# Adding and subtracting this rounds a smaller positive number to an integer.
_WHOLE = {"f32": 2.0**23, "f64": 2.0**52}
_EXPONENT = {"f32": (23, 127), "f64": (52, 1023)}


def type_of(dtype: str, lanes: int) -> str:
    return BASE[dtype] if lanes == 1 else f"<{lanes} x {BASE[dtype]}>"


def memory_type(dtype: str, lanes: int) -> str:
    """As type_of, for elements in memory: a bool takes a byte."""
    return type_of("i8" if dtype == "bool" else dtype, lanes)


def mangled(dtype: str, lanes: int) -> str:
    base = BASE[dtype]
    name = MANGLED.get(base, base)
    return name if lanes == 1 else f"v{lanes}{name}"


def scalar_literal(dtype: str, value: float | int) -> str:
    if dtype == "bool":
        return "true" if value else "false"
    if dtype not in FLOATS:
        return str(int(value))
    if dtype == "f32":
        value = struct.unpack("f", struct.pack("f", value))[0]
    return f"0x{struct.unpack('Q', struct.pack('d', value))[0]:016X}"


def literal(dtype: str, value: float | int, lanes: int) -> str:
    text = scalar_literal(dtype, value)
    return text if lanes == 1 else f"splat ({BASE[dtype]} {text})"


@dataclass
class Text:
    """Lines of one function, with fresh names and the declarations that it needs."""

    isa: str
    lines: list[str] = field(default_factory=list)
    declared: dict[str, None] = field(default_factory=dict)
    count: int = 0

    def line(self, text: str) -> None:
        self.lines.append("  " + text)

    def name(self, hint: str = "t") -> str:
        self.count += 1
        return f"%{hint}{self.count}"

    def let(self, text: str, hint: str = "t") -> str:
        """A new name for the value of an instruction."""
        name = self.name(hint)
        self.line(f"{name} = {text}")
        return name

    def call(self, result: str, function: str, args: list[str], hint: str = "t") -> str:
        """A call of an intrinsic; ``args`` are "type value"."""
        types = [_argument_type(a) for a in args]
        self.declared[f"declare {result} @{function}({', '.join(types)})"] = None
        text = f"call {result} @{function}({', '.join(args)})"
        if result == "void":
            self.line(text)
            return ""
        return self.let(text, hint)

    # ---- primitives ----------------------------------------------------------------------------

    def primitive(self, node: Node, source: str, args: list[str], lanes: int) -> str:
        """The value of a node on ``args``; ``source`` is the dtype of the first argument."""
        return self.apply(node.op, node.dtype, source, args, lanes)

    def apply(self, op: str, dtype: str, source: str, args: list[str], lanes: int) -> str:
        t = type_of(dtype, lanes)
        if op in COMPARISONS:
            return self._compare(op, source, args, lanes)
        if op in ("max", "min"):
            return self._extreme(op, dtype, args, lanes)
        if op == "select":
            c = type_of("bool", lanes)
            return self.let(f"select {c} {args[0]}, {t} {args[1]}, {t} {args[2]}", "x")
        if op == "convert":
            return self._convert(dtype, source, args[0], lanes)
        if op == "bitcast":
            return self.let(f"bitcast {type_of(source, lanes)} {args[0]} to {t}", "x")
        if dtype in FLOATS:
            return self._float(op, dtype, args, lanes)
        return self._int(op, dtype, args, lanes)

    def _int(self, op: str, dtype: str, args: list[str], lanes: int) -> str:
        t = type_of(dtype, lanes)
        match op:
            case "neg":
                return self.let(f"sub {t} {literal(dtype, 0, lanes)}, {args[0]}", "x")
            case "not":
                ones = literal(dtype, 1 if dtype == "bool" else -1, lanes)
                return self.let(f"xor {t} {args[0]}, {ones}", "x")
            case "div" | "rem":
                sign = "u" if dtype in UNSIGNED else "s"
                return self.let(f"{sign}{op} {t} {args[0]}, {args[1]}", "x")
        return self.let(f"{_INT_BINARY[op]} {t} {args[0]}, {args[1]}", "x")

    def _float(self, op: str, dtype: str, args: list[str], lanes: int) -> str:
        t, m = type_of(dtype, lanes), mangled(dtype, lanes)
        typed = [f"{t} {a}" for a in args]
        if op in _FLOAT_BINARY:
            return self.let(f"{_FLOAT_BINARY[op]} {t} {args[0]}, {args[1]}", "x")
        if op == "neg":
            return self.let(f"fneg {t} {args[0]}", "x")
        if op == "fma" and self.isa == "plain":
            # Baseline x86 has no fused multiply-add, and llvm.fma would call libm.
            return self._fma(dtype, args, lanes)
        if op == "fma":
            return self.call(t, f"llvm.fma.{m}", typed, "x")
        if op in _INTRINSIC:
            return self.call(t, f"llvm.{_INTRINSIC[op]}.{m}", typed, "x")
        if op in _ROUNDING:
            if self.isa == "plain":
                return self._round_by_addition(op, dtype, args[0], lanes)
            return self.call(t, f"llvm.{_ROUNDING[op]}.{m}", typed, "x")
        if op == "ldexp":
            return self._ldexp(dtype, args, lanes)
        raise CodegenError(f"no LLVM IR for {op} of {dtype}")

    def _round_by_addition(self, op: str, dtype: str, x: str, lanes: int) -> str:
        """Rounding without SSE4.1: (|x| + 2^23) - 2^23, corrected towards the wanted side."""

        def f(o: str, *a: str) -> str:
            return self.apply(o, dtype, dtype, list(a), lanes)

        whole, one = literal(dtype, _WHOLE[dtype], lanes), literal(dtype, 1.0, lanes)
        size = f("abs", x)
        nearest = f("sub", f("add", size, whole), whole)
        if op == "trunc":
            nearest = f("select", f("gt", nearest, size), f("sub", nearest, one), nearest)
        r = f("copysign", nearest, x)
        if op == "floor":
            r = f("select", f("gt", r, x), f("sub", r, one), r)
        if op == "ceil":
            up = f("copysign", f("add", r, one), x)  # -0.3 rounds up to -0
            r = f("select", f("lt", r, x), up, r)
        return f("select", f("lt", size, whole), r, x)

    def _fma(self, dtype: str, args: list[str], lanes: int) -> str:
        """a * b + c with one rounding, by a function of its own: it is long, and used often."""
        width = min(lanes, 16 // ITEMSIZE[dtype])
        t, piece = type_of(dtype, lanes), type_of(dtype, width)
        name = f"fma_{dtype}_{width}"
        body = Text(self.isa)
        out = (body._fma32 if dtype == "f32" else body._fma64)(["%a", "%b", "%c"], width)
        lines = "\n".join([*body.lines, f"  ret {piece} {out}"])
        head = (
            f"define internal {piece} @{name}({piece} %a, {piece} %b, {piece} %c) noinline nounwind"
        )
        self.declared[f"{head} {{\n{lines}\n}}"] = None

        def called(pieces: list[str]) -> str:
            given = ", ".join(f"{piece} {p}" for p in pieces)
            return self.let(f"call {piece} @{name}({given})", "x")

        if width == lanes:
            return called(args)
        results = []
        for first in range(0, lanes, width):
            at = ", ".join(f"i32 {i}" for i in range(first, first + width))
            take = f"<{width} x i32> <{at}>"
            parts = [self.let(f"shufflevector {t} {x}, {t} poison, {take}", "x") for x in args]
            results.append(called(parts))
        while len(results) > 1:
            width *= 2
            half, whole = type_of(dtype, width // 2), ", ".join(f"i32 {i}" for i in range(width))
            pairs = zip(results[::2], results[1::2], strict=True)
            results = [
                self.let(f"shufflevector {half} {x}, {half} {y}, <{width} x i32> <{whole}>", "x")
                for x, y in pairs
            ]
        return results[0]

    def _f64(self, lanes: int) -> Callable[..., str]:
        def f(op: str, *args: str) -> str:
            return self.apply(op, "f64", "f64", list(args), lanes)

        return f

    def _two_sum(self, a: str, b: str, lanes: int) -> tuple[str, str]:
        """a + b and its rounding error, which is a double too (Knuth)."""
        f = self._f64(lanes)
        s = f("add", a, b)
        back = f("sub", s, a)
        return s, f("add", f("sub", a, f("sub", s, back)), f("sub", b, back))

    def _sum_to_odd(self, a: str, b: str, lanes: int) -> str:
        """a + b rounded to odd: its last bit is set whenever the sum is inexact.

        A further rounding to fewer bits then gives what rounding the exact sum gives (Boldo and
        Melquiond, 2008).
        """
        s, error = self._two_sum(a, b, lanes)
        zero, one, it = literal("f64", 0.0, lanes), literal("i64", 1, lanes), type_of("i64", lanes)
        bits = self.let(f"bitcast {type_of('f64', lanes)} {s} to {it}", "x")
        c = type_of("bool", lanes)
        up = self._compare("gt", "f64", [error, zero], lanes)
        down = self._compare("lt", "f64", [error, zero], lanes)
        positive = self._compare("gt", "f64", [s, zero], lanes)
        away = self.let(f"xor {c} {up}, {positive}", "x")  # the exact sum lies nearer to zero
        step = self.let(f"select {c} {away}, {it} {literal('i64', -1, lanes)}, {it} {one}", "x")
        inexact = self.let(f"or {c} {up}, {down}", "x")
        odd = self.let(f"trunc {it} {bits} to {c}", "x")
        moved = self.let(f"add {it} {bits}, {step}", "x")
        kept = self.let(f"select {c} {odd}, {it} {bits}, {it} {moved}", "x")
        bits = self.let(f"select {c} {inexact}, {it} {kept}, {it} {bits}", "x")
        return self.let(f"bitcast {it} {bits} to {type_of('f64', lanes)}", "x")

    def _fma32(self, args: list[str], lanes: int) -> str:
        """a * b + c with one rounding: the product of two floats is exact in double."""
        a, b, c = (self._convert("f64", "f32", x, lanes) for x in args)
        product = self._f64(lanes)("mul", a, b)
        return self._convert("f32", "f64", self._sum_to_odd(product, c, lanes), lanes)

    def _fma64(self, args: list[str], lanes: int) -> str:
        """a * b + c with one rounding, of doubles from 2^-900 to 2^900; beyond, with two."""
        f = self._f64(lanes)
        a, b, addend = args
        high = f("mul", a, b)
        plain = f("add", high, addend)
        # Dekker: halves of 26 bits multiply exactly.
        halves = []
        for x in (a, b):
            scaled = f("mul", x, literal("f64", 134217729.0, lanes))
            top = f("sub", scaled, f("sub", scaled, x))
            halves.append((top, f("sub", x, top)))
        (ah, al), (bh, bl) = halves
        low = f("sub", f("mul", ah, bh), high)
        low = f("add", f("add", low, f("mul", ah, bl)), f("mul", al, bh))
        low = f("add", low, f("mul", al, bl))
        th, tl = self._two_sum(addend, low, lanes)
        vh, vl = self._two_sum(high, th, lanes)
        exact = f("add", vh, self._sum_to_odd(tl, vl, lanes))
        # Not finite, or 0, whose sign only the plain sum has.
        zero, c = literal("f64", 0.0, lanes), type_of("bool", lanes)
        finite = self._compare("eq", "f64", [f("sub", exact, exact), zero], lanes)
        other = self._compare("ne", "f64", [exact, zero], lanes)
        sure = self.let(f"and {c} {finite}, {other}", "x")
        t = type_of("f64", lanes)
        return self.let(f"select {c} {sure}, {t} {exact}, {t} {plain}", "x")

    def _ldexp(self, dtype: str, args: list[str], lanes: int) -> str:
        t, integer = type_of(dtype, lanes), "i32" if dtype == "f32" else "i64"
        it = type_of(integer, lanes)
        if self.isa == "avx512" and dtype == "f32" and lanes == 16:
            # One vscalefps; elsewhere llvm.ldexp calls libm for each lane.
            m = f"llvm.ldexp.{mangled(dtype, lanes)}.{mangled(integer, lanes)}"
            return self.call(t, m, [f"{t} {args[0]}", f"{it} {args[1]}"], "x")
        # Two powers of two, each in range: the first product is exact, the second rounds once.
        bits, bias = _EXPONENT[dtype]
        half = self.let(f"ashr {it} {args[1]}, {literal(integer, 1, lanes)}", "x")
        rest = self.let(f"sub {it} {args[1]}, {half}", "x")
        x = args[0]
        for n in (half, rest):
            biased = self.let(f"add {it} {n}, {literal(integer, bias, lanes)}", "x")
            shifted = self.let(f"shl {it} {biased}, {literal(integer, bits, lanes)}", "x")
            power = self.let(f"bitcast {it} {shifted} to {t}", "x")
            x = self.let(f"fmul {t} {x}, {power}", "x")
        return x

    def _compare(self, op: str, source: str, args: list[str], lanes: int) -> str:
        t = type_of(source, lanes)
        if source in FLOATS:
            return self.let(f"fcmp {_FLOAT_COMPARE[op]} {t} {args[0]}, {args[1]}", "x")
        sign = "" if op in ("eq", "ne") else "u" if source in (*UNSIGNED, "bool") else "s"
        return self.let(f"icmp {sign}{op} {t} {args[0]}, {args[1]}", "x")

    def _extreme(self, op: str, dtype: str, args: list[str], lanes: int) -> str:
        if dtype == "bool":
            return self._int("or" if op == "max" else "and", dtype, args, lanes)
        t, c = type_of(dtype, lanes), type_of("bool", lanes)
        better = self._compare("gt" if op == "max" else "lt", dtype, args, lanes)
        out = self.let(f"select {c} {better}, {t} {args[0]}, {t} {args[1]}", "x")
        if dtype not in FLOATS:
            return out
        # A nan on the right has won already; one on the left has lost its comparison.
        nan = self.let(f"fcmp uno {t} {args[0]}, {args[0]}", "x")
        return self.let(f"select {c} {nan}, {t} {args[0]}, {t} {out}", "x")

    def _convert(self, dtype: str, source: str, x: str, lanes: int) -> str:
        if "f16" in (source, dtype):
            return self._convert_half(dtype, x, lanes)
        a, b = type_of(source, lanes), type_of(dtype, lanes)
        unsigned = source in (*UNSIGNED, "bool")
        if source in FLOATS and dtype in FLOATS:
            how = "fpext" if dtype == "f64" else "fptrunc"
        elif source in FLOATS:
            how = "fptosi"
        elif dtype in FLOATS:
            how = "uitofp" if unsigned else "sitofp"
        elif source != "bool" and ITEMSIZE[source] == ITEMSIZE[dtype]:
            return x
        elif source != "bool" and ITEMSIZE[source] > ITEMSIZE[dtype]:
            how = "trunc"
        else:
            how = "zext" if unsigned else "sext"
        return self.let(f"{how} {a} {x} to {b}", "x")

    def _convert_half(self, dtype: str, x: str, lanes: int) -> str:
        """f16 to f32 or back, rounded to nearest even."""
        if self.isa == "plain":
            # Baseline x86 has no conversion, and LLVM would call the compiler's library.
            return (self._narrowed if dtype == "f16" else self._widened)(x, lanes)
        half = "half" if lanes == 1 else f"<{lanes} x half>"
        bits, wide = type_of("f16", lanes), type_of("f32", lanes)
        if dtype == "f16":
            rounded = self.let(f"fptrunc {wide} {x} to {half}", "x")
            return self.let(f"bitcast {half} {rounded} to {bits}", "x")
        x = self.let(f"bitcast {bits} {x} to {half}", "x")
        return self.let(f"fpext {half} {x} to {wide}", "x")

    def _i32(self, lanes: int) -> Callable[..., str]:
        def f(op: str, x: str, y: str | int) -> str:
            other = literal("i32", y, lanes) if isinstance(y, int) else y
            return self.apply(op, "i32", "i32", [x, other], lanes)

        return f

    def _widened(self, x: str, lanes: int) -> str:
        """f16 to f32 in integers: the exponent is moved, a subnormal is its bits times 2^-24."""
        f, it, t = self._i32(lanes), type_of("i32", lanes), type_of("f32", lanes)
        bits = self._convert("i32", "u16", x, lanes)
        size = f("and", bits, 0x7FFF)
        moved = f("add", f("shl", size, 13), 112 << 23)
        special = f("add", moved, 112 << 23)  # inf and nan: the exponent of all ones
        normal = self.apply("select", "i32", "bool", [f("ge", size, 0x7C00), special, moved], lanes)
        small = self._convert("f32", "i32", size, lanes)
        small = self.let(f"fmul {t} {small}, {literal('f32', 2.0**-24, lanes)}", "x")
        small = self.let(f"bitcast {t} {small} to {it}", "x")
        found = self.apply("select", "i32", "bool", [f("lt", size, 0x400), small, normal], lanes)
        found = f("or", found, f("shl", f("and", bits, 0x8000), 16))
        return self.let(f"bitcast {it} {found} to {t}", "x")

    def _narrowed(self, x: str, lanes: int) -> str:
        """f32 to f16 in integers; the sum of a small number and 0.5 rounds it to the last bit."""
        f, it, t = self._i32(lanes), type_of("i32", lanes), type_of("f32", lanes)

        def choose(condition: str, a: str | int, b: str) -> str:
            a = literal("i32", a, lanes) if isinstance(a, int) else a
            return self.apply("select", "i32", "bool", [condition, a, b], lanes)

        bits = self.let(f"bitcast {t} {x} to {it}", "x")
        size = f("and", bits, 0x7FFFFFFF)
        odd = f("and", f("lshr", size, 13), 1)
        normal = f("sub", f("lshr", f("add", f("add", size, 0xFFF), odd), 13), 112 << 10)
        number = self.let(f"bitcast {it} {size} to {t}", "x")
        summed = self.let(f"fadd {t} {number}, {literal('f32', 0.5, lanes)}", "x")
        summed = self.let(f"bitcast {t} {summed} to {it}", "x")
        small = f("sub", summed, 0x3F000000)
        out = choose(f("lt", size, 0x38800000), small, normal)  # below 2^-14
        out = choose(f("ge", size, 0x477FF000), 0x7C00, out)  # from 65520 on
        out = choose(f("gt", size, 0x7F800000), 0x7E00, out)
        out = f("or", out, f("and", f("lshr", bits, 16), 0x8000))
        return self._convert("u16", "i32", out, lanes)

    def splat(self, dtype: str, x: str, lanes: int) -> str:
        t = type_of(dtype, lanes)
        first = self.let(f"insertelement {t} poison, {BASE[dtype]} {x}, i64 0", "s")
        return self.let(
            f"shufflevector {t} {first}, {t} poison, <{lanes} x i32> zeroinitializer", "s"
        )

    def constant(self, node: Node, lanes: int) -> str:
        return literal(node.dtype, constant_value(node), lanes)


def _argument_type(arg: str) -> str:
    """The type of "type [attributes] value"."""
    if arg.startswith("<"):
        return arg[: arg.index(">") + 1]
    return arg.split(" ", 1)[0]
