"""Random graphs over the whole registry: `generate(seed)` is the same graph in every run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nir.errors import NirError, NotDifferentiable
from nir.frozen import replace
from nir.ir.bind import concrete
from nir.ir.dim import Dim, Shape, prod, symbol
from nir.ir.graph import Builder, Graph
from nir.ir.interp import run
from nir.ir.location import Location
from nir.ir.op import OPS, Op, Sample, Value
from nir.ir.types import TensorType, bool_, dtype, f32
from nir.ops import (
    Add,
    Broadcast,
    Cast,
    Cond,
    CustomVjp,
    Matmul,
    Pack,
    Reshape,
    Scan,
    Sum,
    Tanh,
    WhileLoop,
)
from nir.ops.expr import Expr
from nir.ops.fused import Fused
from nir.ops.vjp import gradient, vjp

Arrays = list[np.ndarray]

BATCH = symbol("B")
# Larger results are not kept, so that graphs stay quick to run.
_MAX_ELEMENTS = 2000
_TAME = 1e3


@dataclass(frozen=True)
class Case:
    """A graph with inputs.

    ``tame``: no value is nan, infinite or large, and rounding in one op changes no other result by
    much (no comparison of almost equal numbers, no division by almost nothing), so that backends
    which round differently must agree closely.
    """

    seed: int
    graph: Graph
    inputs: Arrays
    tame: bool


class _Maker:
    """Grows a graph op by op, each evaluated as it is added, so that only valid ones are kept."""

    def __init__(self, rng: np.random.Generator, batch: int, tame: bool, name: str) -> None:
        self.rng, self.batch, self.tame = rng, batch, tame
        self.builder = Builder(name)
        self.line = 0
        self.inputs: Arrays = []
        self.pool: list[tuple[Value, np.ndarray]] = []

    def pick(self, items: Sequence[Any]) -> Any:
        return items[int(self.rng.integers(len(items)))]

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    # ---- values --------------------------------------------------------------------------------

    def dims(self, shape: Sequence[int]) -> tuple[Dim, ...]:
        """``shape`` with a leading size that equals the batch size made symbolic, mostly."""
        if shape and shape[0] == self.batch and self.chance(0.8):
            return (BATCH, *shape[1:])
        return tuple(shape)

    def input(self, array: np.ndarray, type_: TensorType | None = None) -> Value:
        t = type_ or TensorType(dtype(array.dtype), self.dims(array.shape))
        v = self.builder.input(t, f"x{len(self.inputs)}")
        self.inputs.append(array)
        self.pool.append((v, array))
        return v

    def settle(self, array: np.ndarray) -> np.ndarray:
        """``array``, or numbers of moderate size in its place where only those are wanted.

        Denormals become 0, which is what kernels take them for.
        """
        if dtype(array.dtype).is_float:
            smallest = np.finfo(array.dtype).tiny
            array = np.where(np.abs(array) < smallest, array.dtype.type(0), array)
        if self.tame and dtype(array.dtype).is_float:
            wide = array.astype(np.float64)
            if not self.is_tame(wide):
                wide = self.rng.standard_normal(array.shape)
                return np.asarray(wide).astype(array.dtype)
        return array

    def is_tame(self, array: np.ndarray) -> bool:
        a = np.abs(np.asarray(array, np.float64))
        return bool(np.isfinite(a).all() and (a < _TAME).all())

    def is_stable(self, graph: Graph, inputs: Arrays, outputs: Arrays) -> bool:
        """Whether ``outputs`` are tame, and almost the same if the inputs are a little off."""
        if not all(self.is_tame(a) for a in outputs):
            return False
        moved = []
        for x in inputs:
            noise = 1 + 2e-6 * np.random.default_rng(x.size).uniform(-1, 1, x.shape)
            floating = dtype(x.dtype).is_float
            moved.append((x.astype(np.float64) * noise).astype(x.dtype) if floating else x)
        for a, b in zip(outputs, run(graph, moved, {"B": self.batch}), strict=True):
            if not dtype(a.dtype).is_float:
                if not np.array_equal(a, b):
                    return False
            elif not np.allclose(a.astype(np.float64), b.astype(np.float64), 1e-3, 1e-4):
                return False
        return True

    def recent(self) -> tuple[Value, np.ndarray]:
        """A value that is there; the latest results are the likeliest."""
        back = int(self.rng.geometric(0.15))
        return self.pool[-back] if back <= len(self.pool) else self.pick(self.pool)

    def operand(self, array: np.ndarray, static: bool = False) -> Value:
        """A value of the dtype and shape of ``array``: one that is there, made of one, or new."""
        shape = array.shape if static else self.dims(array.shape)
        wanted = TensorType(dtype(array.dtype), shape)
        same = [
            v for v, a in self.pool
            if (a.shape, a.dtype) == (array.shape, array.dtype) and (v.type == wanted or not static)
        ]  # fmt: skip
        if same and self.chance(0.7):
            return self.pick(same[-4:])
        made = self.converted(wanted) if self.chance(0.7) else None
        return self.input(self.settle(array), wanted) if made is None else made

    def converted(self, to: TensorType) -> Value | None:
        """A value of this type made of another by a cast, reshape, broadcast or sum."""
        for _ in range(6):
            v, _ = self.recent()
            if v.type == to or not self.bridges(v.type.shape, to.shape):
                continue
            found: tuple[Value, ...] | None = (v,)
            if v.type.dtype != to.dtype:
                found = self.try_emit(Cast(v, to.dtype))
            if found is not None and v.type.shape != to.shape:
                found = self.try_emit(self.bridge(found[0], to.shape))
            if found is not None and found[0].type == to:
                return found[0]
        return None

    def bridges(self, shape: Shape, to: Shape) -> bool:
        small, large = sorted((shape, to), key=len)
        if not small and large and self.chance(0.7):
            return False  # a scalar fits everywhere, and would soon be everywhere
        return prod(shape) == prod(to) or large[len(large) - len(small) :] == small

    def bridge(self, v: Value, to: Shape) -> Op:
        shape = v.type.shape
        if prod(shape) == prod(to):
            return Reshape(v, to)
        if len(shape) < len(to):
            return Broadcast(v, to, tuple(range(len(to) - len(shape), len(to))))
        return Sum(v, tuple(range(len(shape) - len(to))))

    # ---- ops -----------------------------------------------------------------------------------

    def try_emit(self, op: Op, packed: np.ndarray | None = None) -> tuple[Value, ...] | None:
        """Add ``op`` if it type-checks and runs on the values at hand."""
        known = dict(self.pool)
        known |= {v: packed for v in op.operands if v.type.layout and packed is not None}
        operands = list(dict.fromkeys(op.operands))
        try:
            types = op.infer()
            trial = replace(op, results=tuple(Value(-1 - i, t) for i, t in enumerate(types)))
            graph = Graph("trial", operands, [trial], trial.results)
            arrays = [known[v] for v in operands]
            found = run(graph, arrays, {"B": self.batch})
            if sum(a.size for a in found) > _MAX_ELEMENTS:
                return None
            if self.tame and not self.is_stable(graph, arrays, found):
                return None
        except NirError:
            return None
        self.line += 1
        where = {Location("fuzz.py", self.line)}
        if self.chance(0.2):
            where.add(Location("other.py", int(self.rng.integers(1, 99))))
        results = self.builder.emit(op, frozenset(where))
        # Packed weights are for the ops that know their layout.
        pairs = zip(results, found, strict=True)
        self.pool += [(v, a) for v, a in pairs if not v.type.layout]
        if isinstance(op, Pack):
            lhs = np.asarray(self.rng.standard_normal((3, found[0].shape[0])))
            x = self.operand(lhs.astype(found[0].dtype))
            self.try_emit(Matmul(x, results[0]), packed=found[0])
        return results

    def grow(self, cls: type[Op]) -> bool:
        """Add an op of this class: on values that are there if possible, else as in a sample."""
        special = _SPECIAL.get(cls)
        for attempt in range(8):
            op: Op | None = None
            if attempt < 4 and self.chance(0.6):
                op = special(self) if special else self.on_any_value(cls)
            elif samples := cls.samples():
                op = self.from_sample(cls, self.pick(list(samples)), symbolic=attempt < 6)
            elif special:
                op = special(self)
            if op is not None and self.try_emit(op) is not None:
                return True
        return self.from_scratch(cls)

    def from_scratch(self, cls: type[Op]) -> bool:
        """A sample on inputs of its own, with fixed sizes: works unless it is not tame."""
        samples = [s for s in cls.samples() if not self.tame or s.differentiable]
        for sample in self.rng.permutation(len(samples)):
            arrays = [np.asarray(a) for a in samples[sample].operands]
            values = [
                self.input(self.settle(a), TensorType(dtype(a.dtype), a.shape)) for a in arrays
            ]
            if self.try_emit(_filled(cls, samples[sample], values, {})) is not None:
                return True
        return False

    def from_sample(self, cls: type[Op], sample: Sample, symbolic: bool) -> Op:
        """A sample's op, on values of the same types; sizes in attributes follow the operands."""
        arrays = [np.asarray(a) for a in sample.operands]
        # What has not the batch as its leading size where the first operand has is no batch of
        # anything: the window of a convolution, say.
        leading = [a.shape[:1] for a in arrays]
        values = [
            self.operand(a, static=i > 0 and leading[i] != leading[0])
            for i, a in enumerate(arrays)
        ]  # fmt: skip
        changed: dict[str, Any] = {}
        if (symbolic and any(_is_symbolic(v) for v in values)) or self.chance(0.3):
            for name in ("shape", "sizes"):
                given = sample.attributes.get(name)
                if given and given[0] == self.batch:
                    changed[name] = (BATCH, *given[1:])
        return _filled(cls, sample, values, changed)

    def on_any_value(self, cls: type[Op]) -> Op | None:
        """An op whose attributes follow from the rank of its operand, on any values."""
        if not self.pool or any(arity != "one" for _, arity in cls.operand_fields):
            return None
        if not set(cls.attribute_fields) <= {"axes", "axis", "perm"} or not cls.operand_fields:
            return None
        v, a = self.recent()
        fields: dict[str, Any] = {}
        for i, (name, _) in enumerate(cls.operand_fields):
            kind = bool_ if name == "condition" else v.type.dtype
            wanted = v.type.with_(dtype=kind)
            same = [x for x, _ in self.pool if x.type == wanted and x is not v]
            if i == 0 and kind is v.type.dtype:
                fields[name] = v
            else:
                fields[name] = self.pick(same[-4:]) if same else self.converted(wanted) or v
        axes = self.rng.permutation(a.ndim)
        count = int(self.rng.integers(0, a.ndim + 1))
        for name in cls.attribute_fields:
            match name:
                case "axes":
                    fields[name] = tuple(sorted(int(i) for i in axes[:count]))
                case "axis":
                    if not a.ndim:
                        return None
                    fields[name] = int(axes[0])
                case "perm":
                    fields[name] = tuple(int(i) for i in axes)
        return cls(**fields)

    # ---- regions -------------------------------------------------------------------------------

    def body(
        self, types: Sequence[TensorType], results: Sequence[TensorType], ops: Sequence[type[Op]]
    ) -> Graph:
        """A random closed graph of ``ops`` with these inputs and outputs."""
        inner = _Maker(self.rng, self.batch, self.tame, "body")
        for t in types:
            drawn = np.asarray(self.rng.standard_normal(self.concrete(t)))
            inner.input(drawn.astype(t.dtype.numpy), t)
        for _ in range(int(self.rng.integers(1, 5))):
            op = inner.on_any_value(self.pick(ops))
            if op is not None and op.pure:
                inner.try_emit(op)
        outputs = []
        for t in results:
            found = [v for v, _ in inner.pool[len(types) :] if v.type == t]
            if not found:
                base = self.pick([v for v, _ in inner.pool if v.type == t])
                found = list(inner.builder.emit(Tanh(base), frozenset({Location("fuzz.py", 1)})))
            outputs.append(self.pick(found))
        return inner.builder.build(outputs)

    def concrete(self, t: TensorType) -> tuple[int, ...]:
        return concrete(t, {"B": self.batch})

    def float_value(self) -> Value | None:
        found = [v for v, a in self.pool if v.type.dtype is f32 and a.ndim and a.size]
        return self.pick(found) if found else None

    def build(self) -> Graph:
        """The graph; results that nothing reads are outputs, but for a few."""
        used = {v for op in self.builder.nodes for v in op.operands}
        made = [v for op in self.builder.nodes for v in op.results]
        made = [v for v in made if not v.type.layout]
        leaves = [v for v in made if v not in used]
        outputs = [v for v in leaves if self.chance(0.9)] or leaves[-1:] or made[-1:]
        if made and self.chance(0.2):
            outputs.append(self.pick(made))
        if self.builder.inputs and self.chance(0.05):
            outputs.append(self.pick(self.builder.inputs))
        return self.builder.build(outputs)


