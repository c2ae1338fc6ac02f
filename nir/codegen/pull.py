"""From a region's body to nodes, by pulling: elements of results from elements of inputs.

A value is asked for at an index, one `Affine` of the loop axes for each of its axes. Elementwise
ops pass the index on, movement ops rewrite it, inputs turn it into an offset. A reshape whose index
cannot be taken apart asks for a finer iteration space (`Refine`), and pulling starts again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from nir.codegen.expand import cast, expand
from nir.codegen.nodes import HALVES, Affine, E, Node, Nodes, axis_index
from nir.errors import CodegenError, UnsupportedError
from nir.ir.dim import Dim, Poly, Shape, exact_div
from nir.ir.graph import Graph
from nir.ir.op import Op, Value
from nir.ops import (
    Broadcast,
    Constant,
    Flip,
    Full,
    Iota,
    Max,
    Min,
    Prod,
    Reshape,
    Slice,
    Sum,
    Transpose,
)  # fmt: skip
from nir.ops.fused import ReducePartial

Index = tuple[Affine, ...]


@dataclass
class Refine(Exception):
    """Pulling needs loop axis ``axis`` as several axes of these sizes."""

    axis: int
    sizes: Shape


@dataclass
class Pull:
    """Pulls values of ``body`` over a space of loop axes.

    ``buffers`` numbers the buffers that inputs (and, for an epilogue, the heavy result) lie in.
    ``kept`` are the axes that reductions keep: a reduction's value may be asked for there only.
    """

    body: Graph
    sizes: Shape
    buffers: Mapping[Value, int]
    nodes: Nodes
    kept: tuple[int, ...] = ()
    reduced: tuple[int, ...] = ()
    # (value, identity of an index of `indices`) -> node: hashing an index once is enough
    memo: dict[tuple[Value, int], int] = field(default_factory=dict)
    indices: dict[Index, Index] = field(default_factory=dict)

    def axis(self, a: int) -> Affine:
        """The index along loop axis ``a``: 0 where there is only one."""
        return Affine(0) if self.sizes[a] == 1 else axis_index(a)

    def at(self, value: Value, index: Index) -> int:
        """The node for ``value`` at ``index``."""
        memo = self.memo
        index = self.indices.setdefault(index, index)
        goal = (value, id(index))
        # An explicit stack: bodies may be deeper than Python's. Each entry is a value, its index,
        # and the keys of its operands once they are known.
        stack: list[tuple[Value, Index, list[tuple[Value, int]] | None]] = [(value, index, None)]
        while stack:
            v, i, keys = stack.pop()
            if keys is not None:
                memo[v, id(i)] = self._node(v, i, [memo[k] for k in keys])
            elif (v, id(i)) not in memo:
                operands, inner = self._operands(v, i)
                if inner is not i:
                    inner = self.indices.setdefault(inner, inner)
                keys = [(x, id(inner)) for x in operands]
                stack.append((v, i, keys))
                stack.extend((x, inner, None) for x in operands if (x, id(inner)) not in memo)
        return memo[goal]

    def _operands(self, v: Value, index: Index) -> tuple[Sequence[Value], Index]:
        """The values that ``v`` is made of, and the index at which they are read."""
        if v in self.buffers:
            return (), index
        op = self.body.producer[v]
        if op.kind == "elementwise":
            return op.operands, index
        match op:
            case Broadcast(x=x, axes=axes):
                return (x,), tuple(index[a] for a in axes)
            case Transpose(x=x, perm=perm):
                inner = dict(zip(perm, index, strict=True))
                return (x,), tuple(inner[a] for a in range(len(perm)))
            case Slice(x=x, starts=starts, steps=steps):
                moved = zip(index, starts, steps, strict=True)
                return (x,), tuple(i.scaled(k).plus(s) for i, s, k in moved)
            case Flip(x=x, axes=axes):
                ends = [d - 1 for d in x.type.shape]
                flipped = (i.scaled(-1).plus(e) for i, e in zip(index, ends, strict=True))
                pairs = enumerate(zip(index, flipped, strict=True))
                return (x,), tuple(f if a in axes else i for a, (i, f) in pairs)
            case Reshape(x=x, shape=shape):
                # Inputs lie in row-major order, whatever their shape is called.
                direct = x in self.buffers
                return ((), index) if direct else ((x,), self._reshaped(index, shape, x.type.shape))
            case Full() | Iota() | Constant():
                return (), index
            case Sum() | Prod() | Max() | Min() | ReducePartial():
                return op.operands, self._reduction_index(op, index)
        raise UnsupportedError(f"{op.name}: no generated loop does this inside a fused region")

    def _node(self, v: Value, index: Index, args: list[int]) -> int:
        nodes = self.nodes
        if v in self.buffers:
            return self._load(v, v.type.shape, index)
        op = self.body.producer[v]
        match op:
            case Reshape(x=x, shape=shape) if not args:
                return self._load(x, shape, index)
            case Full(value=value, dtype=dtype):
                if isinstance(value, Poly):
                    return cast(E(nodes, nodes.size(value)), dtype.name).n
                return self._constant(dtype.name, _converted(value, dtype.numpy))
            case Iota(axis=axis, dtype=dtype):
                i = index[axis]
                n = nodes.add(Node("index", "i64", (), i)) if i.terms else nodes.size(i.base)
                return cast(E(nodes, n), dtype.name).n
            case Constant(data=data):
                if data.size != 1:
                    raise UnsupportedError("constant: an array inside a fused region")
                return self._constant(op.result.type.dtype.name, data.reshape(()).item())
            case Sum() | Prod() | Max() | Min():
                return nodes.add(Node("reduce", nodes[args[0]].dtype, (args[0],), op.name))
            case ReducePartial(op=name):
                return nodes.add(Node("reduce", nodes[args[0]].dtype, (args[0],), name))
            case _ if op.kind == "elementwise":
                return expand(op, [E(nodes, a) for a in args]).n
            case _:
                return args[0]

    def _constant(self, dtype: str, value: float) -> int:
        if dtype in HALVES:
            return cast(E(self.nodes, self.nodes.const("f32", value)), dtype).n
        return self.nodes.const(dtype, value)

    def _load(self, v: Value, shape: Shape, index: Index) -> int:
        dtype = v.type.dtype.name
        offset = Affine(0)
        stride: Dim = 1
        for size, i in zip(reversed(shape), reversed(index), strict=True):
            offset = offset.plus(i.scaled(stride))
            stride = stride * size
        return self.nodes.add(Node("load", dtype, (), (self.buffers[v], offset)))

    def _reduction_index(self, op: Op, index: Index) -> Index:
        # The first axis of a partial result counts chunks; it enters through the range of rows.
        own = index[1:] if isinstance(op, ReducePartial) else index
        if own != tuple(map(self.axis, self.kept)):
            raise CodegenError(f"{op.name}: read at another element than its own: {index}")
        shape = op.operands[0].type.shape
        kept, reduced = iter(self.kept), iter(self.reduced)
        axes = reduced_axes(op)
        # A refined space may have several loop axes for one of the operand's.
        loops = self.match_axes(shape, axes, kept, reduced)
        if loops is None:
            raise CodegenError(f"{op.name}: {shape} does not fit the space {self.sizes}")
        return loops

    def match_axes(
        self, shape: Shape, axes: Sequence[int], kept: Iterator[int], reduced: Iterator[int]
    ) -> Index | None:
        """For each axis of ``shape`` the loop axes that make it up, kept or reduced ones."""
        out = []
        for a, d in enumerate(shape):
            source = reduced if a in axes else kept
            parts: list[int] = []
            extent: Dim = 1
            while not parts or extent != d:
                loop = next(source, None)
                if loop is None:
                    return None
                parts.append(loop)
                extent = extent * self.sizes[loop]
            index = Affine(0)
            stride: Dim = 1
            for loop in reversed(parts):
                index = index.plus(self.axis(loop).scaled(stride))
                stride = stride * self.sizes[loop]
            out.append(index)
        return tuple(out)

    def _reshaped(self, index: Index, new: Shape, old: Shape) -> Index:
        """An index of ``new`` as one of ``old``, where both hold the same elements in order."""
        if any(d == 0 for d in old):
            return tuple(Affine(0) for _ in old)
        out: list[Affine] = []
        for news, olds in axis_groups(new, old):
            linear = Affine(0)
            stride: Dim = 1
            for a in reversed(news):
                linear = linear.plus(index[a].scaled(stride))
                stride = stride * new[a]
            out.extend(self._delinearize(linear, [old[a] for a in olds]))
        return tuple(out)

    def _delinearize(self, linear: Affine, sizes: list[Dim]) -> list[Affine]:
        if len(sizes) == 0:
            return []
        real = [d for d in sizes if d != 1]
        found: list[Affine] = []
        rest = linear
        for size in reversed(real[1:]):
            high, low = self._divide(rest, size, real)
            found.append(low)
            rest = high
        if real:
            found.append(rest)
        found.reverse()
        values = iter(found)
        return [Affine(0) if d == 1 else next(values) for d in sizes]

    def _divide(self, linear: Affine, size: Dim, sizes: list[Dim]) -> tuple[Affine, Affine]:
        """(linear // size, linear % size), where the parts are plain to see."""
        high: dict[int, Dim] = {}
        low: dict[int, Dim] = {}
        for a, c in linear.terms:
            q = exact_div(c, size)
            (low if q is None else high)[a] = c if q is None else q
        base = linear.base
        base_q = exact_div(base, size)
        top: Dim = 0 if base_q is not None else base
        for a, c in low.items():
            top = top + c * (self.sizes[a] - 1)
        room = size - 1 - top
        # A symbolic coefficient is a product of sizes.
        positive = all(not isinstance(c, int) or c > 0 for c in low.values())
        if positive and isinstance(room, int) and room >= 0:
            return (
                Affine(base_q or 0, tuple(high.items())),
                Affine(0 if base_q is not None else base, tuple(low.items())),
            )
        if len(linear.terms) == 1 and linear.terms[0][1] == 1 and linear.base == 0:
            raise Refine(linear.terms[0][0], tuple(sizes))
        raise UnsupportedError(f"reshape: {linear} by {size} inside a fused region")


def _converted(value: object, dtype: np.dtype) -> float:
    with np.errstate(all="ignore"):
        number: float = np.asarray(value).astype(dtype).item()
    return number


def reduced_axes(op: Op) -> tuple[int, ...]:
    """The axes that a reduction drops."""
    if isinstance(op, ReducePartial):
        return tuple(range(op.leading))
    return op.axes  # type: ignore[attr-defined,no-any-return]


def axis_groups(new: Shape, old: Shape) -> list[tuple[list[int], list[int]]]:
    """The finest runs of axes with equal products; axes of size 1 join the run before them."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(new) or j < len(old):
        left: list[int] = []
        right: list[int] = []
        a: Dim = 1
        b: Dim = 1
        while True:
            if left and right and a == b:
                break
            # The smaller run grows; where that is not known, the one that has axes left.
            grow_left = i < len(new) and (j == len(old) or not left or _smaller(a, b))
            if grow_left:
                left.append(i)
                a, i = a * new[i], i + 1
            elif j < len(old):
                right.append(j)
                b, j = b * old[j], j + 1
            else:
                break
        groups.append((left, right))
    return groups


def _smaller(a: Dim, b: Dim) -> bool:
    if isinstance(a, int) and isinstance(b, int):
        return a < b
    return exact_div(b, a) is not None and a != b
