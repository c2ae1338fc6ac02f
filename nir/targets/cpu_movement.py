"""CPU kernels for pooling, gathers, scans, sorting, random bits and copies.

The layouts of ``dims`` are at the top of each source in kernels/cpu.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nir.frozen import Frozen
from nir.ir.dim import Dim, Shape, prod
from nir.ir.types import DType
from nir.ops.index import CheckIndex, Put, ScatterAdd, ScatterAddAlong, Take, TakeAlong
from nir.ops.pool import AvgPool2d, AvgPool2dGrad, MaxPool2d, MaxPool2dGrad, MaxPool2dSelect
from nir.ops.random import RandomBits
from nir.ops.reduce import ArgMax, ArgMin, CumSum
from nir.ops.shape import Broadcast, Concat, Dilate, Flip, Pad, Slice, Transpose
from nir.ops.sort import Sort, TopK
from nir.targets.kernel_call import KernelCall

_NUMBERS = ("f32", "f64", "i32", "i64")
_FLOATS = ("f32", "f64")
_MAX_AXES = 8
# Columns of one strip in the kernels that work channel by channel.
_STRIP = 64
_CACHE_BYTES = 16384


def _rows_per_grain(cols: Dim, size: int) -> int:
    """Rows of about 16 KB: less is not worth handing to another thread."""
    row = cols * size if isinstance(cols, int) else _CACHE_BYTES
    return max(1, _CACHE_BYTES // max(1, row))


# ---- pooling -----------------------------------------------------------------------------------


def _pool_dims(op: Any, x: Shape, y: Shape) -> tuple[Dim, ...]:
    (top, _), (left, _) = op.padding
    include = int(getattr(op, "count_include_pad", False))
    return (*x, y[1], y[2], *op.kernel, *op.stride, top, left, include)


def _pool(kernel: str, op: Any, x: Shape, y: Shape, dtypes: Sequence[str]) -> KernelCall | None:
    """A pooling kernel whose iteration space is its result's pixels x channels."""
    out = op.result.type
    if out.dtype.name not in dtypes:
        return None
    taps = op.kernel[0] * op.kernel[1]
    return KernelCall(
        f"nir_{kernel}_{out.dtype.name}",
        _pool_dims(op, x, y),
        rows=prod(out.shape[:3]),
        cols=out.shape[3],
        row_grain=_rows_per_grain(out.shape[3], out.dtype.itemsize * taps),
        col_grain=_STRIP,
        work=prod(y) * (taps * out.dtype.itemsize),
    )


def max_pool2d(op: MaxPool2d) -> KernelCall | None:
    return _pool("max_pool2d", op, op.x.type.shape, op.result.type.shape, _NUMBERS)


def max_pool2d_select(op: MaxPool2dSelect) -> KernelCall | None:
    return _pool("max_pool2d_select", op, op.x.type.shape, op.result.type.shape, _NUMBERS)


def max_pool2d_grad(op: MaxPool2dGrad) -> KernelCall | None:
    t = op.x.type
    if t.dtype.name not in _NUMBERS:
        return None
    taps = op.kernel[0] * op.kernel[1]
    return KernelCall(
        f"nir_max_pool2d_grad_{t.dtype.name}",
        _pool_dims(op, t.shape, op.dy.type.shape),
        rows=t.shape[0],
        cols=t.shape[3],
        col_grain=_STRIP,
        work=op.dy.type.size * (taps * 4 * t.dtype.itemsize),
    )


def avg_pool2d(op: AvgPool2d) -> KernelCall | None:
    return _pool("avg_pool2d", op, op.x.type.shape, op.result.type.shape, _FLOATS)


def avg_pool2d_grad(op: AvgPool2dGrad) -> KernelCall | None:
    return _pool("avg_pool2d_grad", op, op.result.type.shape, op.dy.type.shape, _FLOATS)


# ---- along an axis -----------------------------------------------------------------------------


def _around(shape: Shape, axis: int) -> tuple[Dim, Dim, Dim]:
    """(outer, n, inner) of an array round one of its axes."""
    return prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])


def _bits(dtype: DType) -> str:
    return f"b{8 * dtype.itemsize}"


def _indexed(
    kernel: str, op: Any, m: Dim, result_rows: Dim, in_place: tuple[int, ...]
) -> KernelCall:
    t, out = op.x.type, op.result.type
    outer, n, inner = _around(t.shape, op.axis)
    return KernelCall(
        f"nir_{kernel}_{op.indices.type.dtype.name}",
        (outer, n, m, inner),
        rows=outer * result_rows,
        cols=inner,
        row_grain=_rows_per_grain(inner, t.dtype.itemsize),
        col_grain=_STRIP,
        work=out.size * (2 * t.dtype.itemsize) + op.indices.type.nbytes,
        in_place=in_place,
    )


