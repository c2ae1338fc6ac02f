"""Tracing: run a function once on symbolic tensors and keep what it recorded as a Graph."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nir.errors import ParseError, TraceError
from nir.frontend import lazy
from nir.frontend.gradients import register_leaf
from nir.frontend.lazy import Cell
from nir.frontend.random import default_generator
from nir.frontend.state import flatten, state_of, unflatten
from nir.frontend.tensor import Tensor
from nir.ir.dim import Dim, symbol
from nir.ir.graph import Graph
from nir.ir.location import caller
from nir.ir.op import Op
from nir.ir.types import DTYPES, TensorType
from nir.ops import Constant


@dataclass(frozen=True, slots=True)
class Spec:
    """The type of an argument, without a value."""

    type: TensorType


def spec(text: str | TensorType) -> Spec:
    """``spec("f32[B,3,32,32]")``: a dtype and sizes, of which names are symbolic."""
    if isinstance(text, TensorType):
        return Spec(text)
    match = re.fullmatch(r"\s*(\w+)\s*\[(.*)\]\s*", text)
    if match is None or match[1] not in DTYPES:
        known = ", ".join(DTYPES)
        raise ParseError(f"spec: expected 'dtype[size,...]' with a dtype of {known}, got {text!r}")
    sizes = [s.strip() for s in match[2].split(",") if s.strip()]
    shape: list[Dim] = []
    for s in sizes:
        if s.isdigit():
            shape.append(int(s))
        elif s.isidentifier():
            shape.append(symbol(s))
        else:
            raise ParseError(f"spec: expected sizes to be numbers or names, got {s!r} in {text!r}")
    return Spec(TensorType(DTYPES[match[1]], tuple(shape)))


@dataclass(eq=False)
class Traced:
    """A traced function: its graph, and where the graph's inputs and outputs belong."""

    graph: Graph
    arguments: tuple[int, ...]  # graph input i < len(arguments) is tensor argument arguments[i]
    state_inputs: tuple[int, ...]  # the next inputs: positions in the list of state tensors
    outputs: int  # graph outputs below this are the function's, in order of the structure
    structure: Any
    rebound: tuple[int, ...]  # the other outputs: positions in the list of state tensors


def trace_function(
    fn: Callable[..., Any],
    types: Sequence[TensorType],
    structure: Any,
    state: Sequence[tuple[str, Tensor]] = (),
    name: str | None = None,
    tracks: Sequence[bool] = (),
) -> Traced:
    """Run ``fn(*args, **kwargs)`` on symbolic tensors of ``types`` put into ``structure``.

    The tensors of ``state`` are symbolic meanwhile, and get their values back afterwards.
    """
    first = next(lazy._ids)
    names = _argument_names(fn, structure, len(types))
    cells = []
    arguments = []
    for i, (t, label) in enumerate(zip(types, names, strict=True)):
        c = Cell(t)
        c.symbolic = label
        arguments.append(Tensor._of(c))
        if i < len(tracks) and tracks[i]:
            register_leaf(c, arguments[-1])
        cells.append(c)
    saved = [(t, t._cell, t.grad) for _, t in state]
    symbolic: list[Cell] = []
    try:
        for path, tensor in state:
            c = Cell(tensor.type)
            c.symbolic = path
            if tensor._cell.tracks:
                register_leaf(c, tensor)
            tensor._cell = c
            tensor.grad = None
            symbolic.append(c)
        args, kwargs = unflatten(structure, arguments)
        result = fn(*args, **kwargs)
        outputs, out_structure = flatten(result)
        rebound = [i for i, (_, t) in enumerate(state) if t._cell is not symbolic[i]]
        roots = [t._cell for t in outputs] + [state[i][1]._cell for i in rebound]
        graph, kept = _graph(
            name or _name(fn), roots, cells, symbolic, names, state, first, rebound, len(outputs)
        )
    finally:
        for tensor, cell, g in saved:
            tensor._cell, tensor.grad = cell, g
    return Traced(
        graph, tuple(range(len(cells))), kept, len(outputs), out_structure, tuple(rebound)
    )


