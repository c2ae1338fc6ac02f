"""Scalar expressions of a loop: a table of nodes, equal ones shared.

A node is one value for each point of the iteration space: an element of a buffer, a constant, an
index, or an operation on other nodes. Operations are the primitives that every printer knows;
`nir.codegen.expand` builds the ops of the IR, transcendentals included, from them:

    float     add sub mul div fma neg abs sqrt rint floor ceil trunc copysign ldexp
    integer   add sub mul neg and or xor not shl shr lshr div rem   (div and rem: of safe operands)
    bool      and or xor not
    all       max min (nan wins) eq ne lt le gt ge select
    convert   convert (as C does, of a float in range), bitcast

The half types f16 and bf16 are what memory holds: a value of theirs is 16 bits, and is only loaded,
stored, converted (f16), chosen between (select) or taken for its bits (bitcast from and to u16).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from nir.frozen import Frozen
from nir.ir.dim import Dim, symbols

FLOATS = ("f32", "f64")
HALVES = ("f16", "bf16")
INTS = ("i64", "i32", "i16", "u16", "i8", "u8")
UNSIGNED = ("u16", "u8")
ITEMSIZE = {
    "f64": 8, "i64": 8, "f32": 4, "i32": 4, "f16": 2, "bf16": 2, "i16": 2, "u16": 2, "i8": 1,
    "u8": 1, "bool": 1,
}  # fmt: skip
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
_INT_BITS = {"i64": 64, "i32": 32, "i16": 16, "u16": 16, "i8": 8, "u8": 8}


class Affine(Frozen):
    """base + sum of coefficient * axis index; terms sorted by axis, coefficients not 0."""

    base: Dim
    terms: tuple[tuple[int, Dim], ...] = ()

    def coefficient(self, axis: int) -> Dim:
        return dict(self.terms).get(axis, 0)

    def without(self, axis: int) -> Affine:
        return Affine(self.base, tuple(t for t in self.terms if t[0] != axis))

    def only(self, axes: frozenset[int]) -> Affine:
        """The part over ``axes``, without the base."""
        return Affine(0, tuple(t for t in self.terms if t[0] in axes))

    def scaled(self, factor: Dim) -> Affine:
        return affine(self.base * factor, {a: c * factor for a, c in self.terms})

    def plus(self, other: Affine | Dim) -> Affine:
        if not isinstance(other, Affine):
            return Affine(self.base + other, self.terms)
        total = dict(self.terms)
        for a, c in other.terms:
            total[a] = total.get(a, 0) + c
        return affine(self.base + other.base, total)


def affine(base: Dim, terms: dict[int, Dim]) -> Affine:
    return Affine(base, tuple(sorted((a, c) for a, c in terms.items() if c != 0)))


def axis_index(axis: int) -> Affine:
    return Affine(0, ((axis, 1),))


class Node(Frozen):
    """One expression. ``attr`` depends on op:

    load    (buffer, Affine)   an element of a buffer
    const   str                the number, floats in hexadecimal so that -0 and nan stay apart
    size    Dim                a symbolic size, i64
    index   Affine             an index of the space, i64
    reduce  str                sum, prod, max or min of the argument over the reduced axes
    """

    op: str
    dtype: str
    args: tuple[int, ...] = ()
    attr: Any = None

    @property
    def buffer(self) -> int:
        """What a load reads."""
        return int(self.attr[0])

    @property
    def offset(self) -> Affine:
        """Where a load reads, in elements; or the index that an index node is."""
        found = self.attr[1] if self.op == "load" else self.attr
        assert isinstance(found, Affine)
        return found


@dataclass(slots=True)
class Nodes:
    """A table that gives equal nodes one number; arguments precede their users."""

    table: list[Node] = field(default_factory=list)
    numbers: dict[Node, int] = field(default_factory=dict)

    def add(self, node: Node) -> int:
        n = self.numbers.get(node)
        if n is None:
            n = self.numbers[node] = len(self.table)
            self.table.append(node)
        return n

    def __getitem__(self, n: int) -> Node:
        return self.table[n]

    def op(self, name: str, dtype: str, *args: int) -> int:
        return self.add(Node(name, dtype, args))

    def const(self, dtype: str, value: float) -> int:
        return self.add(Node("const", dtype, (), constant_text(dtype, value)))

    def size(self, d: Dim) -> int:
        if symbols(d):
            return self.add(Node("size", "i64", (), d))
        return self.const("i64", int(d))


def constant_text(dtype: str, value: float) -> str:
    """A number in the form that Node.attr has."""
    if dtype in FLOATS:
        return float(value).hex() if math.isfinite(value) else repr(float(value))
    return str(int(value))


def constant_value(node: Node) -> float | int:
    """The number that a const node stands for."""
    text = str(node.attr)
    if node.dtype not in FLOATS:
        return int(text)
    return float(text) if text.lstrip("-") in ("inf", "nan") else float.fromhex(text)


def int_range(dtype: str) -> tuple[int, int]:
    """The smallest and the largest number of an integer dtype."""
    if dtype in UNSIGNED:
        return 0, (1 << _INT_BITS[dtype]) - 1
    half = 1 << (_INT_BITS[dtype] - 1)
    return -half, half - 1


def int_bits(dtype: str) -> int:
    return _INT_BITS[dtype]


def reduction_identity(op: str, dtype: str) -> float | int:
    """The number that a reduction starts from."""
    if op in ("sum", "prod"):
        return int(op == "prod")
    if dtype == "bool":
        return int(op == "min")
    if dtype in FLOATS:
        return -math.inf if op == "max" else math.inf
    return int_range(dtype)[0 if op == "max" else 1]


COMBINE = {"sum": "add", "prod": "mul", "max": "max", "min": "min"}


class E(Frozen):
    """A node with Python's operators, for writing formulas."""

    nodes: Nodes
    n: int

    @property
    def dtype(self) -> str:
        return self.nodes[self.n].dtype

    def of(self, value: E | float) -> E:
        """``value`` as a node of this one's dtype."""
        if isinstance(value, E):
            return value
        return E(self.nodes, self.nodes.const(self.dtype, value))

    def op(self, name: str, *others: E | float, dtype: str = "") -> E:
        args = tuple(self.of(o).n for o in others)
        return E(self.nodes, self.nodes.op(name, dtype or self.dtype, self.n, *args))

    def __add__(self, other: E | float) -> E:
        return self.op("add", other)

    def __sub__(self, other: E | float) -> E:
        return self.op("sub", other)

    def __mul__(self, other: E | float) -> E:
        return self.op("mul", other)

    def __truediv__(self, other: E | float) -> E:
        return self.op("div", other)

    def __rsub__(self, other: float) -> E:
        return self.of(other).op("sub", self)

    def __rtruediv__(self, other: float) -> E:
        return self.of(other).op("div", self)

    def __neg__(self) -> E:
        return self.op("neg")

    def __abs__(self) -> E:
        return self.op("abs")

    def __and__(self, other: E | float) -> E:
        return self.op("and", other)

    def __or__(self, other: E | float) -> E:
        return self.op("or", other)

    def __invert__(self) -> E:
        return self.op("not")

    def __lt__(self, other: E | float) -> E:
        return self.op("lt", other, dtype="bool")

    def __le__(self, other: E | float) -> E:
        return self.op("le", other, dtype="bool")

    def __gt__(self, other: E | float) -> E:
        return self.op("gt", other, dtype="bool")

    def __ge__(self, other: E | float) -> E:
        return self.op("ge", other, dtype="bool")

    def eq(self, other: E | float) -> E:
        return self.op("eq", other, dtype="bool")

    def ne(self, other: E | float) -> E:
        return self.op("ne", other, dtype="bool")

    def is_nan(self) -> E:
        return self.ne(self)

    def fma(self, b: E | float, c: E | float) -> E:
        """self * b + c, rounded once (twice on the plain ISA level)."""
        return self.op("fma", b, c)

    def shl(self, bits: E | int) -> E:
        return self.op("shl", bits)

    def shr(self, bits: E | int) -> E:
        return self.op("shr", bits)

    def convert(self, dtype: str) -> E:
        return self if dtype == self.dtype else self.op("convert", dtype=dtype)

    def bitcast(self, dtype: str) -> E:
        return self.op("bitcast", dtype=dtype)


def select(condition: E, x: E | float, y: E | float) -> E:
    """x where the condition holds, else y; one of the two is a node."""
    like = x if isinstance(x, E) else y
    assert isinstance(like, E)
    a, b = like.of(x), like.of(y)
    return E(like.nodes, like.nodes.op("select", like.dtype, condition.n, a.n, b.n))


def horner(x: E, coefficients: tuple[float, ...]) -> E:
    """The polynomial with these coefficients, highest power first."""
    total = x.of(coefficients[0])
    for c in coefficients[1:]:
        total = total.fma(x, c)
    return total
