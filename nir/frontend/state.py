"""State: which tensors a compiled function reads and rebinds without being passed them.

State is anything with attributes (a Module, an Optimizer, a Generator), and dicts, lists and tuples
of such. A walk over it finds two things:

- its Tensors, each under one path (``first.weight``) and once: inputs of the compiled function,
  and outputs where the function rebinds them (``copy_``, or assigning a new Tensor to the path);
- its facts, everything else: numbers, strings, classes, the lengths of lists. They are what a
  trace is true for, and a function is traced again when one changes.

An object may say what its state is by ``__nir_state__()``, which returns (name, value) pairs; by
default they are its attributes. A tensor of another library says which Tensor holds its value by a
property ``__nir_tensor__``, which can be set: it stands for that Tensor. Gradients are state too:
``path.grad``, where there is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import is_
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from nir.frontend.tensor import Tensor
from nir.frozen import Frozen
from nir.ir.graph import attribute_key
from nir.ir.op import Value
from nir.ir.types import TensorType
from nir.runtime import Watch

_PLAIN = frozenset({bool, int, float, complex, str, bytes, type(None)})
_OPAQUE = (type, FunctionType, BuiltinFunctionType, MethodType, ModuleType, np.dtype, np.ufunc)


class Slot(Frozen, eq=False):
    """A Tensor of the state: its path, and the place that holds it."""

    path: str
    tensor: Tensor
    holder: Any
    key: Any

    def put(self, tensor: Any) -> None:
        """Let the place hold ``tensor``."""
        match self.holder:
            case Tensor():
                self.holder._grad = tensor
            case dict() if self.key in self.holder:
                dict.__setitem__(self.holder, self.key, tensor)
            case list():
                self.holder[self.key] = tensor
            case tuple():
                raise TypeError(f"the tuple that holds {self.path} cannot change")
            case _:
                object.__setattr__(self.holder, self.key, tensor)


class Snapshot:
    """What a walk found: ``slots``, and ``facts`` by path, as (type, value).

    A walk costs a microsecond for each attribute, and most calls find what the last one found. So
    the walk notes the containers that it met and what was in them, and `holds` compares identities.
    """

    def __init__(self, objects: Mapping[str, Any]) -> None:
        self.slots: list[Slot] = []
        self.facts: dict[str, tuple[type, Any]] = {}
        # id -> (path, object); the object, so that no id comes up twice.
        self._seen: dict[int, tuple[str, Any]] = {}
        self._owners: list[Any] = []
        self._maps: list[dict[Any, Any]] = []
        self._lists: list[list[Any]] = []
        self._loose: list[tuple[Any, Any]] = []  # what may change inside, and its content
        self._stated = False  # something computes its state anew each time
        for name, x in objects.items():
            self._walk(x, name, objects, name)
        self._tensors = [s.tensor for s in self.slots if not isinstance(s.holder, Tensor)]
        self._grads = list(map(_grad, self._tensors))
        self._raw_grads = [t._grad for t in self._tensors]
        self._watch = Watch(self._owners, self._maps, self._lists)
        self._everything = [s.tensor for s in self.slots]
        self._marked: list[Value] = []
        self._types: list[TensorType] = []
        self._tracks: list[bool] = []
        self._marks: tuple[tuple[str, TensorType, bool], ...] = ()

    def _walk(self, x: Any, path: str, holder: Any, key: Any) -> None:
        kind = type(x)
        if kind in _PLAIN:
            self.facts[path] = kind, x
            return
        first, _ = self._seen.setdefault(id(x), (path, x))
        if first != path:
            self.facts[path] = kind, f"the same as {first}"
            return
        if isinstance(x, Tensor):
            self.slots.append(Slot(path, x, holder, key))
            if isinstance(x._grad, Tensor):
                self.slots.append(Slot(f"{path}.grad", x._grad, x, "_grad"))
            return
        if hasattr(kind, "__nir_tensor__"):
            self._stated = True
            self._walk(x.__nir_tensor__, path, x, "__nir_tensor__")
            return
        dot = f"{path}." if path else ""
        if isinstance(x, dict):
            self._maps.append(x)
            self.facts[f"{dot}<keys>"] = kind, tuple(x)
            for k, v in x.items():
                self._walk(v, f"{dot}{k}", x, k)
            if hasattr(x, "__dict__"):  # a dict with attributes of its own
                self._attributes(x, dot)
        elif isinstance(x, list | tuple):
            if isinstance(x, list):
                self._lists.append(x)
            self.facts[f"{dot}<length>"] = kind, len(x)
            for i, v in enumerate(x):
                self._walk(v, f"{dot}{i}", x, i)
        elif hasattr(x, "__nir_state__") and not isinstance(x, type):
            self._stated = True
            self.facts[f"{dot}<class>"] = type, kind
            for k, v in x.__nir_state__():
                self._walk(v, f"{dot}{k}", x, k)
        elif hasattr(x, "__dict__") and not isinstance(x, _OPAQUE):
            self.facts[f"{dot}<class>"] = type, kind
            self._attributes(x, dot)
        else:
            self.facts[path] = kind, (content := _fact(x))
            if content is not x:
                self._loose.append((x, content))

    def _attributes(self, x: Any, dot: str) -> None:
        self._owners.append(x)
        self._maps.append(vars(x))
        for k, v in vars(x).items():
            self._walk(v, f"{dot}{k}", x, k)

    # ---- comparing -----------------------------------------------------------------------------

    def holds(self) -> bool:
        """Whether a walk would find the same now, or at least something equal."""
        return (
            not self._stated
            and self._watch.same()
            and self._same_grads()
            and all(_fact(x) == content for x, content in self._loose)
        )

    def _same_grads(self) -> bool:
        raw = [t._grad for t in self._tensors]
        if all(map(is_, raw, self._raw_grads)):
            return True
        self._raw_grads = raw  # what stands in for a gradient may change; a gradient may not
        return all(map(is_, map(_grad, self._tensors), self._grads))

    def marks(self) -> tuple[tuple[str, TensorType, bool], ...]:
        """(path, type, requires_grad) of each slot: the same object while they are the same."""
        # A value is its cell's alone, whose type and mark do not change; the cell itself is not
        # kept, since who holds it is counted.
        values = [t._cell.value for t in self._everything]
        if self._marked and all(map(is_, values, self._marked)):
            return self._marks
        self._marked = values
        cells = [s.tensor._cell for s in self.slots]
        types = [c.value.type for c in cells]
        tracks = [c.tracks for c in cells]
        if not all(map(is_, types, self._types)) or tracks != self._tracks:
            self._types, self._tracks = types, tracks
            paths = [s.path for s in self.slots]
            marks = tuple(zip(paths, types, tracks, strict=True))
            self._marks = self._marks if marks == self._marks else marks
        return self._marks

    def differences(self, other: Snapshot) -> list[str]:
        """What changed from this snapshot's facts to the other's, in words."""
        changed = [
            f"{path}: {_word(self.facts.get(path))} -> {_word(other.facts.get(path))}"
            for path in {**self.facts, **other.facts}
            if self.facts.get(path) != other.facts.get(path)
        ]
        mine, theirs = ({s.path for s in x.slots if _is_named(s)} for x in (self, other))
        changed += [f"{path}: no longer a tensor" for path in sorted(mine - theirs)]
        changed += [f"{path}: a tensor appeared" for path in sorted(theirs - mine)]
        return changed


def _grad(t: Tensor) -> Tensor | None:
    """The gradient of ``t``, if it is a Tensor of the state."""
    return t._grad if isinstance(t._grad, Tensor) else None


def _is_named(slot: Slot) -> bool:
    return not isinstance(slot.holder, Tensor)


def _word(fact: tuple[type, Any] | None) -> str:
    return "absent" if fact is None else repr(fact[1])


def _fact(x: Any) -> Any:
    """Something that is equal while ``x`` means the same."""
    match x:
        case np.ndarray():
            return attribute_key(x)
        case set():
            return frozenset(x)
        case _:
            return x


def snapshot(objects: Mapping[str, Any] | Iterable[Any]) -> Snapshot:
    """Walk ``objects``; the keys of a mapping start the paths."""
    return Snapshot(objects if isinstance(objects, Mapping) else named(list(objects)))


def named(objects: Sequence[Any]) -> dict[str, Any]:
    """Path starts: none for one object, the names of their classes for several."""
    distinct = list({id(x): x for x in objects}.values())
    if len(distinct) == 1:
        return {"": distinct[0]}
    out: dict[str, Any] = {}
    for x in distinct:
        name = base = type(x).__name__.lower()
        while name in out:
            name = f"{base}{len(out)}"
        out[name] = x
    return out
