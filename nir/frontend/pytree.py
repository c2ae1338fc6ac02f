"""Trees of tensors: nested tuples, lists, dicts, named tuples, and classes that are registered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np

from nir.frontend.tensor import Tensor
from nir.frozen import Frozen

Flatten: TypeAlias = "Callable[[Any], tuple[Iterable[Any], Any]]"
Unflatten: TypeAlias = "Callable[[Any, Iterable[Any]], Any]"

_REGISTERED: dict[type, tuple[Flatten, Unflatten]] = {}


class Leaf(Frozen):
    """The place of tensor number ``index``."""

    index: int


class Static(Frozen):
    """A value that is no tensor: part of the structure."""

    value: Any

    def __eq__(self, other: object) -> bool:
        # 1, 1.0 and True are equal and trace differently.
        return (
            isinstance(other, Static)
            and type(other.value) is type(self.value)
            and bool(other.value == self.value)
        )

    __hash__ = object.__hash__


class Node(Frozen):
    """A container: its type, what else it takes to make it again, and its children."""

    type: type
    extra: Any
    children: tuple[Tree, ...]


Tree: TypeAlias = "Leaf | Static | Node"


def register_pytree(cls: type, flatten: Flatten, unflatten: Unflatten) -> None:
    """Let instances of ``cls`` be trees.

    ``flatten(x)`` gives (children, extra), ``unflatten(extra, children)`` the instance; ``extra``
    is compared with == when a compiled function looks for a trace of its own.
    """
    _REGISTERED[cls] = flatten, unflatten


def is_leaf(x: Any) -> bool:
    """Whether ``x`` counts as a tensor."""
    return isinstance(x, Tensor | np.ndarray | np.generic) or hasattr(x, "__dlpack__")


def flatten(tree: Any, leaf: Callable[[Any], bool] = is_leaf) -> tuple[list[Any], Tree]:
    """(leaves, structure) of ``tree``."""
    leaves: list[Any] = []

    def visit(x: Any) -> Tree:
        if leaf(x):
            leaves.append(x)
            return Leaf(len(leaves) - 1)
        if type(x) in _REGISTERED:
            children, extra = _REGISTERED[type(x)][0](x)
            return Node(type(x), extra, tuple(map(visit, children)))
        match x:
            case tuple() | list():
                return Node(type(x), None, tuple(map(visit, x)))
            case dict():
                return Node(type(x), tuple(x), tuple(map(visit, x.values())))
            case _:
                return Static(x)

    return leaves, visit(tree)


def unflatten(structure: Tree, leaves: Sequence[Any]) -> Any:
    """The tree of `flatten`, with ``leaves`` in their places."""
    match structure:
        case Leaf(index):
            return leaves[index]
        case Static(value):
            return value
        case Node(kind, extra, children):
            parts = [unflatten(c, leaves) for c in children]
            if kind in _REGISTERED:
                return _REGISTERED[kind][1](extra, parts)
            if issubclass(kind, dict):
                return kind(zip(extra, parts, strict=True))
            make: Any = kind
            return make(*parts) if hasattr(kind, "_fields") else make(parts)


def tensors(tree: Any) -> tuple[list[Tensor], Tree]:
    """`flatten`, with arrays made Tensors."""
    leaves, structure = flatten(tree)
    return [x if isinstance(x, Tensor) else Tensor(x) for x in leaves], structure


def map_tensors(fn: Callable[[Tensor], Any], tree: Any) -> Any:
    """``tree`` with ``fn`` applied to every Tensor; all else stays as it is."""
    leaves, structure = flatten(tree, lambda x: isinstance(x, Tensor))
    return unflatten(structure, [fn(t) for t in leaves])


def paths(structure: Tree, prefix: str) -> dict[int, str]:
    """Leaf number -> where it is: x, x.0, x.key."""
    match structure:
        case Leaf(index):
            return {index: prefix}
        case Node(_, extra, children):
            keys = extra if isinstance(extra, tuple) and len(extra) == len(children) else None
            found: dict[int, str] = {}
            for i, child in enumerate(children):
                found |= paths(child, f"{prefix}.{i if keys is None else keys[i]}")
            return found
        case _:
            return {}
