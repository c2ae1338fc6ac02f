"""From a `Fused` region to a `LoopKernel`: choose the space, pull the results, collapse axes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nir.codegen.loop import (
    INNER,
    LANES,
    LEAD,
    OUTER,
    LoopBuffer,
    LoopKernel,
    Store,
    symbolic_sizes,
)  # fmt: skip
from nir.codegen.nodes import ITEMSIZE, Affine, Node, Nodes, affine
from nir.codegen.pull import Pull, Refine, reduced_axes
from nir.errors import CodegenError
from nir.frozen import Frozen, replace
from nir.ir.dim import Dim, Shape, ceildiv, prod
from nir.ir.graph import Graph
from nir.ir.op import Value
from nir.ops import Max, Min, Prod, Sum
from nir.ops.fused import Fused, ReducePartial, accumulator_result

# Results from this size on do not stay in a cache until they are read: 32 MB.
_STREAM_BYTES = 1 << 25
# Columns of a piece that one thread takes where columns are split: 16 KB of f32.
_COL_GRAIN = 4096
_REDUCED_COL_GRAIN = 64
# Live operations above which fewer copies are interleaved: registers run out.
_UNROLL_OPS = ((60, 4), (140, 2))
# Rows of a thread's share, in elements.
_ROW_ELEMENTS = 2048
# How often an iteration space may be refined.
_REFINEMENTS = 32


class _Region(Frozen):
    """A body with the space of its loops, before the axes collapse."""

    form: str
    body: Graph
    space: Shape
    level: int  # axes before the boundary: row axes (row), reduced axes (column)
    outputs: tuple[Value, ...]
    buffers: tuple[LoopBuffer, ...]
    of: dict[Value, int]
    chunk: int | None = None


# Kernels by form and body: layers of a model are alike, and a region is asked for again.
_kernels: dict[tuple[str, str], LoopKernel] = {}
_MAX_KERNELS = 1024


def lower_fused(fused: Fused) -> LoopKernel:
    """The loop kernel that computes ``fused``, the same for every ISA level.

    Raises UnsupportedError for an op that generated code does not cover.
    """
    key = fused.form, fused.body.key
    kernel = _kernels.get(key)
    if kernel is None:
        if len(_kernels) >= _MAX_KERNELS:
            _kernels.clear()
        kernel = _kernels[key] = _lowered(fused)
    return kernel


def _lowered(fused: Fused) -> LoopKernel:
    match fused.form:
        case "map":
            region = _whole(fused, fused.body.output_types[0].shape, 0)
        case "row" | "column":
            region = _reducing(fused)
        case "epilogue":
            region = _epilogue(fused)
        case _:
            raise CodegenError(f"fused: a region of form {fused.form!r}")
    kernel = _kernel(region)
    return replace(kernel, dims=symbolic_sizes(kernel))


def _whole(fused: Fused, space: Shape, level: int, chunk: int | None = None) -> _Region:
    body = fused.body
    operands = [LoopBuffer("operand", i, v.type.dtype.name) for i, v in enumerate(body.inputs)]
    results = [LoopBuffer("result", i, v.type.dtype.name) for i, v in enumerate(body.outputs)]
    of = {v: i for i, v in enumerate(body.inputs)}
    buffers = (*operands, *results)
    return _Region(fused.form, body, space, level, body.outputs, buffers, of, chunk)


def _reducing(fused: Fused) -> _Region:
    found = [op for op in fused.body.nodes if isinstance(op, (Sum, Prod, Max, Min, ReducePartial))]
    shapes = {(op.operands[0].type.shape, reduced_axes(op)) for op in found}
    chunks = {op.chunk if isinstance(op, ReducePartial) else None for op in found}
    if len(shapes) != 1 or len(chunks) != 1:
        raise CodegenError(f"fused: reductions of one region differ: {shapes}, chunks {chunks}")
    ((shape, axes),) = shapes
    level = len(axes) if fused.form == "column" else len(shape) - len(axes)
    return _whole(fused, shape, level, chunks.pop())


def _epilogue(fused: Fused) -> _Region:
    body = fused.body
    heavy = body.nodes[0].results[0]
    index = accumulator_result(fused)
    read = {v for op in body.nodes[1:] for v in op.operands}
    used = [i for i, v in enumerate(body.inputs) if v in read]
    results = [i for i, v in enumerate(body.outputs) if v is not heavy]
    buffers = (
        *(LoopBuffer("operand", i, body.inputs[i].type.dtype.name) for i in used),
        LoopBuffer("accumulator", index, heavy.type.dtype.name),
        *(LoopBuffer("result", i, body.outputs[i].type.dtype.name) for i in results),
    )
    of = {body.inputs[i]: k for k, i in enumerate(used)}
    of[heavy] = len(used)
    outputs = tuple(body.outputs[i] for i in results)
    shape = heavy.type.shape
    # Tiles are ranges of rows and columns: the last axis stays apart from the others.
    return _Region("epilogue", body, shape, max(len(shape) - 1, 0), outputs, buffers, of)


def _kernel(region: _Region) -> LoopKernel:
    space, level = region.space, region.level
    for _ in range(_REFINEMENTS):
        try:
            return _build(region, space, level)
        except Refine as finer:
            a = finer.axis
            space = (*space[:a], *finer.sizes, *space[a + 1 :])
            level += len(finer.sizes) - 1 if a < level else 0
    raise CodegenError(f"fused: the space {region.space} does not settle")


def _build(region: _Region, space: Shape, level: int) -> LoopKernel:
    """Pull the results over ``space``, which is the region's or a finer one."""
    axes = list(range(len(space)))
    column = region.form == "column"
    kept, reduced = (axes[level:], axes[:level]) if column else (axes[:level], axes[level:])
    nodes = Nodes()
    pull = Pull(region.body, space, region.of, nodes, tuple(kept), tuple(reduced))
    stores = []
    first_result = len(region.buffers) - len(region.outputs)
    for i, v in enumerate(region.outputs):
        shape = v.type.shape
        per_row = region.form == "row" and shape != region.space
        own = kept if per_row or column else axes
        # The first axis of partial results counts chunks, which are rows of the call.
        count = 0 if region.chunk is None else 1
        index = pull.match_axes(shape[count:], (), iter(own), iter(()))
        if index is None:
            raise CodegenError(f"fused: a result of shape {shape} in the space {region.space}")
        head = (Affine(0),) * count
        stores.append(Store(first_result + i, pull.at(v, (*head, *index)), per_row))
    return _collapse(region, space, level, nodes, stores)