def take(op: Take) -> KernelCall | None:
    m = op.indices.type.size
    return _indexed(f"take_{_bits(op.x.type.dtype)}", op, m, m, ())


def take_along(op: TakeAlong) -> KernelCall | None:
    m = op.indices.type.shape[op.axis]
    return _indexed(f"take_along_{_bits(op.x.type.dtype)}", op, m, m, ())


def check_index(op: CheckIndex) -> KernelCall | None:
    t = op.indices.type
    return KernelCall(
        f"nir_check_index_{t.dtype.name}",
        (op.size,),
        rows=t.size,
        row_grain=_STRIP,
        work=2 * t.nbytes,
        in_place=(0,),
    )


def scatter_add(op: ScatterAdd) -> KernelCall | None:
    t = op.x.type
    if t.dtype.name not in _NUMBERS:
        return None
    m = op.indices.type.size
    return _indexed(f"scatter_add_{t.dtype.name}", op, m, t.shape[op.axis], (0,))


def put(op: Put) -> KernelCall | None:
    t = op.x.type
    m = op.indices.type.size
    return _indexed(f"put_{_bits(t.dtype)}", op, m, t.shape[op.axis], (0,))


def scatter_add_along(op: ScatterAddAlong) -> KernelCall | None:
    t = op.x.type
    if t.dtype.name not in _NUMBERS:
        return None
    m = op.indices.type.shape[op.axis]
    return _indexed(f"scatter_add_along_{t.dtype.name}", op, m, t.shape[op.axis], (0,))


def _along(kernel: str, op: Any, names: dict[str, str]) -> KernelCall | None:
    t = op.x.type
    if t.dtype.name not in names:
        return None
    outer, n, inner = _around(t.shape, op.axis)
    return KernelCall(
        f"nir_{kernel}_{names[t.dtype.name]}",
        (outer, n, inner),
        rows=outer,
        cols=inner,
        col_grain=_STRIP,
        work=t.size * (2 * t.dtype.itemsize),
    )


_SAME = {name: name for name in _NUMBERS}
_COMPARABLE = {**_SAME, "u8": "u8", "bool": "u8"}


def cum_sum(op: CumSum) -> KernelCall | None:
    return _along("cumsum", op, _SAME)


def arg_max(op: ArgMax) -> KernelCall | None:
    return _along("argmax", op, _COMPARABLE)


def arg_min(op: ArgMin) -> KernelCall | None:
    return _along("argmin", op, _COMPARABLE)


def _ordered(kernel: str, op: Sort | TopK, *more: Dim, items: Dim) -> KernelCall:
    """A kernel that orders along an axis, with room for ``items`` of its keys and indices."""
    t = op.x.type
    outer, n, inner = _around(t.shape, op.axis)
    name = "u8" if t.dtype.name == "bool" else t.dtype.name
    return KernelCall(
        f"nir_{kernel}_{name}",
        (outer, n, inner, *more),
        rows=outer,
        cols=inner,
        col_grain=1,
        scratch=items * (16 if t.dtype.itemsize == 8 else 8),
        work=t.size * 64,
    )


def sort(op: Sort) -> KernelCall | None:
    return _ordered("sort", op, int(op.descending), items=op.x.type.shape[op.axis] * 2)


def top_k(op: TopK) -> KernelCall | None:
    return _ordered("top_k", op, int(op.largest), op.k, items=op.k)


def random_bits(op: RandomBits) -> KernelCall | None:
    n = op.result.type.size
    return KernelCall("nir_random_bits_i32", (n,), rows=n, row_grain=4096, work=n * 16)


# ---- copies ------------------------------------------------------------------------------------


class _Axis(Frozen):
    """An axis of a copy: its size, and the elements from one index to the next on both sides."""

    size: Dim
    source: Dim
    target: Dim


def strides(shape: Shape) -> list[Dim]:
    """Elements from one index to the next along each axis, in row-major order."""
    out: list[Dim] = []
    step: Dim = 1
    for n in reversed(shape):
        out.append(step)
        step = step * n
    return out[::-1]


def _merged(axes: Sequence[_Axis]) -> list[_Axis]:
    """The same copy in as few axes as possible, sources' contiguous axis second to last."""
    out: list[_Axis] = []
    for axis in axes:
        if axis.size == 1:
            continue
        above = out[-1] if out else None
        if (
            above
            and above.source == axis.source * axis.size
            and above.target == axis.target * axis.size
        ):
            out[-1] = _Axis(above.size * axis.size, axis.source, axis.target)
        else:
            out.append(axis)
    if not out:
        return [_Axis(1, 1, 1)]
    inner = next((i for i, a in enumerate(out[:-1]) if a.source == 1), None)
    if inner is not None:
        out.insert(len(out) - 2, out.pop(inner))
    return out