def _is_symbolic(v: Value) -> bool:
    return not v.type.is_static


def _filled(
    cls: type[Op], sample: Sample, values: Sequence[Value], changed: Mapping[str, Any]
) -> Op:
    """The op of ``sample`` reading ``values``, which fill its operand fields in order."""
    attributes = {**sample.attributes, **changed}
    fields: dict[str, Any] = {}
    left = list(values)
    arity = iter(sample.arity or (None,))
    for name, kind in cls.operand_fields:
        if name in attributes and attributes[name] is None:
            fields[name] = attributes.pop(name)
        elif kind == "many":
            count = next(arity)
            count = len(left) if count is None else count
            fields[name] = tuple(left[:count])
            del left[:count]
        else:
            fields[name] = left.pop(0)
    return cls(**fields, **attributes)


def _of_kinds(*kinds: str) -> list[type[Op]]:
    return [cls for _, cls in sorted(OPS.items()) if cls.kind in kinds]


def _make_fused(maker: _Maker) -> Op | None:
    v = maker.float_value()
    if v is None:
        return None
    same = [x for x, _ in maker.pool if x.type == v.type]
    inputs = (v, *(maker.pick(same) for _ in range(int(maker.rng.integers(0, 2)))))
    body = maker.body([x.type for x in inputs], [v.type], _of_kinds("elementwise"))
    return Fused(inputs, body, "map")


