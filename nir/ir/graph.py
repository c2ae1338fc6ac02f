"""`Graph`: an immutable list of typed ops, and `Builder`, which makes one.

    graph @relu_sum(%x: f32[B,4]) -> f32[B] {
      %0 = relu(%x) : f32[B,4]          @ model.py:3
      %1 = sum(%0) {axes=[1]} : f32[B]  @ model.py:4
      return %1
    }

Values carry no pointer to their producer: the graph holds the order and the use table, so a
rewrite gives a replacement the old result's value and never touches the users.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from functools import cached_property
from typing import Any

import numpy as np

from nir.errors import NirError
from nir.frozen import Frozen, replace
from nir.ir.dim import Dim, Poly, symbols
from nir.ir.location import Location, Locations, caller
from nir.ir.op import Op, Value
from nir.ir.types import DType, TensorType


class Placement(Frozen):
    """Where the memory plan keeps a value.

    kind "arena": at byte ``offset`` of the arena, rounded up to 64;
    kind "alias": in the storage of value number ``of`` (see Graph.number), ``offset`` bytes in;
    kind "output": in the storage of output ``of``.
    """

    kind: str
    offset: Dim = 0
    of: int = 0

    def __str__(self) -> str:
        match self.kind:
            case "arena":
                return f"arena[{self.offset}]"
            case "output":
                return f"output[{self.of}]"
            case _:
                return f"alias[%{self.of}+{self.offset}]" if self.offset else f"alias[%{self.of}]"


class MemoryPlan(Frozen):
    """The plan of a graph: a placement for each node result, by number, and the arena's size.

    An op with regions takes a block of the arena while it runs, for what its regions' own plans
    ask for: ``blocks`` has offset and size of it, by the op's position.
    """

    arena: Dim
    placements: Mapping[int, Placement]
    donations: tuple[tuple[int, int], ...] = ()  # (input, output) pairs that may share storage
    blocks: Mapping[int, tuple[Dim, Dim]] = field(default_factory=dict)


class Graph:
    """An immutable graph: inputs, ops in execution order, outputs."""

    __slots__ = ("__dict__", "donate", "input_names", "inputs", "name", "nodes", "outputs", "plan")

    def __init__(
        self,
        name: str,
        inputs: Sequence[Value],
        nodes: Sequence[Op],
        outputs: Sequence[Value],
        input_names: Sequence[str] = (),
        plan: MemoryPlan | None = None,
        donate: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.name = name
        self.inputs = tuple(inputs)
        self.nodes = tuple(nodes)
        self.outputs = tuple(outputs)
        self.input_names = tuple(input_names) or tuple(f"in{i}" for i in range(len(self.inputs)))
        self.plan = plan
        # (input, output): the caller no longer needs that input once the output is written.
        self.donate = tuple(donate)

    def with_(self, **changes: Any) -> Graph:
        kept = {
            "name": self.name, "inputs": self.inputs, "nodes": self.nodes, "outputs": self.outputs,
            "input_names": self.input_names, "plan": self.plan, "donate": self.donate,
        }  # fmt: skip
        return Graph(**{**kept, **changes})

    # ---- tables, computed once -----------------------------------------------------------------

    @cached_property
    def producer(self) -> dict[Value, Op]:
        """The op that makes each value; inputs have none."""
        return {v: op for op in self.nodes for v in op.results}

    @cached_property
    def users(self) -> dict[Value, list[Op]]:
        """The ops that read each value, one entry for each reading operand."""
        table: dict[Value, list[Op]] = {v: [] for v in self.inputs}
        for op in self.nodes:
            for v in op.results:
                table[v] = []
        for op in self.nodes:
            for v in op.operands:
                table[v].append(op)
        return table

    @cached_property
    def moved(self) -> frozenset[Value]:
        """Values from which something is computed that is no elementwise op."""
        found: set[Value] = set()
        for op in reversed(self.nodes):
            if op.kind != "elementwise" or not found.isdisjoint(op.results):
                found.update(op.operands)
        return frozenset(found)

    @cached_property
    def number(self) -> dict[Value, int]:
        """Canonical numbers: inputs, then results in order. Equal graphs number equally."""
        return {v: i for i, v in enumerate(self.values)}

    @cached_property
    def position(self) -> dict[Op, int]:
        """The place of each op among ``nodes``."""
        return {op: i for i, op in enumerate(self.nodes)}

    @cached_property
    def values(self) -> tuple[Value, ...]:
        """All values by their canonical numbers."""
        return (*self.inputs, *(v for op in self.nodes for v in op.results))

    @cached_property
    def names(self) -> dict[Value, str]:
        """Printed names, all different: inputs by name, results counted from 0.

        An input whose name is taken, or is a number, gets a prime.
        """
        table: dict[Value, str] = {}
        taken: set[str] = set()
        for v, name in zip(self.inputs, self.input_names, strict=True):
            while name in taken or name.isdecimal():
                name += "'"
            taken.add(name)
            table[v] = name
        count = 0
        for op in self.nodes:
            for v in op.results:
                table[v] = str(count)
                count += 1
        return table

    @property
    def symbols(self) -> tuple[str, ...]:
        """Names of the symbolic sizes of the inputs, sorted."""
        found = {s for v in self.inputs for d in v.type.shape for s in symbols(d)}
        return tuple(sorted(found))

    @cached_property
    def input_types(self) -> tuple[TensorType, ...]:
        return tuple(v.type for v in self.inputs)

    @cached_property
    def output_types(self) -> tuple[TensorType, ...]:
        return tuple(v.type for v in self.outputs)

    def count(self) -> dict[str, int]:
        """How often each op occurs at the top level, sorted by name."""
        table: dict[str, int] = {}
        for op in self.nodes:
            table[op.name] = table.get(op.name, 0) + 1
        return dict(sorted(table.items()))

    # ---- structure -----------------------------------------------------------------------------

    @cached_property
    def key(self) -> str:
        """A hash of the structure: types, ops, attributes and plan; no names, no locations."""
        digest = hashlib.sha256()
        for part in self._parts():
            digest.update(part.encode())
            digest.update(b"\n")
        return digest.hexdigest()

    def _parts(self) -> Iterator[str]:
        number = self.number
        yield " ".join(str(v.type) for v in self.inputs)
        for op in self.nodes:
            attributes = ";".join(attribute_key(a) for a in op.attributes.values())
            # Absent optional operands and the lengths of variadic ones are structure too.
            arity = ",".join(
                str(len(getattr(op, n))) if k == "many" else str(getattr(op, n) is not None)
                for n, k in op.operand_fields
                if k != "one"
            )
            operands = ",".join(str(number[v]) for v in op.operands)
            types = ",".join(str(v.type) for v in op.results)
            yield f"{op.name}({operands})<{arity}>{{{attributes}}}:{types}"
        yield " ".join(str(number[v]) for v in self.outputs)
        if self.plan is not None:
            yield f"{self.plan.arena} {self.plan.donations} " + " ".join(
                f"{n}:{p}" for n, p in sorted(self.plan.placements.items())
            )
            if self.plan.blocks:
                yield str(sorted(self.plan.blocks.items()))
        if self.donate:
            yield str(self.donate)

    def __eq__(self, other: object) -> bool:
        """Equal structure, up to names of values and locations."""
        return isinstance(other, Graph) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return f"<Graph @{self.name}: {len(self.inputs)} inputs, {len(self.nodes)} ops>"


def attribute_key(value: Any) -> str:
    """A string that is equal exactly for equal attributes."""
    match value:
        case np.ndarray():
            digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
            return f"{value.dtype}{value.shape}{digest}"
        case Graph():
            return value.key
        case float():
            return value.hex()
        case tuple():
            return "(" + ",".join(map(attribute_key, value)) + ")"
        case str():
            return repr(value)
        case bool() | int() | Poly() | DType() | TensorType() | None:
            return f"{type(value).__name__[0]}{value}"
        case _ if callable(value):
            return f"{getattr(value, '__qualname__', value)}@{id(value)}"
        case _:
            raise TypeError(f"{value!r} cannot be an attribute")


class Builder:
    """Makes a graph: `input`, then `emit` ops, then `build`.

    ``emit`` infers types at once, so an error surfaces at the line that caused it. Ops get the
    locations passed in, else ``self.locs`` if set, else the caller's line.
    """

    def __init__(self, name: str = "graph") -> None:
        self.name = name
        self.inputs: list[Value] = []
        self.input_names: list[str] = []
        self.nodes: list[Op] = []
        self.locs: Locations | None = None
        self._next = 0

    def value(self, type_: TensorType) -> Value:
        """A fresh value, not yet made by anything."""
        self._next += 1
        return Value(self._next - 1, type_)

    def input(self, type_: TensorType, name: str = "") -> Value:
        v = self.value(type_)
        self.inputs.append(v)
        self.input_names.append(name or f"in{len(self.inputs) - 1}")
        return v

    def emit(self, op: Op, locs: Locations | None = None) -> tuple[Value, ...]:
        """Append ``op`` (its own results and locations are replaced) and return its results."""
        where = locs or self.locs or frozenset((caller(),))
        try:
            types = op.infer()
        except NirError as error:
            if error.location is None:
                error.location = ", ".join(map(str, sorted(where)))
            raise
        results = tuple(self.value(t) for t in types)
        self.nodes.append(replace(op, results=results, locs=where))
        return results

    def append(self, op: Op) -> None:
        """Append a finished op that already has results and locations."""
        self.nodes.append(op)

    def inline(self, graph: Graph, operands: Sequence[Value]) -> tuple[Value, ...]:
        """Copy ``graph``'s ops in, reading ``operands`` for its inputs; returns its outputs."""
        env: dict[Value, Value] = dict(zip(graph.inputs, operands, strict=True))
        for op in graph.nodes:
            results = tuple(self.value(v.type) for v in op.results)
            env.update(zip(op.results, results, strict=True))
            self.nodes.append(replace(op.map_operands(env.__getitem__), results=results))
        return tuple(env[v] for v in graph.outputs)

    def build(self, outputs: Iterable[Value], **extra: Any) -> Graph:
        return Graph(self.name, self.inputs, self.nodes, tuple(outputs), self.input_names, **extra)


def rebuild(graph: Graph, visit: Callable[[Builder, Op], Sequence[Value] | None]) -> Graph:
    """A copy of ``graph`` in which ``visit`` may replace each op.

    ``visit(builder, op)`` sees the op with its operands already mapped. It returns None to keep
    the op, or the values that stand for its results (after emitting what makes them).
    """
    b = Builder(graph.name)
    b.inputs, b.input_names = list(graph.inputs), list(graph.input_names)
    b._next = 1 + max((v.id for v in graph.number), default=-1)
    env: dict[Value, Value] = {}

    def current(v: Value) -> Value:
        return env.get(v, v)

    for op in graph.nodes:
        mapped = op.map_operands(current)
        b.locs = op.locs
        new = visit(b, mapped)
        if new is None:
            b.append(mapped)
        else:
            env.update((old, v) for old, v in zip(op.results, new, strict=True) if old is not v)
    return b.build(map(current, graph.outputs), donate=graph.donate)


def location_text(locs: Iterable[Location]) -> str:
    return ", ".join(dict.fromkeys(map(str, sorted(locs))))
