"""The binary form of a `Program`: written and read here, read and checked by program.cc.

Little-endian throughout. u8, u32, u64 and i64 are integers; `str` is a u32 index into the string
table, `dim` a u32 index into the polynomial table; `[x]` is a u32 count and that many x.

    header      "NIRPROG\\0", version u32, CRC-32 of all that follows u32, size of it all u64
    strings     [count u32 and that many bytes of UTF-8]
    name        str
    symbols     [str]
    polynomials [[step]]: 0 constant i64 | 1 symbol u32 | 2 add | 3 multiply | 4 floor-divide
    inputs      [name str, dtype u8, layout str, device str, shape [dim], nbytes dim]
    outputs     the same
    solve       [symbol u32, input u32, axis u32, scale i64, offset i64]:
                symbol = (size of that axis - offset) / scale
    constants   [size u64, CRC-32 u32]; their bytes lie elsewhere
    kernels     [name str, source u8: 0 of kernels/cpu | 1 generated | 2 of the host process]
    buffers     [kind u8: 0 input 1 output 2 constant 3 arena 4 before 5 after 6 lines, index u32,
                offset dim, nbytes dim, moves [loop u32, stride dim]]
    calls       [kernel u32, args [u32], dims [dim], rows dim, cols dim, row grain i64,
                col grain i64, even u8, scratch dim, work dim,
                epilogue u8, and if it is 1: kernel u32, args [u32], dims [dim],
                op str, locations [file str, line u32, of a gradient u8, share u32],
                flops dim, traffic dim, live dim]
    donations   [input u32, output u32]
    arena       dim
    controls    [kind u8: 0 counted loop | 1 loop with a predicate | 2 branch | 3 bands,
                first call u32, second part u32, end u32, and then
                0: trips dim, reverse u8
                1: limit u8, and if it is 1: trips dim; predicate u32
                2: predicate u32
                3: lines i64, stages [height i64, width i64, stride i64, above i64, extent i64,
                   kept i64, bytes i64]]
    carries     [loop u32, init u32, result u32, spare u32, nbytes dim]

Controls nest (see nir.ir.program); buffers, carries and predicates are indices into the tables
above.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TypeVar

from nir.errors import PackageError, ShapeError
from nir.ir.dim import Dim, FloorDiv, Poly, floordiv, symbol, symbols
from nir.ir.location import Location
from nir.ir.program import (
    Bands,
    Branch,
    Buffer,
    Call,
    Carry,
    Donation,
    Epilogue,
    Loop,
    Move,
    Program,
    Stage,
)
from nir.ir.types import DTYPES, TensorType

MAGIC = b"NIRPROG\0"
VERSION = 4
DTYPE_CODES = ("f64", "f32", "f16", "bf16", "i64", "i32", "i16", "i8", "u8", "bool")
BUFFER_KINDS = ("input", "output", "const", "arena", "before", "after", "lines")
BUILTIN, GENERATED, HOST = range(3)
_CONST, _SYMBOL, _ADD, _MUL, _FLOORDIV = range(5)
_COUNTED, _WHILE, _BRANCH, _BANDS = range(4)
_HEADER = struct.Struct("<8sIIQ")

T = TypeVar("T")


def encode(program: Program, hosts: Collection[str] = ()) -> bytes:
    """The binary form of ``program``, without constants' bytes and code.

    Kernels named in ``hosts`` are functions of this process. Raises ShapeError for a symbol that no
    input's shape gives.
    """
    return _Writer(program, frozenset(hosts)).finish()


class _Table:
    """Entries numbered in the order of their first use."""

    def __init__(self) -> None:
        self.index: dict[object, int] = {}

    def __call__(self, entry: object) -> int:
        return self.index.setdefault(entry, len(self.index))


class _Writer:
    def __init__(self, program: Program, hosts: frozenset[str]) -> None:
        self.p = program
        self.hosts = hosts
        self.strings, self.symbols, self.polys, self.kernels = (_Table() for _ in range(4))
        self.out = bytearray()

    def finish(self) -> bytes:
        p = self.p
        # Tables come first in the file and are known last: the body is written, then its head.
        self.out = body = bytearray()
        self._types(p.inputs, p.input_names, "input")
        self._types(p.outputs, p.output_names, "output")
        types, self.out = self.out, bytearray()
        self._list(p.buffers, self._buffer)
        self._list(p.calls, self._call)
        self._list(p.donations, lambda d: self._pack("<II", d.input, d.output))
        self._dim(p.arena)
        self._list(p.controls, self._control)
        self._list(p.carries, self._carry)
        body, self.out = self.out, bytearray()
        self._solve()
        self._list(p.constants, lambda c: self._pack("<QI", len(c), zlib.crc32(c)))
        self._list(self.kernels.index, self._kernel)
        middle, self.out = self.out, bytearray()
        self._pack("<I", self.strings(p.name))
        names = list(self.symbols.index)
        self._list(names, lambda s: self._pack("<I", self.strings(s)))
        self._list(self.polys.index, self._poly)
        head, self.out = self.out, bytearray()
        self._list(self.strings.index, self._text)
        payload = bytes(self.out + head + types + middle + body)
        size = _HEADER.size + len(payload)
        return _HEADER.pack(MAGIC, VERSION, zlib.crc32(payload), size) + payload

    def _pack(self, form: str, *values: int) -> None:
        self.out += struct.pack(form, *values)

    def _list(self, items: Collection[T], write: Callable[[T], None]) -> None:
        self._pack("<I", len(items))
        for item in items:
            write(item)

    def _text(self, text: object) -> None:
        data = str(text).encode()
        self._pack("<I", len(data))
        self.out += data

    def _string(self, text: str) -> None:
        self._pack("<I", self.strings(text))

    def _dim(self, d: Dim) -> None:
        for name in sorted(symbols(d)):
            self.symbols(name)
        self._pack("<I", self.polys(d))

    def _poly(self, d: object) -> None:
        assert isinstance(d, int | Poly)
        steps = list(_steps(d, self.symbols))
        self._list(steps, lambda step: self.out.extend(step))

    def _types(self, types: Sequence[TensorType], names: Sequence[str], what: str) -> None:
        names = names or [f"{what}{i}" for i in range(len(types))]
        self._pack("<I", len(types))
        for name, t in zip(names, types, strict=True):
            self._string(name)
            self._pack("<B", DTYPE_CODES.index(t.dtype.name))
            self._string(t.layout)
            self._string(t.device)
            self._list(t.shape, self._dim)
            self._dim(t.nbytes)

    def _kernel(self, name: object) -> None:
        assert isinstance(name, str)
        source = HOST if name in self.hosts else GENERATED if name in self.p.codes else BUILTIN
        self._string(name)
        self._pack("<B", source)

    def _buffer(self, b: Buffer) -> None:
        self._pack("<BI", BUFFER_KINDS.index(b.kind), b.index)
        self._dim(b.offset)
        self._dim(b.nbytes)
        self._list(b.moves, self._move)

    def _move(self, m: Move) -> None:
        self._pack("<I", m.loop)
        self._dim(m.stride)

    def _control(self, c: Loop | Branch | Bands) -> None:
        match c:
            case Branch(first, other, end, predicate):
                self._pack("<BIIII", _BRANCH, first, other, end, predicate)
            case Bands(first, end, lines, stages):
                self._pack("<BIIIq", _BANDS, first, first, end, lines)
                self._list(stages, self._stage)
            case Loop(first, body, end, trips, None, reverse):
                assert trips is not None
                self._pack("<BIII", _COUNTED, first, body, end)
                self._dim(trips)
                self._pack("<B", reverse)
            case Loop(first, body, end, trips, int(predicate)):
                self._pack("<BIII", _WHILE, first, body, end)
                self._pack("<B", trips is not None)
                if trips is not None:
                    self._dim(trips)
                self._pack("<I", predicate)

    def _stage(self, s: Stage) -> None:
        self._pack("<7q", s.height, s.width, s.stride, s.above, s.extent, s.kept, s.bytes)

    def _carry(self, c: Carry) -> None:
        self._pack("<IIII", c.loop, c.init, c.result, c.spare)
        self._dim(c.nbytes)

    def _call(self, c: Call) -> None:
        self._site(c)
        self._dim(c.rows)
        self._dim(c.cols)
        self._pack("<qqB", c.row_grain, c.col_grain, c.even)
        self._dim(c.scratch)
        self._dim(c.work)
        self._pack("<B", c.epilogue is not None)
        if c.epilogue is not None:
            self._site(c.epilogue)
        self._string(c.op)
        shares = dict(c.shares)
        self._list(sorted(c.locs), lambda loc: self._location(loc, shares.get(loc, 0)))
        self._dim(c.flops)
        self._dim(c.traffic)
        self._dim(c.live)

    def _site(self, c: Call | Epilogue) -> None:
        self._pack("<I", self.kernels(c.kernel))
        self._list(c.args, lambda a: self._pack("<I", a))
        self._list(c.dims, self._dim)

    def _location(self, loc: Location, share: int) -> None:
        self._string(loc.file)
        self._pack("<IBI", loc.line, loc.backward, share)

    def _solve(self) -> None:
        found: dict[str, tuple[int, int, int, int]] = {}
        axes = [
            (d, i, axis)
            for i, t in enumerate(self.p.inputs)
            for axis, d in enumerate(t.shape)
            if isinstance(d, Poly)
        ]
        # A plain `B` is better than `2*B+1`: messages then speak of the axis that names it.
        for d, i, axis in sorted(axes, key=lambda a: len(a[0].terms) + abs(a[0].terms[0][1])):
            linear = _linear(d)
            if linear is not None:
                found.setdefault(linear[0], (i, axis, *linear[1:]))
        for name in self.symbols.index:
            if name not in found:
                types = ", ".join(map(str, self.p.inputs)) or "none"
                raise ShapeError(
                    f"{self.p.name}: no input's shape gives the size {name}: expected an axis of "
                    f"size {name} or a*{name}+b among {types}"
                )
        rows = [(self.symbols(name), *found[str(name)]) for name in self.symbols.index]
        self._list(rows, lambda row: self._pack("<IIIqq", *row))


def _linear(d: Poly) -> tuple[str, int, int] | None:
    """(name, scale, offset) of scale*name + offset, else None."""
    offset = 0
    (monomial, scale), *rest = d.terms
    if rest:
        if len(rest) > 1 or rest[0][0]:
            return None
        offset = rest[0][1]
    if len(monomial) != 1 or monomial[0][1] != 1 or not isinstance(monomial[0][0], str):
        return None
    return monomial[0][0], scale, offset


def _steps(d: Dim, number: Callable[[object], int]) -> Iterator[bytes]:
    """``d`` in postfix."""
    if isinstance(d, int):
        yield struct.pack("<Bq", _CONST, d)
        return
    for t, (monomial, coefficient) in enumerate(d.terms):
        factors: list[Iterable[bytes]] = []
        if coefficient != 1 or not monomial:
            factors.append([struct.pack("<Bq", _CONST, coefficient)])
        for atom, power in monomial:
            factors += [list(_atom_steps(atom, number))] * power
        for f, steps in enumerate(factors):
            yield from steps
            if f:
                yield bytes([_MUL])
        if t:
            yield bytes([_ADD])


def _atom_steps(atom: str | FloorDiv, number: Callable[[object], int]) -> Iterator[bytes]:
    if isinstance(atom, str):
        yield struct.pack("<BI", _SYMBOL, number(atom))
    else:
        yield from _steps(atom.num, number)
        yield from _steps(atom.den, number)
        yield bytes([_FLOORDIV])


def kernel_names(data: bytes) -> tuple[str, ...]:
    """The names of an encoded program's kernels, by their numbers."""
    return _decoder(data).head()


