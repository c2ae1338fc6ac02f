"""Text to graphs: the grammar is in `nir.ir.printer`.

The parser takes op classes from the registry, so the ops that a text uses must be imported. It
checks the form only; `nir.ir.verify` checks the meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from nir.errors import ParseError, UnsupportedError
from nir.ir.bind import concrete
from nir.ir.dim import Dim, floordiv, symbol
from nir.ir.graph import Graph, MemoryPlan, Placement
from nir.ir.lexer import Token, parse_error, tokenize, unquote
from nir.ir.location import Location, Locations
from nir.ir.op import OPS, Op, Value
from nir.ir.printer import array_digest, attribute_defaults, side_file
from nir.ir.types import DTYPES, DType, TensorType

_WORDS: Mapping[str, Any] = {
    "true": True, "false": False, "none": None, "inf": float("inf"), "nan": float("nan")
}  # fmt: skip


class MissingFunction:
    """A Python function that text can name but not hold: calling it is an error."""

    def __init__(self, name: str) -> None:
        self.__qualname__ = name
        self.__module__ = ""

    def __call__(self, *operands: object) -> NoReturn:
        raise UnsupportedError(
            f"the Python function {self.__qualname__} is not part of a graph's text: "
            "this graph can be read and changed, not run"
        )


def parse_graph(
    text: str, constants: Mapping[str, np.ndarray] | None = None, file: str = ""
) -> Graph:
    """The graph in ``text``.

    ``constants`` are the arrays that the text names by a hash. With ``file``, ops without
    locations get their line of that file. Raises ParseError with line and column, what was
    expected and what came.
    """
    return _Parser(text, constants or {}, file).parse()


def read_graph(path: str | Path) -> Graph:
    """The graph in a file, with its large arrays from the file beside it (see `write_graph`)."""
    path = Path(path)
    side = side_file(path)
    constants: dict[str, np.ndarray] = {}
    if side.exists():
        with np.load(side) as arrays:
            constants = {name: arrays[name] for name in arrays.files}
    return parse_graph(path.read_text(encoding="utf-8"), constants, path.name)


class _Parser:
    def __init__(self, text: str, constants: Mapping[str, np.ndarray], file: str) -> None:
        self.text, self.constants, self.file = text, constants, file
        self.tokens = tokenize(text)
        self.at = 0
        self.lines_at = 0  # (offset, line) of the last place whose line was asked for
        self.line = 1

    # ---- tokens --------------------------------------------------------------------------------

    @property
    def token(self) -> Token:
        return self.tokens[self.at]

    def next(self) -> Token:
        token = self.tokens[self.at]
        self.at += 1
        return token

    def fail(self, expected: str, token: Token | None = None) -> NoReturn:
        token = token or self.token
        got = "the end" if token.kind == "end" else repr(token.text)
        raise parse_error(self.text, token.start, expected, got)

    def is_mark(self, mark: str) -> bool:
        return self.token.kind == "mark" and self.token.text == mark

    def accept(self, mark: str) -> bool:
        if self.is_mark(mark):
            self.at += 1
            return True
        return False

    def accept_word(self, word: str) -> bool:
        if self.token.kind == "word" and self.token.text == word:
            self.at += 1
            return True
        return False

    def expect(self, mark: str) -> Token:
        return self.next() if self.is_mark(mark) else self.fail(repr(mark))

    def expect_word(self, word: str) -> Token:
        if self.token.kind == "word" and self.token.text == word:
            return self.next()
        self.fail(repr(word))

    def expect_kind(self, kind: str, what: str) -> Token:
        return self.next() if self.token.kind == kind else self.fail(what)

    def items(self, close: str, item: Callable[[], Any]) -> list[Any]:
        """Items with commas between them, up to and with ``close``."""
        out: list[Any] = []
        if self.accept(close):
            return out
        while True:
            out.append(item())
            if self.accept(close):
                return out
            if not self.accept(","):
                self.fail(f"',' or {close!r}")

    def source_line(self, token: Token) -> int:
        self.line += self.text.count("\n", self.lines_at, token.start)
        self.lines_at = token.start
        return self.line

    # ---- graphs --------------------------------------------------------------------------------

    def parse(self) -> Graph:
        graph = self.graph()
        if self.token.kind != "end":
            self.fail("the end")
        return graph

    def graph(self) -> Graph:
        self.expect_word("graph")
        name = unquote(self.expect_kind("graphname", "a name such as @main"), self.text, 1)
        scope: dict[str, Value] = {}
        self.expect("(")
        inputs = self.items(")", lambda: self.input(scope))
        input_names = tuple(scope)
        self.expect("->")
        types_at = self.token
        output_types = self.types()
        donate = self.pairs() if self.accept_word("donate") else ()
        arena = self.bracketed(self.dim) if self.accept_word("arena") else None
        reuse = self.pairs() if self.accept_word("reuse") else ()
        self.expect("{")
        nodes: list[Op] = []
        placed: list[tuple[Token, Value, tuple[str, Dim, Any]]] = []
        blocks: dict[int, tuple[Dim, Dim]] = {}
        while not self.accept_word("return"):
            nodes.append(self.node(scope, placed, blocks, len(nodes)))
        outputs: list[Value] = []
        while not self.accept("}"):
            if outputs:
                self.expect(",")
            outputs.append(self.value(scope))
        if [v.type for v in outputs] != output_types:
            got = ", ".join(str(v.type) for v in outputs)
            raise parse_error(self.text, types_at.start, f"the types that return gives, {got}",
                              ", ".join(map(str, output_types)))  # fmt: skip
        graph = Graph(name, inputs, nodes, outputs, input_names, None, donate)
        if arena is not None:
            graph = graph.with_(plan=self.plan(graph, arena, placed, reuse, blocks))
        elif placed:
            self.fail("arena[...] in the head of a graph that has placements", placed[0][0])
        return graph

    def input(self, scope: dict[str, Value]) -> Value:
        token = self.expect_kind("value", "an input such as %x")
        self.expect(":")
        return self.define(scope, token, self.type())

    def define(self, scope: dict[str, Value], token: Token, type_: TensorType) -> Value:
        name = unquote(token, self.text, 1)
        if name in scope:
            self.fail("a new name", token)
        scope[name] = Value(len(scope), type_)
        return scope[name]

    def value(self, scope: Mapping[str, Value]) -> Value:
        token = self.expect_kind("value", "a value such as %x")
        found = scope.get(unquote(token, self.text, 1))
        return found if found is not None else self.fail("a value defined above", token)

    def pairs(self) -> tuple[tuple[int, int], ...]:
        self.expect("[")
        return tuple(self.items("]", self.pair))

    def pair(self) -> tuple[int, int]:
        first = self.integer()
        self.expect("->")
        return first, self.integer()

    def integer(self) -> int:
        return int(self.expect_kind("int", "an integer").text)

    def bracketed(self, item: Callable[[], Any]) -> Any:
        self.expect("[")
        out = item()
        self.expect("]")
        return out

    # ---- nodes ---------------------------------------------------------------------------------

    def node(
        self,
        scope: dict[str, Value],
        placed: list[Any],
        blocks: dict[int, tuple[Dim, Dim]],
        position: int,
    ) -> Op:
        start = self.token
        results: list[Token] = []
        while self.token.kind == "value":
            results.append(self.next())
            if not self.accept(","):
                self.expect("=")
                break
        token = self.expect_kind("word", "an op, or return")
        cls = OPS.get(token.text)
        if cls is None:
            self.fail("the name of an op", token)
        self.expect("(")
        fields = self.operands(cls, scope)
        if self.accept("{"):
            fields |= self.attributes(cls)
        self.check_fields(cls, fields, token)
        self.expect(":")
        types_at = self.token
        types = self.types()
        if len(types) != len(results):
            self.fail(f"{len(results)} types, one for each result, not {len(types)}", types_at)
        values = [self.define(scope, t, type_) for t, type_ in zip(results, types, strict=True)]
        if self.accept_word("in"):
            self.places(values, scope, placed)
        if self.accept_word("block"):
            blocks[position] = self.bracketed(self.block)
        op = cls(**fields, results=tuple(values), locs=self.locations(start))
        return op

    def operands(self, cls: type[Op], scope: Mapping[str, Value]) -> dict[str, Any]:
        fields = cls.operand_fields
        if len(fields) == 1 and fields[0][1] == "many":
            return {fields[0][0]: tuple(self.items(")", lambda: self.value(scope)))}
        found: dict[str, Any] = {}
        for i, (name, arity) in enumerate(fields):
            if i:
                self.expect(",")
            match arity:
                case "many":
                    self.expect("[")
                    found[name] = tuple(self.items("]", lambda: self.value(scope)))
                case "optional" if self.accept_word("none"):
                    found[name] = None
                case _:
                    found[name] = self.value(scope)
        self.expect(")")
        return found

    def attributes(self, cls: type[Op]) -> dict[str, Any]:
        found: dict[str, Any] = {}

        def item() -> None:
            token = self.expect_kind("word", "the name of an attribute")
            if token.text not in cls.attribute_fields or token.text in found:
                known = ", ".join(cls.attribute_fields) or "none"
                self.fail(f"an attribute of {cls.name} ({known}), each once", token)
            self.expect("=")
            found[token.text] = self.attribute()

        self.items("}", item)
        return found

    def check_fields(self, cls: type[Op], fields: Mapping[str, Any], token: Token) -> None:
        defaults = attribute_defaults(cls)
        missing = [a for a in cls.attribute_fields if a not in fields and a not in defaults]
        if missing:
            self.fail(f"attributes {', '.join(missing)} of {cls.name}", token)

    def locations(self, start: Token) -> Locations:
        if self.token.kind != "at":
            return frozenset((Location(self.file, self.source_line(start)),) if self.file else ())
        self.next()
        found = []
        while self.token.kind == "location":
            token = self.next()
            file, line = token.text.removesuffix("'").rsplit(":", 1)
            named = Token(token.kind, file, token.start, token.end)
            found.append(Location(unquote(named, self.text), int(line), token.text.endswith("'")))
        return frozenset(found)

    # ---- plans ---------------------------------------------------------------------------------

    def places(self, values: list[Value], scope: Mapping[str, Value], placed: list[Any]) -> None:
        start = self.token
        if self.accept("("):
            found = self.items(")", lambda: self.place(scope))
        else:
            found = [self.place(scope)]
        if len(found) != len(values):
            self.fail(f"{len(values)} places, one for each result, not {len(found)}", start)
        placed += [(start, v, p) for v, p in zip(values, found, strict=True) if p is not None]

    def place(self, scope: Mapping[str, Value]) -> tuple[str, Dim, Any] | None:
        token = self.next()
        match token.text:
            case "_":
                return None
            case "arena":
                return "arena", self.bracketed(self.dim), 0
            case "output":
                return "output", 0, self.bracketed(self.integer)
            case "alias":
                self.expect("[")
                base = self.value(scope)
                offset = self.dim() if self.accept("+") else 0
                self.expect("]")
                return "alias", offset, base
        self.fail("a place: arena[...], output[...], alias[...] or _", token)

    def block(self) -> tuple[Dim, Dim]:
        offset = self.dim()
        self.expect(",")
        return offset, self.dim()

    def plan(
        self,
        graph: Graph,
        arena: Dim,
        placed: list[Any],
        reuse: tuple[tuple[int, int], ...],
        blocks: Mapping[int, tuple[Dim, Dim]],
    ) -> MemoryPlan:
        placements = {}
        for _, v, (kind, offset, of) in placed:
            number = graph.number[of] if isinstance(of, Value) else of
            placements[graph.number[v]] = Placement(kind, offset, number)
        return MemoryPlan(arena, placements, reuse, blocks)

    # ---- types and sizes -----------------------------------------------------------------------

    def types(self) -> list[TensorType]:
        return self.items(")", self.type) if self.accept("(") else [self.type()]

    def type(self) -> TensorType:
        found = self.dtype_or_type()
        return found if isinstance(found, TensorType) else self.fail("'[' of a type's shape")

    def dtype_or_type(self) -> DType | TensorType:
        token = self.expect_kind("word", "a type such as f32[B,4]")
        kind = DTYPES.get(token.text)
        if kind is None:
            self.fail(f"a dtype: {', '.join(DTYPES)}", token)
        if not self.is_mark("[") or self.token.start != token.end:
            return kind
        self.expect("[")
        shape = tuple(self.items("]", self.dim))
        # Layout and device follow without a space, so "{" of a graph is not taken for one.
        layout, device = "", "cpu"
        if self.is_mark("{") and self.token.start == self.tokens[self.at - 1].end:
            self.next()
            layout = self.expect_kind("word", "a layout").text
            self.expect("}")
        if self.token.kind == "at" and self.tokens[self.at + 1].kind == "device":
            self.next()
            device = self.next().text
        return TensorType(kind, shape, layout, device)

    def dim(self) -> Dim:
        """A sum of products."""
        total: Dim = -self.term() if self.accept("-") else self.term()
        while True:
            if self.accept("+"):
                total = total + self.term()
            elif self.accept("-"):
                total = total - self.term()
            else:
                return total

    def term(self) -> Dim:
        out = self.power()
        while True:
            if self.accept("*"):
                out = out * self.power()
            elif self.is_mark("//"):
                token = self.next()
                by = self.power()
                if isinstance(by, int) and by <= 0:
                    self.fail("a positive divisor", token)
                out = floordiv(out, by)
            else:
                return out

    def power(self) -> Dim:
        token = self.next()
        match token.kind:
            case "int":
                base: Dim = int(token.text)
            case "symbol":
                base = self.symbol(token, unquote(token, self.text, 1))
            case "word" if token.text not in _WORDS:
                base = self.symbol(token, token.text)
            case "mark" if token.text == "(":
                base = self.dim()
                self.expect(")")
            case _:
                self.fail("a size such as 4*B+1", token)
        if not self.accept("^"):
            return base
        out: Dim = 1
        for _ in range(self.integer()):
            out = out * base
        return out

    def symbol(self, token: Token, name: str) -> Dim:
        return symbol(name) if name.isidentifier() else self.fail("the name of a size", token)

    # ---- attributes ----------------------------------------------------------------------------

    def attribute(self) -> Any:
        token = self.token
        match token.kind, token.text:
            case "string", _:
                return unquote(self.next(), self.text)
            case "mark", "[":
                self.next()
                return tuple(self.items("]", self.attribute))
            case "float", _:
                return float(self.next().text)
            case "mark", "-" if self.tokens[self.at + 1].kind == "float":
                self.next()
                return -float(self.next().text)
            case "mark", "-" if self.tokens[self.at + 1].text == "inf":
                self.next()
                self.next()
                return -float("inf")
            case "word", word if word in _WORDS:
                self.next()
                return _WORDS[word]
            case "word", word if word in DTYPES:
                return self.dtype_or_type()
            case "word", "graph":
                return self.graph()
            case "word", "array":
                return self.array()
            case "word", "function":
                self.next()
                self.expect("(")
                name = unquote(self.expect_kind("string", "a name"), self.text)
                self.expect(")")
                return MissingFunction(name)
        return self.dim()

    def array(self) -> np.ndarray:
        start = self.next()
        self.expect("(")
        t = self.type()
        if not t.is_static:
            self.fail("a type with known sizes", start)
        self.expect(",")
        if self.accept("["):
            elements = self.items("]", lambda: self.element(t.dtype))
            if len(elements) != t.size:
                self.fail(f"{t.size} elements of {t}, not {len(elements)}", start)
            out = np.array(elements, t.dtype.numpy).reshape(concrete(t, {}))
        else:
            self.expect_word("sha256")
            self.expect(":")
            out = self.side_array(t)
        self.expect(")")
        return out

    def side_array(self, t: TensorType) -> np.ndarray:
        first = self.next()
        digest, end = first.text, first.end
        while self.token.start == end and self.token.kind in ("word", "int", "float"):
            digest += self.token.text
            end = self.next().end
        array = self.constants.get(digest)
        if array is None:
            self.fail("a hash that the side file has", first)
        if array.dtype == np.uint16 and t.dtype.name == "bf16":
            array = array.view(t.dtype.numpy)
        if array_digest(array) != digest or (array.dtype, array.shape) != (t.dtype.numpy, t.shape):
            self.fail(f"the hash of the {array.dtype}{list(array.shape)} of the side file", first)
        return array

    def element(self, kind: DType) -> Any:
        token = self.next()
        sign = 1
        if token.text == "-":
            sign, token = -1, self.next()
        match token.kind:
            case "bits" if len(token.text) == 2 + 2 * kind.itemsize:
                data = bytes.fromhex(token.text[2:])[::-1]
                return np.frombuffer(data, kind.numpy)[0]
            case "word" if kind.kind == "bool" and token.text in ("true", "false"):
                return token.text == "true"
            case "word" if kind.is_float and token.text in ("inf", "nan"):
                return kind.numpy.type(sign * float(token.text))
            case "int" if kind.is_integer:
                number = sign * int(token.text)
                info = np.iinfo(kind.numpy)
                if info.min <= number <= info.max:
                    return number
            case "int" | "float" if kind.is_float:
                return np.asarray(sign * float(token.text)).astype(kind.numpy)[()]
        self.fail(f"an element of {kind}", token)


__all__ = ["MissingFunction", "ParseError", "parse_graph", "read_graph"]
