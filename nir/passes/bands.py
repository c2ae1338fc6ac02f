"""Bands: a depthwise convolution between two products runs line by line with them.

An inverted residual (expand, 3 x 3 depthwise, project) makes images of four to six times the
channels of what it reads and writes. Where these are larger than a core's cache, each would be
written to the third cache or memory and read from it. In bands they stay where they are made: a few
lines of the expansion, the lines of the convolution that those give, their projection.

requires: `fuse`.  ensures: nothing; ops of a chain become one `Banded` op.
"""

from __future__ import annotations

import functools

from nir.frozen import Frozen, replace
from nir.ir.dim import Shape, prod
from nir.ir.graph import Builder, Graph
from nir.ir.op import Op, Value
from nir.ir.program import Target
from nir.ops import Banded, Conv2d, Fused, Matmul, Reshape
from nir.ops.banded import heavy, layout
from nir.passes.memory import typical
from nir.passes.rewrite import everywhere

# Intermediate results from this size on do not stay in the caches of two cores.
_WORTH = 1 << 20
# Lines that a thread keeps: half of a second-level cache of 1 MB, beside operands and weights. More
# than all of it would not stay there either.
_KEPT, _MOST = 1 << 19, 1 << 20
# Weights that are read again for each band.
_WEIGHTS = 1 << 17


def bands(graph: Graph, target: Target) -> Graph:
    """``graph`` with chains around depthwise convolutions as `Banded` ops."""
    return everywhere(graph, functools.partial(_bands, target))


class _Chain(Frozen, eq=False):
    """Consecutive ops, and the value between each two: a result, and what the next one reads."""

    ops: tuple[Op, ...]
    between: tuple[tuple[Value, Value], ...]


def _bands(target: Target, graph: Graph) -> Graph:
    if target.name != "cpu":
        return graph
    at: dict[Op, Op] = {}  # the last op of a chain, and what takes its place
    gone: set[Op] = set()
    for op in graph.nodes:
        found = _chain(graph, target, op)
        if found is None or gone & set(found.ops):
            continue
        banded = _banded(found)
        if banded is None:
            continue
        at[found.ops[-1]] = banded
        gone |= set(found.ops)
        gone |= {graph.producer[read] for made, read in found.between if made is not read}
    if not at:
        return graph
    nodes = [at.get(op, op) for op in graph.nodes if op in at or op not in gone]
    return graph.with_(nodes=tuple(nodes))


def _depthwise(op: Op) -> Conv2d | None:
    conv = heavy(op)
    if isinstance(conv, Conv2d) and conv.groups == conv.result.type.shape[-1]:
        return conv
    return None


def _chain(graph: Graph, target: Target, op: Op) -> _Chain | None:
    """A depthwise convolution with the product or convolution before it and the product behind it.

    None where ``op`` is no such convolution, or neither is there.
    """
    conv = _depthwise(op)
    if conv is None or conv.x_layout != "NHWC" or not _by_lines(target, op):
        return None
    ops, between = [op], []
    image = _operand(op, conv.x)
    before = _before(graph, image)
    if before is not None and _by_lines(target, before) and _of_pixels(before, conv.x.type.shape):
        ops.insert(0, before)
        between.append((before.result, image))
    read, behind = _behind(graph, op)
    if behind is not None and _by_lines(target, behind):
        product = heavy(behind)
        if isinstance(product, Matmul) and _operand(behind, product.lhs) is read:
            ops.append(behind)
            between.append((op.result, read))
    return _Chain(tuple(ops), tuple(between)) if between else None


def _by_lines(target: Target, op: Op) -> bool:
    """Whether a kernel computes any of the result's lines from the lines that they need."""
    if len(op.results) != 1 or (isinstance(op, Fused) and op.form != "epilogue"):
        return False
    entry = target.kernels.get(heavy(op).name)
    call = entry(heavy(op)) if callable(entry) else None
    return call is not None and call.by_lines and call.pack is None


def _operand(op: Op, inner: Value) -> Value:
    """The operand of ``op`` that its heavy op reads as ``inner``."""
    return op.inputs[op.body.inputs.index(inner)] if isinstance(op, Fused) else inner


def _sole_user(graph: Graph, v: Value) -> Op | None:
    users = graph.users[v]
    alone = len(users) == 1 and v not in graph.outputs and users[0].operands.count(v) == 1
    return users[0] if alone else None


def _before(graph: Graph, image: Value) -> Op | None:
    """The op whose result, read by nobody else, is the image."""
    if _sole_user(graph, image) is None:
        return None
    op = graph.producer.get(image)
    if isinstance(op, Reshape):
        if _sole_user(graph, op.x) is None:
            return None
        op = graph.producer.get(op.x)
    return op


def _of_pixels(op: Op, image: Shape) -> bool:
    return op.result.type.shape in (image, (prod(image[:3]), image[3]))


def _behind(graph: Graph, conv: Op) -> tuple[Value, Op | None]:
    """What the result of ``conv`` is read as, and the op that does if it is the only one."""
    v = conv.result
    user = _sole_user(graph, v)
    if isinstance(user, Reshape) and _of_pixels(user, v.type.shape):
        v = user.result
        user = _sole_user(graph, v)
    return v, user


def _banded(found: _Chain) -> Op | None:
    """The chain as one op; None where its results stay in the caches as they are."""
    made = {v for v, _ in found.between}
    inner = {v for pair in found.between for v in pair}
    convs = [conv for op in found.ops if (conv := _depthwise(op)) is not None]
    if not all(isinstance(d, int) for conv in convs for d in conv.x.type.shape[1:]):
        return None
    inputs = tuple(dict.fromkeys(v for op in found.ops for v in op.operands if v not in inner))
    weights = [heavy(op).operands[1].type.nbytes for op in found.ops]
    if sum(typical(v.type.nbytes) for v in made) <= _WORTH or typical(sum(weights)) > _WEIGHTS:
        return None
    b = Builder("bands")
    new: dict[Value, Value] = {v: b.input(v.type, f"a{i}") for i, v in enumerate(inputs)}
    reads = {v: read for v, read in found.between}
    for op in found.ops:
        (result,) = b.emit(op.map_operands(new.__getitem__), op.locs)
        read = reads.get(op.result)
        if read is not None:
            same = read is op.result
            new[read] = result if same else b.emit(Reshape(result, read.type.shape), op.locs)[0]
    body = b.build([result])
    if layout(body, 1).memory > _MOST:
        return None
    lines = 1
    height = convs[-1].result.type.shape[1]
    assert isinstance(height, int)
    while lines < height and layout(body, lines + 1).memory <= _KEPT:
        lines += 1
    last = found.ops[-1]
    op = Banded(inputs, body, lines)
    return replace(op, results=last.results, locs=frozenset().union(*(o.locs for o in found.ops)))