# ---- reading -------------------------------------------------------------------------------------


def decode(data: bytes, constants: Sequence[bytes] = ()) -> Program:
    """The Program that `encode` wrote, with ``constants`` and without code.

    For inspection: the executor reads the encoding itself. Raises PackageError if ``data`` is
    damaged.
    """
    try:
        return _decoder(data).program(constants)
    except (struct.error, IndexError, ZeroDivisionError, ValueError) as e:
        raise PackageError(f"damaged program: {e}") from None


def _decoder(data: bytes) -> _Decoder:
    payload = data[_HEADER.size :]
    if len(data) < _HEADER.size:
        raise PackageError("damaged program: it ends early")
    magic, version, crc, size = _HEADER.unpack_from(data)
    if magic != MAGIC or version != VERSION or size != len(data) or zlib.crc32(payload) != crc:
        raise PackageError("damaged program: header or checksum")
    return _Decoder(payload)


class _Decoder:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, form: str) -> tuple[int, ...]:
        out = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return out

    def u32(self) -> int:
        return self.take("<I")[0]

    def many(self, read: Callable[[], T]) -> tuple[T, ...]:
        return tuple(read() for _ in range(self.u32()))

    def head(self) -> tuple[str, ...]:
        """Reads up to the kernels, and gives their names."""
        self.strings = self.many(self.text)
        self.name = self.string()
        self.symbols = self.many(self.string)
        self.polys = self.many(self.poly)
        self.inputs = self.many(self.type)
        self.outputs = self.many(self.type)
        self.many(lambda: self.take("<IIIqq"))
        self.many(lambda: self.take("<QI"))
        self.kernels = self.many(lambda: (self.string(), self.take("<B"))[0])
        return self.kernels

    def program(self, constants: Sequence[bytes]) -> Program:
        self.head()
        buffers = self.many(self.buffer)
        calls = self.many(self.call)
        donations = self.many(lambda: Donation(*self.take("<II")))
        arena = self.dim()
        controls = self.many(self.control)
        return Program(
            self.name,
            tuple(t for _, t in self.inputs),
            tuple(t for _, t in self.outputs),
            buffers,
            calls,
            arena,
            constants=tuple(constants),
            donations=donations,
            input_names=tuple(n for n, _ in self.inputs),
            output_names=tuple(n for n, _ in self.outputs),
            controls=controls,
            carries=self.many(self.carry),
        )

    def text(self) -> str:
        n = self.u32()
        self.at += n
        return self.data[self.at - n : self.at].decode()

    def string(self) -> str:
        return self.strings[self.u32()]

    def dim(self) -> Dim:
        return self.polys[self.u32()]

    def poly(self) -> Dim:
        stack: list[Dim] = []
        for _ in range(self.u32()):
            match self.take("<B")[0]:
                case 0:
                    stack.append(self.take("<q")[0])
                case 1:
                    stack.append(symbol(self.symbols[self.u32()]))
                case op:
                    b, a = stack.pop(), stack.pop()
                    stack.append(a + b if op == _ADD else a * b if op == _MUL else floordiv(a, b))
        (out,) = stack
        return out

    def type(self) -> tuple[str, TensorType]:
        name = self.string()
        dtype = DTYPES[DTYPE_CODES[self.take("<B")[0]]]
        layout, device = self.string(), self.string()
        shape = self.many(self.dim)
        self.dim()
        return name, TensorType(dtype, shape, layout, device)

    def buffer(self) -> Buffer:
        kind, index = self.take("<BI")
        offset, nbytes = self.dim(), self.dim()
        moves = self.many(lambda: Move(self.u32(), self.dim()))
        return Buffer(BUFFER_KINDS[kind], index, offset, nbytes, moves)  # type: ignore[arg-type]

    def carry(self) -> Carry:
        loop, init, result, spare = self.take("<IIII")
        return Carry(loop, init, result, spare, self.dim())

    def control(self) -> Loop | Branch | Bands:
        kind, first, second, end = self.take("<BIII")
        match kind:
            case 0:
                trips = self.dim()
                return Loop(first, second, end, trips, None, bool(self.take("<B")[0]))
            case 1:
                limit = self.dim() if self.take("<B")[0] else None
                return Loop(first, second, end, limit, self.u32())
            case 2:
                return Branch(first, second, end, self.u32())
            case 3:
                lines = self.take("<q")[0]
                return Bands(first, end, lines, self.many(lambda: Stage(*self.take("<7q"))))
        raise ValueError(f"control {kind}")

    def call(self) -> Call:
        kernel, args, dims = self.site()
        rows, cols = self.dim(), self.dim()
        row_grain, col_grain, even = self.take("<qqB")
        scratch, work = self.dim(), self.dim()
        epilogue = Epilogue(*self.site()) if self.take("<B")[0] else None
        op = self.string()
        shares = self.many(self.location)
        locs = frozenset(loc for loc, _ in shares)
        shares = shares if any(share for _, share in shares) else ()
        flops, traffic, live = self.dim(), self.dim(), self.dim()
        return Call(
            kernel, args, dims, rows, cols, row_grain, col_grain, scratch, work, epilogue, op, locs,
            flops, traffic, live, shares, bool(even),
        )  # fmt: skip

    def location(self) -> tuple[Location, int]:
        file = self.string()
        line, backward, share = self.take("<IBI")
        return Location(file, line, bool(backward)), share

    def site(self) -> tuple[str, tuple[int, ...], tuple[Dim, ...]]:
        return self.kernels[self.u32()], self.many(self.u32), self.many(self.dim)
