"""State and pytrees: which tensors a compiled function takes in, and what it depends on besides.

State is anything with attributes (a Module, an Optimizer, a Generator), and dicts, lists and tuples
of such: its Tensors become inputs, and outputs where the function rebinds them. Everything else it
holds that is plain Python (numbers, strings, bools, None, dtypes and containers of them) is part of
a fingerprint: the function is traced again when that changes.
"""

from __future__ import annotations

from operator import is_
from typing import Any

import numpy as np

from nir.frontend.tensor import Tensor
from nir.ir.types import DType, TensorType

_PLAIN = (bool, int, float, complex, str, bytes, type(None), DType)


def state_of(objects: Any) -> tuple[list[tuple[str, Tensor]], dict[str, Any]]:
    """([(path, Tensor)] each tensor once, {path: plain attribute}) of ``objects``."""
    view = StateView(objects)
    return view.tensors, view.guards


class StateView:
    """The state of ``objects`` at one time, and whether it `holds` still.

    A walk costs a microsecond for each attribute, and most calls find what the last one found. So
    the walk notes the containers that it met and what was in them; `holds` compares identities.
    """

    def __init__(self, objects: Any) -> None:
        self.tensors: list[tuple[str, Tensor]] = []
        self.guards: dict[str, Any] = {}
        self._seen: dict[int, Any] = {}  # keeps what it names alive, so that no id comes twice
        self._owners: list[Any] = []  # objects with attributes, their classes and dicts
        self._classes: list[type] = []
        self._vars: list[dict[str, Any]] = []
        self._maps: list[dict[Any, Any]] = []
        self._lists: list[list[Any]] = []
        self._arrays: list[tuple[Any, Any]] = []  # sets and arrays, and their content
        self._walk(objects, "")
        self._keys, self._values, self._sizes = self._content()
        self._types: list[TensorType] = []
        self._tracks: list[bool] = []
        self._marks: tuple[tuple[str, TensorType, bool], ...] = ()

    def holds(self) -> bool:
        """Whether a walk would find the same tensors and attributes, or at least equal ones."""
        keys, values, sizes = self._content()
        return (
            sizes == self._sizes
            and all(map(is_, values, self._values))
            and all(map(is_, keys, self._keys))
            and all(map(is_, map(type, self._owners), self._classes))
            and all(map(is_, map(vars, self._owners), self._vars))
            and all(_content_of(x) == content for x, content in self._arrays)
        )

    def marks(self) -> tuple[tuple[str, TensorType, bool], ...]:
        """(path, type, requires_grad) of each tensor: the same object while they are the same."""
        cells = [t._cell for _, t in self.tensors]
        types = [c.value.type for c in cells]
        tracks = [c.tracks for c in cells]
        if not all(map(is_, types, self._types)) or tracks != self._tracks:
            self._types, self._tracks = types, tracks
            paths = [path for path, _ in self.tensors]
            self._marks = tuple(zip(paths, types, tracks, strict=True))
        return self._marks

    def _content(self) -> tuple[list[Any], list[Any], list[int]]:
        """All keys and values of dicts and lists, in one list each: compared without a loop."""
        keys: list[Any] = []
        values: list[Any] = []
        for d in self._maps:
            keys += d
            values += d.values()
        for x in self._lists:
            values += x
        return keys, values, [*map(len, self._maps), *map(len, self._lists)]

    def _walk(self, x: Any, path: str) -> None:
        if isinstance(x, _PLAIN):
            self.guards[path] = x
            return
        if id(x) in self._seen:
            return
        self._seen[id(x)] = x
        match x:
            case Tensor():
                self.tensors.append((path, x))
            case dict():
                self._maps.append(x)
                for k, v in list(x.items()):
                    self._walk(v, _join(path, k))
                if hasattr(x, "__dict__"):  # a dict with attributes of its own
                    self._attributes(x, path)
            case list() | tuple():
                if isinstance(x, list):
                    self._lists.append(x)
                for i, v in enumerate(x):
                    self._walk(v, _join(path, i))
            case set() | frozenset() | np.ndarray():
                self.guards[path] = content = _content_of(x)
                self._arrays.append((x, content))
            case type() | np.dtype():
                self.guards[path] = x
            case _ if callable(x) and not hasattr(x, "__dict__"):
                self.guards[path] = x
            case _:
                self.guards[_join(path, "class")] = type(x)
                if hasattr(x, "__dict__"):
                    self._attributes(x, path)

    def _attributes(self, x: Any, path: str) -> None:
        self._owners.append(x)
        self._classes.append(type(x))
        self._vars.append(vars(x))
        self._walk(vars(x), path)


def _content_of(x: Any) -> Any:
    """What a set or an array holds, as something to compare."""
    if isinstance(x, np.ndarray):
        return x.dtype.str, x.shape, x.tobytes()
    return repr(sorted(x, key=repr))


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