def _graph(
    name: str,
    roots: Sequence[Cell],
    arguments: Sequence[Cell],
    symbolic: Sequence[Cell],
    names: Sequence[str],
    state: Sequence[tuple[str, Tensor]],
    first: int,
    rebound: Sequence[int],
    outputs: int,
) -> tuple[Graph, tuple[int, ...]]:
    records, leaves = lazy.walk(roots)
    own = set(arguments) | set(symbolic)
    constants: list[Op] = []
    for c in leaves:
        if c in own:
            continue
        if c.data is None or c.value.id < first:
            raise _capture(c, records)
        assert c.data is not None
        data = c.data.numpy(c.value.type.dtype.numpy, c.data.shape)
        where = next((r.op.locs for r in records if c in r.args), frozenset((caller(),)))
        constants.append(Constant(np.array(data), results=(c.value,), locs=where))
    read = set(leaves)
    kept = tuple(i for i, c in enumerate(symbolic) if c in read)
    inputs = [*arguments, *(symbolic[i] for i in kept)]
    labels = [*names, *(_identifier(state[i][0]) for i in kept)]
    donate = [
        (len(arguments) + kept.index(i), outputs + k) for k, i in enumerate(rebound) if i in kept
    ]
    graph = Graph(
        name,
        [c.value for c in inputs],
        [*constants, *(r.op for r in records)],
        [c.value for c in roots],
        _unique(labels),
        donate=donate,
    )
    return graph, kept


def _capture(c: Cell, records: Sequence[lazy.Record]) -> TraceError:
    reader = next((r.op for r in records if c in r.args), None)
    if c.symbolic is not None:
        message = f"a tensor of another trace (%{c.symbolic}: {c.value.type}) is read"
    else:
        message = (
            f"a tensor ({c.value.type}) that is neither an argument nor state is read while the "
            "function is traced: pass it, name it in state=[...], or wrap it in nir.constant()"
        )
    where: Any = ", ".join(map(str, sorted(reader.locs))) if reader is not None else caller()
    return TraceError(message, where)


def _argument_names(fn: Callable[..., Any], structure: Any, count: int) -> list[str]:
    """Names of the tensor arguments, from the function's parameters where they are plain."""
    args, kwargs = structure
    code = getattr(getattr(fn, "forward", fn), "__code__", None)
    parameters = list(code.co_varnames[: code.co_argcount]) if code is not None else []
    if parameters[:1] == ["self"]:
        parameters = parameters[1:]
    names = [""] * count
    given = {parameters[i] if i < len(parameters) else f"arg{i}": a for i, a in enumerate(args)}

    def visit(x: Any, label: str) -> None:
        if hasattr(x, "index") and not isinstance(x, (tuple, list, str)):
            names[x.index] = _identifier(label)
        elif isinstance(x, (tuple, list)):
            for i, v in enumerate(x):
                visit(v, f"{label}_{i}")
        elif isinstance(x, dict):
            for k, v in x.items():
                visit(v, f"{label}_{k}")

    for label, a in {**given, **kwargs}.items():
        visit(a, label)
    return _unique(names)


def _identifier(path: str) -> str:
    text = re.sub(r"\W", "_", path).strip("_") or "x"
    return text if not text[0].isdigit() else f"p{text}"


def _unique(names: Sequence[str]) -> list[str]:
    seen: dict[str, int] = {}
    out = []
    for n in names:
        count = seen.get(n, 0)
        seen[n] = count + 1
        out.append(n if not count else f"{n}_{count}")
    return out


def _name(fn: Any) -> str:
    name = getattr(fn, "__name__", type(fn).__name__)
    return name if name.isidentifier() else "fn"


def trace(fn: Callable[..., Any], *specs: Any, **kwargs: Any) -> Graph:
    """The Graph of ``fn``; arguments are specs ("f32[B,4]" or `spec`), arrays, Tensors or static.

    State of a Module becomes inputs after the arguments, named by path.
    """
    types, structure = argument_types((specs, kwargs))
    state, _ = state_of([*owned_state(fn), default_generator])
    return trace_function(fn, types, structure, state).graph


def owned_state(fn: Any) -> list[Any]:
    """The state that ``fn`` brings along: itself if it is an object with tensors, else none."""
    owner = getattr(fn, "__self__", fn)
    return (
        [owner]
        if hasattr(owner, "__dict__")
        and not callable(getattr(owner, "__code__", None))
        and not hasattr(owner, "__code__")
        else []
    )


def argument_types(tree: Any) -> tuple[list[TensorType], Any]:
    """Types of the tensor arguments in ``tree``, and its structure; specs count as tensors."""
    types: list[TensorType] = []

    def visit(x: Any) -> Any:
        match x:
            case Spec():
                placeholder = Tensor._of(Cell(x.type))
                return placeholder
            case str() if "[" in x:
                return visit(spec(x))
            case tuple() | list():
                return type(x)(visit(v) for v in x)
            case dict():
                return {k: visit(v) for k, v in x.items()}
        return x

    tensors, structure = flatten(visit(tree))
    types = [t.type for t in tensors]
    return types, structure