def _copy(op: Any, offset: Dim, sources: Sequence[Dim]) -> KernelCall | None:
    """result[i] = x[offset + sum of sources * i]."""
    out = op.result.type
    targets = strides(out.shape)
    axes = _merged([_Axis(*a) for a in zip(out.shape, sources, targets, strict=True)])
    if len(axes) > _MAX_AXES:
        return None
    dims: list[Dim] = [len(axes), offset, 0]
    for a in axes:
        dims += [a.size, a.source, a.target]
    size = out.dtype.itemsize
    # Where the source turns, whole tiles need rows of the result that lie below each other.
    turns = len(axes) > 1 and axes[-1].source != 1 and axes[-2].source == 1
    grain = _rows_per_grain(axes[-1].size, size)
    return KernelCall(
        f"nir_copy_{_bits(out.dtype)}",
        tuple(dims),
        rows=prod(a.size for a in axes[:-1]),
        cols=axes[-1].size,
        row_grain=max(grain, _STRIP) if turns else grain,
        col_grain=_STRIP,
        work=out.size * (2 * size),
    )


def transpose(op: Transpose) -> KernelCall | None:
    s = strides(op.x.type.shape)
    return _copy(op, 0, [s[a] for a in op.perm])


def slice_(op: Slice) -> KernelCall | None:
    s = strides(op.x.type.shape)
    offset: Dim = 0
    for start, step in zip(op.starts, s, strict=True):
        offset = offset + start * step
    return _copy(op, offset, [a * b for a, b in zip(s, op.steps, strict=True)])


def flip(op: Flip) -> KernelCall | None:
    s = strides(op.x.type.shape)
    offset: Dim = 0
    for a in op.axes:
        offset = offset + (op.x.type.shape[a] - 1) * s[a]
        s[a] = s[a] * -1
    return _copy(op, offset, s)


def broadcast(op: Broadcast) -> KernelCall | None:
    s: list[Dim] = [0] * len(op.shape)
    for axis, step in zip(op.axes, strides(op.x.type.shape), strict=True):
        s[axis] = step
    return _copy(op, 0, s)


def _pad(op: Any, low: Shape, factors: Sequence[int], value: Any) -> KernelCall | None:
    t, out = op.x.type, op.result.type
    if not 1 <= out.ndim <= _MAX_AXES:
        return None
    size = t.dtype.itemsize
    bits = np.asarray(value).astype(t.dtype.numpy).view(f"u{size}").astype(np.uint64)
    dims: list[Dim] = [out.ndim, int(bits.view(np.int64))]
    for axis in zip(t.shape, low, factors, out.shape, strict=True):
        dims += axis
    return KernelCall(
        f"nir_pad_{_bits(t.dtype)}",
        tuple(dims),
        rows=prod(out.shape[:-1]),
        cols=out.shape[-1],
        row_grain=_rows_per_grain(out.shape[-1], size),
        col_grain=_STRIP,
        work=(t.size + out.size) * size,
    )


def pad(op: Pad) -> KernelCall | None:
    return _pad(op, op.low, (1,) * len(op.low), op.value)


def dilate(op: Dilate) -> KernelCall | None:
    return _pad(op, (0,) * len(op.factors), op.factors, 0)


def concat(op: Concat) -> KernelCall | None:
    out = op.result.type
    parts = [prod(x.type.shape[op.axis :]) * out.dtype.itemsize for x in op.xs]
    return KernelCall(
        "nir_concat_bytes",
        (len(parts), *parts),
        rows=prod(out.shape[: op.axis]),
        row_grain=_rows_per_grain(prod(out.shape[op.axis :]), out.dtype.itemsize),
        work=out.nbytes * 2,
    )


MOVEMENT: dict[str, Callable[[Any], KernelCall | None]] = {
    "max_pool2d": max_pool2d,
    "max_pool2d_select": max_pool2d_select,
    "max_pool2d_grad": max_pool2d_grad,
    "avg_pool2d": avg_pool2d,
    "avg_pool2d_grad": avg_pool2d_grad,
    "check_index": check_index,
    "take": take,
    "take_along": take_along,
    "put": put,
    "scatter_add": scatter_add,
    "scatter_add_along": scatter_add_along,
    "cum_sum": cum_sum,
    "arg_max": arg_max,
    "arg_min": arg_min,
    "sort": sort,
    "top_k": top_k,
    "random_bits": random_bits,
    "transpose": transpose,
    "slice": slice_,
    "flip": flip,
    "broadcast": broadcast,
    "pad": pad,
    "dilate": dilate,
    "concat": concat,
}
