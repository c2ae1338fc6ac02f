"""CPU kernels for attention and its gradient, in f32; other dtypes are decomposed.

The layouts of ``dims`` are at the top of kernels/cpu/attention*.cc.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

from nir.ir.dim import Dim, Shape, ceildiv
from nir.ir.op import Value
from nir.ops.attention import AXES, Attention, AttentionGrad
from nir.targets.cpu_movement import strides
from nir.targets.kernel_call import KernelCall

# Constants of kernels/cpu/attention.h.
STRIP = 64
KEYS = 64
PAD = 16
# Queries up to which lanes are filled with features rather than with queries, and keys of a block.
_FEW = 4
_FEW_KEYS = 256


def _view(shape: Shape, order: str, first_head: Dim = 0) -> tuple[Dim, ...]:
    """(offset, batch stride, head stride, token stride) of a tensor whose axes lie in ``order``."""
    by_axis = dict(zip(order, strides(shape), strict=True))
    b, h, t = (by_axis[a] for a in AXES[:3])
    return first_head * h, b, h, t


def _mask(mask: Value | None) -> tuple[Dim, ...]:
    """Its kind, and its strides; an axis of size 1 serves all."""
    if mask is None:
        return 0, 0, 0, 0, 0
    steps = [
        0 if n == 1 else s for n, s in zip(mask.type.shape, strides(mask.type.shape), strict=True)
    ]
    return (1 if mask.type.dtype.kind == "bool" else 2, *steps)


def _bits(x: float) -> int:
    (bits,) = struct.unpack("<i", struct.pack("<f", x))
    return int(bits)


def _padded(n: Dim) -> Dim:
    return ceildiv(n, PAD) * PAD


def _inputs(op: Attention | AttentionGrad) -> list[tuple[Dim, ...]]:
    return [
        _view(x.type.shape, order, first)
        for x, order, first in zip((op.q, op.k, op.v), op.orders, op.first, strict=False)
    ]


def _dims(sizes: Any, views: Sequence[tuple[Dim, ...]]) -> tuple[Dim, ...]:
    n = sizes
    return (n.b, n.h, n.t, n.s, n.d, n.e, *(x for view in views for x in view))


def attention(op: Attention) -> KernelCall | None:
    t, n = op.q.type, op.sizes()
    if t.dtype.name != "f32":
        return None
    views = [*_inputs(op), _view(op.results[0].type.shape, op.orders[3])]
    dims = (*_dims(n, views), *_mask(op.mask), int(op.causal), _bits(op.scale))
    work = n.b * n.h * n.t * n.s * (n.d + n.e) // 4
    if isinstance(n.t, int) and n.t <= _FEW:
        return KernelCall(
            "nir_attention_few_f32",
            dims,
            rows=n.b * n.h,
            scratch=(_padded(n.d) + _padded(n.e) + 2 * _FEW_KEYS) * 4,
            # Each key and value is read for few products: count the bytes.
            work=n.b * n.h * n.t * n.s * (n.d + n.e) * 4,
        )
    floats = STRIP * (n.d + _padded(n.e)) + KEYS * (2 * STRIP + _padded(n.e)) + STRIP * (KEYS + 2)
    return KernelCall(
        "nir_attention_f32",
        dims,
        rows=n.b * n.h * ceildiv(n.t, STRIP),
        scratch=floats * 4,
        work=work,
    )


def attention_grad(op: AttentionGrad) -> KernelCall | None:
    t, n = op.q.type, op.sizes()
    if t.dtype.name != "f32":
        return None
    given = [*_inputs(op), _view(op.ct.type.shape, op.orders[3])]
    if op.joined:
        shape = op.result.type.shape
        grads = [_view(shape, op.orders[0], i * n.h) for i in range(3)]
    else:
        grads = [
            _view(v.type.shape, order) for v, order in zip(op.results, op.orders, strict=False)
        ]
    d, e = _padded(n.d), _padded(n.e)
    floats = (2 * STRIP + KEYS) * (d + e) + STRIP * d + 4 * KEYS * STRIP + 3 * STRIP
    return KernelCall(
        "nir_attention_grad_f32",
        (
            *_dims(n, [*given, *grads]), *_mask(op.mask), int(op.causal), _bits(op.scale),
            int(op.joined),
        ),
        rows=n.b * n.h,
        scratch=floats * 4,
        work=n.b * n.h * n.t * n.s * (3 * n.d + 2 * n.e) // 4,
    )  # fmt: skip


ATTENTION: dict[str, Callable[[Any], KernelCall | None]] = {
    "attention": attention,
    "attention_grad": attention_grad,
}