# ---- axes --------------------------------------------------------------------------------------


def _offsets(table: Iterable[Node]) -> list[Affine]:
    return [node.offset for node in table if node.op in ("load", "index")]


def _merge(group: Sequence[int], space: Shape, offsets: Sequence[Affine]) -> list[tuple[int, Dim]]:
    """(last old axis, size) of each run: axes join where stepping one spans the next one whole."""
    out: list[tuple[int, Dim]] = []
    for a in group:
        size = space[a]
        if size == 1:
            continue
        if out:
            before, extent = out[-1]
            whole = all(i.coefficient(before) == i.coefficient(a) * size for i in offsets)
            if whole:
                out[-1] = (a, extent * size)
                continue
        out.append((a, size))
    return out


def _collapse(
    region: _Region, space: Shape, level: int, nodes: Nodes, stores: Sequence[Store]
) -> LoopKernel:
    table, stores = _live(nodes.table, stores)
    offsets = _offsets(table)
    axes = list(range(len(space)))
    boundary = 0 if region.form == "map" else level
    first = _merge(axes[:boundary], space, offsets)
    second = _merge(axes[boundary:], space, offsets) or [(-1, 1)]
    *outer, inner = second
    rows: list[tuple[int, Dim]] = []
    lead: list[tuple[int, Dim]] = []
    match region.form:
        case "map":
            rows, outer = outer, []
        case "row" | "epilogue":
            rows = first
        case "column":
            rows, lead, outer = outer, first, []
    order = [*rows, *lead, *outer, inner]
    table = _renumber(table, {a: k for k, (a, _) in enumerate(order)})
    kernel = LoopKernel(
        form=region.form,
        nodes=tuple(table),
        buffers=region.buffers,
        stores=tuple(stores),
        row_sizes=tuple(d for _, d in rows),
        lead_sizes=tuple(d for _, d in lead),
        outer_sizes=tuple(d for _, d in outer),
        width=inner[1],
        unroll=1,
        chunk=region.chunk,
    )
    return _tuned(kernel)


def _live(table: Sequence[Node], stores: Sequence[Store]) -> tuple[list[Node], list[Store]]:
    """The nodes that a store needs, renumbered in order."""
    keep: set[int] = set()
    stack = [s.node for s in stores]
    while stack:
        n = stack.pop()
        if n not in keep:
            keep.add(n)
            stack.extend(table[n].args)
    new = {n: k for k, n in enumerate(sorted(keep))}
    old = [table[n] for n in sorted(keep)]
    kept = [Node(n.op, n.dtype, tuple(new[a] for a in n.args), n.attr) for n in old]
    return kept, [replace(s, node=new[s.node]) for s in stores]


