"""Every sample of every op as a test case, and the op of a sample as a graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

import nir.ops
from nir.frozen import replace
from nir.ir.dim import Dim, symbol
from nir.ir.graph import Builder, Graph
from nir.ir.op import OPS, Op, Sample, Value
from nir.ir.types import DType, TensorType, dtype, f32, f64

assert nir.ops  # fills the registry

B = symbol("B")


@dataclass(frozen=True)
class Case:
    """One sample of one op."""

    op: type[Op]
    number: int
    sample: Sample

    @property
    def id(self) -> str:
        return f"{self.op.name}-{self.number}"

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return tuple(np.asarray(x) for x in self.sample.operands)


CASES = [Case(cls, i, s) for _, cls in sorted(OPS.items()) for i, s in enumerate(cls.samples())]


def types_of(arrays: tuple[np.ndarray, ...]) -> list[TensorType]:
    return [TensorType(dtype(x.dtype), x.shape) for x in arrays]


def make_op(case: Case, values: list[Value]) -> Op:
    """The op of ``case`` reading ``values``, which fill its operand fields in order."""
    attributes = dict(case.sample.attributes)
    fields: dict[str, Any] = {}
    left = list(values)
    arity = iter(case.sample.arity or (len(left),))
    for name, kind in case.op.operand_fields:
        if name in attributes and attributes[name] is None:
            fields[name] = attributes.pop(name)
        elif kind == "many":
            count = next(arity)
            fields[name] = tuple(left[:count])
            del left[:count]
        else:
            fields[name] = left.pop(0)
    assert not left, f"{case.id}: more operands than fields"
    return case.op(**fields, **attributes)


def make_graph(case: Case, types: list[TensorType] | None = None) -> Graph:
    """The graph of the op alone: its operands are the inputs, its results the outputs."""
    b = Builder(case.op.name)
    given = types_of(case.arrays) if types is None else types
    values = [b.input(t, f"x{i}") for i, t in enumerate(given)]
    return b.build(b.emit(make_op(case, values)))


def in_f64(case: Case) -> Case:
    """``case`` with f32 turned to f64 in operands, attributes and regions."""
    arrays = tuple(_f64(x) for x in case.arrays)
    attributes = {k: _f64(v) for k, v in case.sample.attributes.items()}
    sample = replace(case.sample, operands=arrays, attributes=attributes)
    return Case(case.op, case.number, sample)


def _f64(value: Any) -> Any:
    match value:
        case np.ndarray() if value.dtype == np.float32:
            return value.astype(np.float64)
        case DType() if value is f32:
            return f64
        case TensorType() if value.dtype is f32:
            return value.with_(dtype=f64)
        case Graph():
            return graph_in_f64(value)
        case tuple():
            return tuple(map(_f64, value))
    return value


def graph_in_f64(graph: Graph) -> Graph:
    b = Builder(graph.name)
    env: dict[Value, Value] = {
        v: b.input(_f64(v.type), n) for v, n in zip(graph.inputs, graph.input_names, strict=True)
    }
    for op in graph.nodes:
        changed = {k: _f64(v) for k, v in op.attributes.items()}
        new = replace(op.map_operands(env.__getitem__), **changed)
        env.update(zip(op.results, b.emit(new, op.locs), strict=True))
    return b.build([env[v] for v in graph.outputs])


HALF = [
    c for c in CASES
    if any(x.dtype == np.float32 for x in c.arrays)
    and not any(x.dtype == np.float64 for x in c.arrays)
    and not any(isinstance(v, Graph) for v in c.sample.attributes.values())
    and c.op.name not in ("random_bernoulli", "host_call")
]  # fmt: skip


def in_half(case: Case, half: DType) -> Case:
    """A case of HALF with f32 operands rounded to a half type."""
    with np.errstate(over="ignore"):
        arrays = tuple(x.astype(half.numpy) if x.dtype == np.float32 else x for x in case.arrays)
    return Case(case.op, case.number, replace(case.sample, operands=arrays))


def symbolic(case: Case, size: Dim) -> Case | None:
    """Attributes of ``case`` with the leading size of its first operand replaced by ``size``."""
    n = case.arrays[0].shape[0]
    attributes = dict(case.sample.attributes)
    for name in ("shape", "sizes"):
        if name in attributes:
            first, *rest = attributes[name] or (None,)
            if first != n:
                return None
            attributes[name] = (size, *rest)
    return Case(case.op, case.number, replace(case.sample, attributes=attributes))


# The regions of their samples have static sizes.
NOT_BATCHED = {"custom_vjp", "cond", "host_call", "scan"}


def batched(case: Case) -> Graph | None:
    """The op with a symbolic leading size on every operand whose leading size is the first's."""
    if not case.arrays or not case.arrays[0].ndim or case.op.name in NOT_BATCHED:
        return None
    n = case.arrays[0].shape[0]
    changed = symbolic(case, B)
    if changed is None or n == 0:
        return None
    types = [
        t.with_(shape=(B, *t.shape[1:])) if t.shape[:1] == (n,) else t
        for t in types_of(case.arrays)
    ]
    try:
        return make_graph(changed, types)
    except (ValueError, TypeError):
        return None
