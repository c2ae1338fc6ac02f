"""`Banded`: a chain of ops whose intermediate results never exist as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from nir.errors import NotDifferentiable, VerifyError
from nir.frozen import Frozen
from nir.ir.dim import Dim, Shape
from nir.ir.graph import Graph
from nir.ir.interp import evaluate_region
from nir.ir.op import Op, Sample, Value
from nir.ir.program import Stage
from nir.ir.types import TensorType
from nir.ops.conv import Conv2d
from nir.ops.fused import Fused
from nir.ops.shape import Reshape


class Banded(Op):
    """A closed region that runs in bands of lines; its meaning is its body's.

    The body is a chain of ops with kernels of their own (Fused epilogues among them) and reshapes
    between them. Each but the first reads, of what the one before it computes, the lines of an
    image that its window meets. So they take turns: a few lines of the first result, then the lines
    of the second that those suffice for, and so on until ``lines`` lines of the last one are done.
    What lies between them stays in cache (Alwani et al., "Fused-layer CNN accelerators", 2016).
    """

    inputs: tuple[Value, ...]
    body: Graph
    lines: int
    kind = "other"

    def infer(self) -> tuple[TensorType, ...]:
        given = tuple(v.type for v in self.inputs)
        if given != self.body.input_types:
            raise VerifyError(f"banded: body takes {self.body.input_types}, operands are {given}")
        if self.lines < 1 or len(chain(self.body)) < 2 or len(self.body.outputs) != 1:
            raise VerifyError(
                f"banded: expected lines >= 1, two ops and one result, got lines {self.lines}, "
                f"{len(chain(self.body))} ops and {len(self.body.outputs)} results"
            )
        return self.body.output_types

    def flops(self) -> Dim:
        return sum((op.flops() for op in self.body.nodes), 0)

    def ref(self, *operands: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(evaluate_region(self.body, operands))

    def grad(
        self, operands: Sequence[Any], results: Sequence[Any], cotangents: Sequence[Any]
    ) -> Sequence[Any]:
        raise NotDifferentiable("banded is made by passes, after differentiation")

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        return ()

    def regions(self) -> Iterator[tuple[str, Any]]:
        yield "body", self.body


class Layout(Frozen):
    """The stages of a chain, and the bytes from each stage's lines to the next one's."""

    stages: tuple[Stage, ...]
    offsets: tuple[int, ...]
    memory: int  # of all lines


def chain(body: Graph) -> list[Op]:
    """The ops that compute, in order."""
    return [op for op in body.nodes if not isinstance(op, Reshape)]


def heavy(op: Op) -> Op:
    """The op whose kernel runs."""
    return op.body.nodes[0] if isinstance(op, Fused) else op


def layout(body: Graph, lines: int) -> Layout:
    """What the stages of ``body`` keep when ``lines`` lines of the last result are done at a time.

    Images have static heights, widths and channels.
    """
    ops = chain(body)
    shapes = images(body)
    stages: list[Stage] = []
    need = min(lines, _number(shapes[-1][1]))
    for k in range(len(ops) - 1, -1, -1):
        _, height, width, _ = shapes[k]
        stride, above, extent = _window(ops[k]) if k else (1, 0, 1)
        last = k == len(ops) - 1
        t = ops[k].result.type
        line = _number(width) * _number(t.shape[-1]) * t.dtype.itemsize
        stages.append(
            Stage(
                _number(height),
                _number(width),
                stride,
                above,
                extent,
                0 if last else need,
                0 if last else line,
            )
        )
        if k:
            need = min(_number(shapes[k - 1][1]), (need - 1) * stride + extent)
    stages.reverse()
    offsets, total = [], 0
    for s in stages[:-1]:
        offsets.append(total)
        total += -(-s.kept * s.bytes // 64) * 64
    return Layout(tuple(stages), tuple(offsets), total)


def images(body: Graph) -> list[Shape]:
    """(N, height, width, C) of each result of the chain: a product's is that of a neighbour."""
    shapes: list[Shape] = []
    for op in chain(body):
        shape = op.result.type.shape
        for user in body.users[op.result]:
            if len(shape) != 4 and isinstance(user, Reshape):
                shape = user.result.type.shape
        if len(shape) != 4:
            shape = (*shapes[-1][:3], shape[-1])
        shapes.append(shape)
    return shapes


def _window(op: Op) -> tuple[int, int, int]:
    """(stride, lines above the image, lines that are read) of a line of the result of ``op``."""
    match heavy(op):
        case Conv2d(w=w, stride=stride, padding=padding, dilation=dilation) as conv:
            kernel = w.type.shape[0 if conv.weight_layout == "HWIO" else 2]
            return stride[0], padding[0][0], (_number(kernel) - 1) * dilation[0] + 1
    return 1, 0, 1


def _number(d: Dim) -> int:
    if not isinstance(d, int):
        raise VerifyError(f"banded: expected a static size, got {d}")
    return d