def _renumber(table: Sequence[Node], axis: dict[int, int]) -> list[Node]:
    """Offsets over the new axes; an axis that joined the one after it drops out."""

    def moved(i: Affine) -> Affine:
        return affine(i.base, {axis[a]: c for a, c in i.terms if a in axis})

    out = []
    for node in table:
        match node.op:
            case "load":
                node = Node("load", node.dtype, (), (node.buffer, moved(node.offset)))
            case "index":
                node = Node("index", node.dtype, (), moved(node.offset))
        out.append(node)
    return out


# ---- sizes of blocks ---------------------------------------------------------------------------


def _tuned(kernel: LoopKernel) -> LoopKernel:
    """Choose unrolling and grains, from the kernel alone: never from the machine."""
    unroll, row_unroll = _unroll(kernel)
    total = prod((*kernel.row_sizes, *kernel.lead_sizes, *kernel.outer_sizes, kernel.width))
    rows = prod(kernel.row_sizes)
    if kernel.chunk is not None:
        rows = rows * ceildiv(kernel.lead_rows, kernel.chunk)
    columns = kernel.columns
    row_grain = max(1, _ROW_ELEMENTS // max(columns, 1)) if isinstance(columns, int) else 1
    kernel = replace(kernel, unroll=unroll, row_unroll=row_unroll, col_grain=_col_grain(kernel))
    return replace(
        kernel,
        rows=rows,
        # Rows are whole, and reduce to something even where they are empty.
        cols=1 if kernel.form == "row" else columns,
        row_grain=row_grain if kernel.form in ("map", "row") else 1,
        work=total * _work(kernel),
        streams=_streams(kernel, total),
    )


def _streams(kernel: LoopKernel, total: Dim) -> tuple[int, ...]:
    """The results to write past the caches: larger than they are, and not read back.

    An ordinary store reads the line first, which costs a third of what such a loop moves.
    """
    large = isinstance(total, int) and total * 4 >= _STREAM_BYTES
    flat = kernel.form == "map" and not kernel.row_sizes
    whole = flat or (isinstance(kernel.width, int) and kernel.width % LANES == 0)
    if not large or not whole or kernel.form not in ("map", "row"):
        return ()
    read = {n for stage in kernel.stages for n, kind, _ in stage.reloads if kind == "result"}
    full = [s for s in kernel.stores if not s.per_row and s.node not in read]
    return tuple(s.buffer for s in full if ITEMSIZE[kernel.buffers[s.buffer].dtype] == 4)


def _unroll(kernel: LoopKernel) -> tuple[int, int]:
    vectors = [n for n, node in enumerate(kernel.nodes) if kernel.level[n] & INNER]
    count = sum(kernel.nodes[n].op not in ("load", "const") for n in vectors)
    unroll = next((u for limit, u in _UNROLL_OPS if count <= limit), 1)
    if any(ITEMSIZE[kernel.nodes[n].dtype] == 8 for n in vectors):
        unroll = max(1, unroll // 2)
    flat = kernel.form == "map" and not kernel.row_sizes  # its text shall not hold the width
    if flat or not isinstance(kernel.width, int):
        return unroll, 1
    narrow = max(1, min(unroll, -(-kernel.width // LANES)))
    # A narrow column kernel takes several rows at once instead.
    row_unroll = unroll // narrow if kernel.form == "column" else 1
    return narrow, row_unroll


def _col_grain(kernel: LoopKernel) -> int:
    wide = not isinstance(kernel.width, int) or kernel.width > _COL_GRAIN
    match kernel.form:
        case "map" if not kernel.row_sizes or wide:
            return _COL_GRAIN
        case "epilogue":
            return LANES
        case "column" if kernel.chunk is None and (
            not isinstance(kernel.width, int) or kernel.width > _REDUCED_COL_GRAIN
        ):
            return _REDUCED_COL_GRAIN
    return 0


def _work(kernel: LoopKernel) -> int:
    """Bytes moved for each point of the space, an operation counting as an eighth of one."""
    eighths = 0
    for n, node in enumerate(kernel.nodes):
        if kernel.level[n] & (INNER | LEAD | OUTER):
            eighths += 8 * ITEMSIZE[node.dtype] if node.op == "load" else 1
    if kernel.form != "column":
        full = [s for s in kernel.stores if not s.per_row]
        eighths += sum(8 * ITEMSIZE[kernel.buffers[s.buffer].dtype] for s in full)
    return max(1, eighths // 8)
