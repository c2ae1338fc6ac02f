"""What ops with regions share: closed graphs as attributes, with captures as operands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nir.errors import ShapeError
from nir.ir.graph import Graph
from nir.ir.op import Op
from nir.ir.types import TensorType


def check_region(op: Op, name: str, region: Graph, given: Sequence[TensorType]) -> None:
    """ShapeError unless ``region`` takes inputs of the types ``given``."""
    if region.input_types != tuple(given):
        raise ShapeError(
            f"{op.name}: {name} takes ({', '.join(map(str, region.input_types))}), "
            f"got ({', '.join(map(str, given))})"
        )


def pure(op: Op) -> bool:
    """Whether the regions of ``op`` hold pure ops only."""
    return all(inner.pure for _, region in op.regions() for inner in region.nodes)


def floats(types: Sequence[TensorType]) -> list[int]:
    """Positions of the types that a gradient flows to."""
    return [i for i, t in enumerate(types) if t.dtype.is_float]


def spread_grads(count: int, positions: Sequence[int], found: Sequence[Any]) -> list[Any]:
    """``found`` at its ``positions`` among ``count`` operands; None, no cotangent, elsewhere."""
    out: list[Any] = [None] * count
    for i, ct in zip(positions, found, strict=True):
        out[i] = ct
    return out