def _make_scan(maker: _Maker) -> Op | None:
    found = [v for v, a in maker.pool if v.type.dtype is f32 and a.ndim >= 2 and a.size]
    if not found:
        return None
    x = maker.pick(found)
    row = x.type.with_(shape=x.type.shape[1:])
    starts = [v for v, _ in maker.pool if v.type == row]
    zeros = np.zeros(maker.concrete(row), np.float32)
    start = maker.pick(starts) if starts else maker.input(zeros, row)
    captures = (maker.pick(starts),) if starts and maker.chance(0.5) else ()
    types = [row, row, *(c.type for c in captures)]
    body = maker.body(types, [row, row], _of_kinds("elementwise"))
    return Scan((start,), (x,), captures, body, x.type.shape[0], maker.chance(0.5))


def _make_while_loop(maker: _Maker) -> Op | None:
    """As long as the largest magnitude of the first carry is small."""
    v = maker.float_value()
    if v is None:
        return None
    same = [x for x, _ in maker.pool if x.type == v.type]
    init, captures = (v, maker.pick(same)), (maker.pick(same),)
    b = Builder("condition")
    b.locs = frozenset({Location("fuzz.py", 2)})
    first, *_ = (Expr(b, b.input(v.type, n)) for n in ("a", "b", "c"))
    limit = float(maker.rng.uniform(0.1, 3))
    largest = first.abs().max(tuple(range(first.ndim)))
    condition = b.build([largest.lt(largest.full_like(limit)).value])
    body = maker.body([v.type] * 3, [v.type] * 2, _of_kinds("elementwise"))
    return WhileLoop(init, captures, condition, body, int(maker.rng.integers(0, 5)))


