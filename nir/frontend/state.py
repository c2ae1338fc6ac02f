"""State and pytrees: which tensors a compiled function takes in, and what it depends on besides.

State is anything with attributes (a Module, an Optimizer, a Generator), and dicts, lists and tuples
of such: its Tensors become inputs, and outputs where the function rebinds them. Everything else it
holds that is plain Python (numbers, strings, bools, None, dtypes and containers of them) is part of
a fingerprint: the function is traced again when that changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from nir.frontend.tensor import Tensor
from nir.ir.types import DType

_PLAIN = (bool, int, float, complex, str, bytes, type(None), DType)


def state_of(objects: Any) -> tuple[list[tuple[str, Tensor]], dict[str, Any]]:
    """([(path, Tensor)] each tensor once, {path: plain attribute}) of ``objects``."""
    tensors: list[tuple[str, Tensor]] = []
    guards: dict[str, Any] = {}
    seen: set[int] = set()
    for path, item in _walk(objects, "", seen):
        if isinstance(item, Tensor):
            tensors.append((path, item))
        else:
            guards[path] = item
    return tensors, guards


def _walk(x: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    if isinstance(x, _PLAIN):
        yield path, x
        return
    if id(x) in seen:
        return
    seen.add(id(x))
    match x:
        case Tensor():
            yield path, x
        case dict():
            for k, v in x.items():
                yield from _walk(v, _join(path, k), seen)
            if hasattr(x, "__dict__"):  # a dict with attributes of its own
                yield from _walk(vars(x), path, seen)
        case list() | tuple():
            for i, v in enumerate(x):
                yield from _walk(v, _join(path, i), seen)
        case set() | frozenset():
            yield path, repr(sorted(x, key=repr))
        case np.ndarray():
            yield path, (x.dtype.str, x.shape, x.tobytes())
        case type() | np.dtype():
            yield path, x
        case _ if callable(x) and not hasattr(x, "__dict__"):
            yield path, x
        case _:
            yield _join(path, "class"), type(x)
            if hasattr(x, "__dict__"):
                yield from _walk(vars(x), path, seen)


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def flatten(tree: Any) -> tuple[list[Tensor], Any]:
    """(tensors, structure) of nested tuples, lists and dicts; arrays become Tensors."""
    tensors: list[Tensor] = []

    def visit(x: Any) -> Any:
        match x:
            case Tensor():
                tensors.append(x)
                return _Slot(len(tensors) - 1)
            case np.ndarray() | np.generic():
                tensors.append(Tensor(x))
                return _Slot(len(tensors) - 1)
            case tuple() if hasattr(x, "_fields"):
                return type(x)(*(visit(v) for v in x))
            case tuple() | list():
                return type(x)(visit(v) for v in x)
            case dict():
                return {k: visit(v) for k, v in x.items()}
        return x

    return tensors, visit(tree)


def unflatten(structure: Any, tensors: list[Any]) -> Any:
    """The tree of `flatten`, with ``tensors`` in their places."""

    def visit(x: Any) -> Any:
        match x:
            case _Slot():
                return tensors[x.index]
            case tuple() if hasattr(x, "_fields"):
                return type(x)(*(visit(v) for v in x))
            case tuple() | list():
                return type(x)(visit(v) for v in x)
            case dict():
                return {k: visit(v) for k, v in x.items()}
        return x

    return visit(structure)


class _Slot:
    """The place of tensor number ``index`` in a structure."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Slot) and other.index == self.index

    def __hash__(self) -> int:
        return hash(self.index)

    def __repr__(self) -> str:
        return f"*{self.index}"
