"""Graphs and programs as text. `nir.ir.parser` reads what is written here, to an equal graph.

    graph      = "graph" "@" name "(" [input {"," input}] ")" "->" types [donate] [plan] "{" nodes
                 "return" [values] "}"
    input      = "%" name ":" type
    types      = type | "(" [type {"," type}] ")"
    donate     = "donate" "[" pair {"," pair} "]"              pair = input "->" output, by position
    plan       = "arena" "[" dim "]" ["reuse" "[" pair {"," pair} "]"]
    node       = [values "="] op "(" [operand {"," operand}] ")" [attributes] ":" types
                 ["in" places] ["block" "[" dim "," dim "]"] ["@" location {"," location}]
    operand    = value | "none" | "[" [values] "]"
    attributes = "{" name "=" attribute {"," name "=" attribute} "}"
    attribute  = number | "true" | "false" | "none" | string | dim | dtype | type | graph
               | "[" [attribute {"," attribute}] "]"
               | "array" "(" type "," ("[" numbers "]" | "sha256" ":" digest) ")"
               | "function" "(" string ")"
    places     = place | "(" [place {"," place}] ")"
    place      = "_" | "arena" "[" dim "]" | "output" "[" number "]"
               | "alias" "[" value ["+" dim] "]"
    location   = file ":" line ["'"]         file is quoted where it is odd; ' marks a gradient's op

Attributes equal to their defaults are left out. An op with one variadic operand and no others lists
it plainly; where there are several fields, each variadic one has brackets and an absent one is
``none``. Arrays of more than 16 elements are named by a hash and live in a side file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nir.ir.dim import Dim, FloorDiv, Poly
from nir.ir.graph import Graph, Placement, attribute_key
from nir.ir.location import Location
from nir.ir.op import Op, Value
from nir.ir.types import DTYPES, TensorType, dtype

Constants = MutableMapping[str, np.ndarray]

# Longer arrays go to the side file.
INLINE_ELEMENTS = 16
# Words with a meaning of their own where a size may stand; symbols of these names are quoted.
RESERVED = frozenset({"true", "false", "none", "inf", "nan", "graph", "array", "function", *DTYPES})

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.']*")
_PLAIN_SYMBOL = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_PLAIN_FILE = re.compile(r"[A-Za-z0-9_./<>~+-]+")
# Result names and locations line up as long as what stands before them is not wider.
_NAME_WIDTH = 6
_LINE_WIDTH = 72
# Signatures and returns that are longer take several lines.
_WRAP_WIDTH = 100


def print_graph(graph: Graph, constants: Constants | None = None) -> str:
    """The text of ``graph``, the same for equal graphs with equal names and locations.

    Large arrays are added to ``constants`` under the hashes that stand for them in the text.
    """
    return "\n".join(_graph_lines(graph, constants, "")) + "\n"


def print_op(graph: Graph, op: Op) -> str:
    """The line of ``op`` in the text of ``graph``; of an op with regions, the first line.

    The graph may be broken: a value that it does not define is shown as ``%?id``.
    """
    head, *_ = _node_lines(graph, op, None, "", _Names(graph.names))
    return head.strip()


class _Names(dict[Value, str]):
    def __missing__(self, v: Value) -> str:
        return f"?{v.id}"


def write_graph(path: str | Path, graph: Graph, header: str = "") -> None:
    """Write ``graph`` to ``path``, and its large arrays, if any, to ``path`` + ".npz".

    ``header`` goes in front as comments.
    """
    path = Path(path)
    constants: dict[str, np.ndarray] = {}
    comments = "".join(f"# {line}\n" for line in header.splitlines())
    text = comments + print_graph(graph, constants)
    side = side_file(path)
    if constants:
        # bfloat16 has no .npy form of its own: its bits are stored.
        stored: dict[str, Any] = {k: _bits_of_bfloat16(a) for k, a in constants.items()}
        with side.open("wb") as file:
            np.savez(file, **stored)
    else:
        side.unlink(missing_ok=True)
    path.write_text(text, encoding="utf-8")


def _bits_of_bfloat16(a: np.ndarray) -> np.ndarray:
    return a.view(np.uint16) if a.dtype.name == "bfloat16" else a


def side_file(path: Path) -> Path:
    """Where the large arrays of the graph in ``path`` are."""
    return path.with_name(path.name + ".npz")


def array_digest(array: np.ndarray) -> str:
    """The name of an array in the side file: a hash of dtype, shape and content."""
    return hashlib.sha256(attribute_key(array).encode()).hexdigest()[:32]


# ---- graphs ------------------------------------------------------------------------------------


def _graph_lines(graph: Graph, constants: Constants | None, indent: str) -> Iterator[str]:
    names = graph.names
    inputs = [f"{_value(names[v])}: {type_text(v.type)}" for v in graph.inputs]
    head = f"{indent}graph @{name_text(graph.name)}"
    tail = ""
    if graph.donate:
        tail += f" donate[{_pairs(graph.donate)}]"
    if graph.plan is not None:
        tail += f" arena[{dim_text(graph.plan.arena)}]"
        if graph.plan.donations:
            tail += f" reuse[{_pairs(graph.plan.donations)}]"
    line = f"{head}({', '.join(inputs)}) -> {_types(graph.outputs)}{tail} {{"
    if len(line) <= _WRAP_WIDTH:
        yield line
    else:
        types = [type_text(v.type) for v in graph.outputs]
        yield from _wrapped(f"{head}(", inputs, ") -> (", indent)
        yield from _wrapped("", types, f"){tail} {{", indent)
    nodes = [_node_lines(graph, op, constants, indent + "  ", names) for op in graph.nodes]
    width = max((len(n[-1]) for n in nodes if len(n[-1]) <= _LINE_WIDTH), default=0)
    for op, (*first, last) in zip(graph.nodes, nodes, strict=True):
        yield from first
        locations = ", ".join(location_token(loc) for loc in sorted(op.locs))
        yield f"{last:<{width}}   @ {locations}" if locations else last
    values = [_value(names[v]) for v in graph.outputs]
    line = f"{indent}  return {', '.join(values)}".rstrip()
    if len(line) <= _WRAP_WIDTH:
        yield line
    else:
        yield from _wrapped(f"{indent}  return", values, "", indent + "  ")
    yield f"{indent}}}"


def _wrapped(head: str, items: Sequence[str], tail: str, indent: str) -> Iterator[str]:
    """``head``, the items on lines of their own, as many as fit, and ``tail``."""
    if head:
        yield head
    line = indent + "   "
    for i, item in enumerate(items):
        part = f" {item}," if i + 1 < len(items) else f" {item}"
        if len(line) + len(part) > _WRAP_WIDTH and line.strip():
            yield line
            line = indent + "   "
        line += part
    yield line
    if tail:
        yield indent + tail


def _node_lines(
    graph: Graph, op: Op, constants: Constants | None, indent: str, names: Mapping[Value, str]
) -> list[str]:
    """The lines of a node without its locations: one, or more where it holds regions."""
    results = ", ".join(_value(names[v]) for v in op.results)
    width = min(_NAME_WIDTH, 1 + len(str(len(graph.number) - len(graph.inputs))))
    left = f"{results:<{width}} = " if op.results else ""
    attributes = ", ".join(_attributes(op, constants, indent))
    shown = f" {{{attributes}}}" if attributes else ""
    text = f"{indent}{left}{op.name}({_operands(op, names)}){shown} : {_types(op.results)}"
    return (text + _places(graph, op, names) + _block(graph, op)).split("\n")


def _operands(op: Op, names: Mapping[Value, str]) -> str:
    shown = []
    for name, arity in op.operand_fields:
        operand = getattr(op, name)
        match arity:
            case "many":
                values = ", ".join(_value(names[v]) for v in operand)
                shown.append(values if len(op.operand_fields) == 1 else f"[{values}]")
            case "optional" if operand is None:
                shown.append("none")
            case _:
                shown.append(_value(names[operand]))
    return ", ".join(shown)


def _attributes(op: Op, constants: Constants | None, indent: str) -> Iterator[str]:
    defaults = attribute_defaults(type(op))
    for name, attribute in op.attributes.items():
        if name in defaults and attribute_key(defaults[name]) == attribute_key(attribute):
            continue
        yield f"{name}={_attribute(attribute, constants, indent)}"


_DEFAULTS: dict[type[Op], dict[str, Any]] = {}


def attribute_defaults(cls: type[Op]) -> dict[str, Any]:
    """The attributes that text may leave out, and what they are then."""
    if cls not in _DEFAULTS:
        _DEFAULTS[cls] = _find_defaults(cls)
    return _DEFAULTS[cls]


def _find_defaults(cls: type[Op]) -> dict[str, Any]:
    return {
        name: f.default
        for name, f in cls.frozen_fields.items()
        if name in cls.attribute_fields and f.default is not dataclasses.MISSING
    }


def _attribute(value: Any, constants: Constants | None, indent: str) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return float.__repr__(value)
        case str():
            return json.dumps(value)
        case Poly():
            return dim_text(value)
        case tuple():
            return "[" + ", ".join(_attribute(v, constants, indent) for v in value) + "]"
        case TensorType():
            return type_text(value)
        case Graph():
            return "\n".join(_graph_lines(value, constants, indent)).lstrip()
        case np.ndarray():
            return _array(value, constants)
        case _ if value in DTYPES.values():
            return str(value)
        case _ if callable(value):
            return f"function({json.dumps(function_name(value))})"
        case _:
            raise TypeError(f"{value!r} cannot be an attribute")


def function_name(fn: Any) -> str:
    """What stands for a Python function in text."""
    name = getattr(fn, "__qualname__", None) or getattr(fn, "__name__", type(fn).__qualname__)
    module = getattr(fn, "__module__", None)
    return f"{module}.{name}" if module else str(name)


def _array(array: np.ndarray, constants: Constants | None) -> str:
    t = TensorType(dtype(array.dtype), array.shape)
    if array.size > INLINE_ELEMENTS:
        digest = array_digest(array)
        if constants is not None:
            constants[digest] = np.ascontiguousarray(array).reshape(array.shape)
        return f"array({t}, sha256:{digest})"
    elements = ", ".join(_element(x) for x in array.reshape(-1))
    return f"array({t}, [{elements}])"


def _element(x: Any) -> str:
    kind = dtype(x.dtype)
    if kind.kind == "bool":
        return "true" if x else "false"
    if kind.is_integer:
        return str(int(x))
    text = repr(float(x)) if kind.itemsize == 8 else str(x)
    if np.isnan(x) or np.asarray(float(text)).astype(kind.numpy).tobytes() != x.tobytes():
        # Not every nan is the same, and two roundings may differ from one.
        return text if _is_plain_nan(x) else f"0x{x.tobytes()[::-1].hex()}"
    return text


def _is_plain_nan(x: Any) -> bool:
    return bool(x.tobytes() == np.asarray(np.nan).astype(x.dtype).tobytes())


def _types(values: Sequence[Value]) -> str:
    types = [type_text(v.type) for v in values]
    return types[0] if len(types) == 1 else f"({', '.join(types)})"


def _places(graph: Graph, op: Op, names: Mapping[Value, str]) -> str:
    if graph.plan is None:
        return ""
    found = [graph.plan.placements.get(graph.number[v]) for v in op.results]
    if not any(found):
        return ""
    by_number = graph.values
    shown = [_place(p, names, by_number) if p else "_" for p in found]
    return f" in {shown[0]}" if len(shown) == 1 else f" in ({', '.join(shown)})"


def _block(graph: Graph, op: Op) -> str:
    if graph.plan is None or not graph.plan.blocks or not any(op.regions()):
        return ""
    found = graph.plan.blocks.get(graph.position[op])
    return f" block[{dim_text(found[0])}, {dim_text(found[1])}]" if found else ""


def _place(p: Placement, names: Mapping[Value, str], by_number: Sequence[Value]) -> str:
    match p.kind:
        case "arena":
            return f"arena[{dim_text(p.offset)}]"
        case "output":
            return f"output[{p.of}]"
        case _:
            offset = f"+{dim_text(p.offset)}" if p.offset != 0 else ""
            return f"alias[{_value(names[by_number[p.of]])}{offset}]"


def _pairs(pairs: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{a}->{b}" for a, b in pairs)


# ---- small parts -------------------------------------------------------------------------------


def name_text(name: str) -> str:
    """A name of a graph or value, quoted where it is odd."""
    return name if _PLAIN_NAME.fullmatch(name) else json.dumps(name)


def _value(name: str) -> str:
    return "%" + name_text(name)


def location_token(location: Location) -> str:
    """A location, its file quoted where it is odd."""
    plain = _PLAIN_FILE.fullmatch(location.file)
    file = location.file if plain else json.dumps(location.file)
    mark = "'" if location.backward else ""
    return f"{file}:{location.line}{mark}"


def type_text(t: TensorType) -> str:
    """A type such as f32[B,784], with odd symbols quoted."""
    plain = TensorType(t.dtype, (), t.layout, t.device)
    return str(plain).replace("[]", f"[{','.join(map(dim_text, t.shape))}]", 1)


def dim_text(d: Dim) -> str:
    """A size, with symbols quoted that are reserved words or not ASCII."""
    if not isinstance(d, Poly):
        return str(d)
    parts: list[str] = []
    for monomial, coefficient in d.terms:
        factors = [
            _atom(atom) if power == 1 else f"{_atom(atom)}^{power}" for atom, power in monomial
        ]
        if not factors or abs(coefficient) != 1:
            factors.insert(0, str(abs(coefficient)))
        sign = "-" if coefficient < 0 else "+" if parts else ""
        parts.append(sign + "*".join(factors))
    return "".join(parts)


def _atom(atom: str | FloorDiv) -> str:
    if isinstance(atom, FloorDiv):
        den = dim_text(atom.den) if isinstance(atom.den, int) else f"({dim_text(atom.den)})"
        return f"(({dim_text(atom.num)})//{den})"
    plain = _PLAIN_SYMBOL.fullmatch(atom) and atom not in RESERVED
    return atom if plain else f"${json.dumps(atom)}"
