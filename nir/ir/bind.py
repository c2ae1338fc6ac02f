"""Binding inputs: check arrays against types and find the sizes that symbols stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nir.errors import DTypeError, ShapeError
from nir.ir.dim import Dim, Poly, evaluate, symbols
from nir.ir.graph import Graph
from nir.ir.types import TensorType

Env = Mapping[str, int]


def bind_shapes(
    types: Sequence[TensorType],
    shapes: Sequence[tuple[int, ...]],
    names: Sequence[str] = (),
    env: Env | None = None,
) -> dict[str, int]:
    """The value of each symbol of ``types``, given the inputs' ``shapes``.

    A symbol is found from an axis whose size, once the others are known, is ``c*B + k``. ``env``
    gives values that are known beforehand. Raises ShapeError, naming input, axis, the expected
    size and what came, when an axis contradicts the others or a symbol cannot be found.
    """
    names = names or [str(i) for i in range(len(types))]
    known = dict(env or {})
    pending: list[tuple[str, int, TensorType, tuple[int, ...]]] = []
    for name, t, shape in zip(names, types, shapes, strict=True):
        if len(shape) != t.ndim:
            raise ShapeError(
                f"input %{name}: expected {t.ndim} axes ({t}), got {len(shape)} ({list(shape)})"
            )
        pending += [(name, axis, t, shape) for axis in range(t.ndim)]
    while pending:
        left = [item for item in pending if not _settle(*item, known)]
        if len(left) == len(pending):
            name, axis, t, _ = left[0]
            lost = ", ".join(sorted(symbols(t.shape[axis]) - known.keys()))
            raise ShapeError(f"input %{name}: {lost} cannot be found from the inputs' shapes ({t})")
        pending = left
    return known


def _settle(
    name: str, axis: int, t: TensorType, shape: tuple[int, ...], known: dict[str, int]
) -> bool:
    """Check an axis, or learn a symbol from it; False if it must wait for other axes."""
    expected, got = evaluate(t.shape[axis], known), shape[axis]
    if isinstance(expected, int):
        if expected != got:
            raise ShapeError(
                f"input %{name}: axis {axis}: expected {_shown(t.shape[axis], known)}, "
                f"got {got} ({t} from {list(shape)})"
            )
        return True
    match expected.terms:
        case ((((str(symbol), 1),), scale), *rest) if not rest or _is_constant(rest):
            offset = rest[0][1] if rest else 0
            size, remainder = divmod(got - offset, scale)
            if remainder or size < 0:
                raise ShapeError(
                    f"input %{name}: axis {axis}: expected {expected} for some {symbol} >= 0, "
                    f"got {got} ({t} from {list(shape)})"
                )
            known[symbol] = size
            return True
    return False


def _is_constant(terms: Sequence[tuple[object, int]]) -> bool:
    return len(terms) == 1 and terms[0][0] == ()


def _shown(d: Dim, known: Env) -> str:
    if not isinstance(d, Poly):
        return str(d)
    where = ", ".join(f"{s}={known[s]}" for s in sorted(symbols(d)))
    return f"{d} = {evaluate(d, known)} ({where})"


def bind_inputs(
    graph: Graph, inputs: Sequence[np.ndarray], env: Env | None = None
) -> dict[str, int]:
    """The value of each symbol, after a check of number, dtypes and shapes of ``inputs``.

    Raises DTypeError or ShapeError, naming the input.
    """
    if len(inputs) != len(graph.inputs):
        raise ShapeError(
            f"@{graph.name}: expected {len(graph.inputs)} inputs "
            f"({', '.join('%' + n for n in graph.input_names)}), got {len(inputs)}"
        )
    for name, t, x in zip(graph.input_names, graph.input_types, inputs, strict=True):
        if x.dtype != t.dtype.numpy:
            raise DTypeError(f"input %{name}: expected {t}, got {x.dtype}{list(x.shape)}")
    return bind_shapes(graph.input_types, [x.shape for x in inputs], graph.input_names, env)


def concrete(t: TensorType, env: Env) -> tuple[int, ...]:
    """The shape of ``t`` as numbers; KeyError names a symbol that ``env`` lacks."""
    shape = tuple(evaluate(d, env) for d in t.shape)
    for d in shape:
        if isinstance(d, Poly):
            raise KeyError(f"no value for {', '.join(sorted(symbols(d)))} in {t}")
    return shape  # type: ignore[return-value]