def _make_cond(maker: _Maker) -> Op | None:
    v = maker.float_value()
    if v is None:
        return None
    flags = [x for x, a in maker.pool if x.type == TensorType(bool_)]
    flag = maker.pick(flags) if flags else maker.input(np.array(maker.chance(0.5)))
    bodies = [
        maker.body([v.type], [v.type], _of_kinds("elementwise", "reduction", "movement"))
        for _ in range(2)
    ]
    return Cond(flag, (v,), *bodies)


def _make_custom_vjp(maker: _Maker) -> Op | None:
    v = maker.float_value()
    if v is None:
        return None
    fwd = maker.body([v.type], [v.type], [OPS[n] for n in ("tanh", "sin", "mul", "add", "neg")])
    slope = vjp(fwd)
    b = Builder("bwd")
    x, _, ct = (b.input(v.type, n) for n in ("x", "y", "ct"))
    return CustomVjp((v,), fwd, b.build(b.inline(slope, (x, ct))))


# Ops that hold graphs get random ones. (An op without samples must be here.)
_SPECIAL: Mapping[type[Op], Callable[[_Maker], Op | None]] = {
    Fused: _make_fused, Scan: _make_scan, WhileLoop: _make_while_loop, Cond: _make_cond,
    CustomVjp: _make_custom_vjp,
}  # fmt: skip


# The ops that graphs are made of: a chain in bands is made by its pass only.
FUZZED = OPS.keys() - {"banded"}


def generate(seed: int, ops: int = 12, without: frozenset[str] = frozenset()) -> Case:
    """A random graph of about ``ops`` ops, and inputs for it; ``without`` ops of these names.

    Graph ``seed`` holds op number ``seed`` of the registry (modulo its size), so a run over
    consecutive seeds meets every op. A third of the graphs hold gradients too, and half are made to
    be tame.
    """
    rng = np.random.default_rng(seed)
    names = sorted(FUZZED - without)
    tame = seed % 2 == 0
    maker = _Maker(rng, int(rng.integers(2, 5)), tame, f"fuzz{seed}")
    # This input gives the batch size its value.
    first = rng.standard_normal((maker.batch, 4)).astype(np.float32)
    maker.input(first, TensorType(f32, (BATCH, 4)))
    shapes = [(maker.batch, 3, 4), (2, 3, 4), (4,), (3, 5)]
    maker.input(rng.standard_normal(maker.pick(shapes)).astype(np.float32))
    # Seeds 2k and 2k+1 hold the same op, tame and wild.
    must = OPS[names[seed // 2 % len(names)]]
    at = int(rng.integers(0, ops))
    for i in range(ops):
        maker.grow(must if i == at else OPS[maker.pick(names)])
    graph, inputs = maker.build(), maker.inputs
    if rng.random() < 0.35:
        graph, inputs = _with_gradient(graph, inputs, maker)
    # Every op may be stable, and the whole not.
    tame = tame and maker.is_stable(graph, inputs, run(graph, inputs))
    return Case(seed, graph, inputs, tame)


def _with_gradient(graph: Graph, inputs: Arrays, maker: _Maker) -> tuple[Graph, Arrays]:
    """``graph`` with the gradients of a sum of its f32 outputs, sometimes to second order."""
    for _ in range(1 + maker.chance(0.2)):
        if len(graph.nodes) > 60:
            break
        b = Builder(graph.name)
        b.locs = frozenset({Location("loss.py", 1)})
        outputs = b.inline(graph, [b.input(v.type, n) for v, n in zip(
            graph.inputs, graph.input_names, strict=True)])  # fmt: skip
        total: Value | None = None
        for v in outputs:
            if v.type.dtype is f32:
                (term,) = b.emit(Sum(v, tuple(range(v.type.ndim))))
                (total,) = b.emit(Add(total, term)) if total is not None else (term,)
        if total is None:
            break
        try:
            deeper = gradient(b.build([total, *outputs]))
        except NotDifferentiable:
            break
        if maker.tame and not maker.is_stable(deeper, inputs, run(deeper, inputs)):
            break
        graph = deeper
    return graph, inputs


def walk(graph: Graph) -> Iterator[Op]:
    """Every op of a graph, those in regions included."""
    for op in graph.nodes:
        yield op
        for _, region in op.regions():
            yield from walk(region)
