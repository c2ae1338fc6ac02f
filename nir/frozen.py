"""`Frozen`: the base of nir's immutable classes, and `replace`.

Written like a frozen dataclass: annotated fields in the order of the constructor, with defaults or
`dataclasses.field`. It differs in cost. A dataclass compiles six methods when its class is made
(0.4 ms: together half of `import nir`). Here all classes share their methods, but for a constructor
that is compiled when its class is first called.

    class Point(Frozen):
        x: int
        y: int = 0

    replace(Point(1), y=2)  # Point(x=1, y=2)

A property that is asked for again and again is marked `kept`: its value never changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, Field, FrozenInstanceError, field
from operator import attrgetter
from typing import Any, ClassVar, Generic, NoReturn, TypeVar, dataclass_transform

_Fields = dict[str, "Field[Any]"]
_T = TypeVar("_T")


class kept(Generic[_T]):
    """A property of a Frozen class that is computed when first read, and kept in a slot."""

    def __init__(self, make: Callable[[Any], _T]) -> None:
        self.make, self.__doc__ = make, make.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        slot = vars(owner)[f"_{name}"]
        self.read, self.write = slot.__get__, slot.__set__  # past the frozen setattr

    def __get__(self, record: Any, owner: type) -> _T:
        try:
            found: _T = self.read(record)
        except AttributeError:
            found = self.make(record)
            self.write(record, found)
        return found


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
class _FrozenType(type):
    """Gives a class slots for its fields, so it must run before the class is made.

    ``eq`` False compares by identity, and so do all that derive from the class; ``kw_only`` makes
    the class's own fields keyword-only.
    """

    def __new__(
        mcs,
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        eq: bool = True,
        kw_only: bool = False,
    ) -> _FrozenType:
        fields: _Fields = {}
        for base in reversed(bases):
            fields |= getattr(base, "frozen_fields", {})
        own = {
            n: a
            for n, a in namespace.get("__annotations__", {}).items()
            if not str(a).startswith(("ClassVar", "typing.ClassVar"))
        }
        new = [n for n in own if n not in fields]
        for n, annotation in own.items():
            default = namespace.pop(n, MISSING)
            made = default if isinstance(default, Field) else field(default=default)
            if made.kw_only is MISSING:
                made.kw_only = kw_only
            made.type = annotation
            fields[n] = made
        own_kept = [f"_{n}" for n, member in namespace.items() if isinstance(member, kept)]
        namespace |= {"__slots__": (*new, *own_kept), "frozen_fields": fields}
        if own:
            namespace["_values"] = attrgetter(*fields)
            namespace["__match_args__"] = tuple(n for n, f in fields.items() if not f.kw_only)
            namespace["__init__"] = _first_call
        if not eq:
            namespace |= {"__eq__": object.__eq__, "__hash__": object.__hash__}
        return super().__new__(mcs, name, bases, namespace)

    def __init__(cls, name: str, bases: Any, namespace: Any, **_: bool) -> None:
        super().__init__(name, bases, namespace)


def _first_call(self: Frozen, *args: Any, **kwargs: Any) -> None:
    owner = next(c for c in type(self).__mro__ if "__init__" in vars(c))
    init = _constructor(owner)
    type.__setattr__(owner, "__init__", init)
    init(self, *args, **kwargs)


def _constructor(cls: type[Frozen]) -> Callable[..., None]:
    """``def __init__(self, x, y=..., *, z=...)``, which fills the slots past the frozen setattr."""
    fields = cls.frozen_fields
    names: dict[str, Any] = {"made_here": MISSING}
    positional, keyword, body = ["self"], ["*"], []
    for n, f in fields.items():
        parameter, value = n, n
        if f.default_factory is not MISSING:
            parameter, value = f"{n}=made_here", f"make_{n}() if {n} is made_here else {n}"
            names[f"make_{n}"] = f.default_factory
        elif f.default is not MISSING:
            parameter = f"{n}=default_{n}"
            names[f"default_{n}"] = f.default
        (keyword if f.kw_only else positional).append(parameter)
        names[f"set_{n}"] = getattr(cls, n).__set__
        body.append(f"    set_{n}(self, {value})")
    if hasattr(cls, "__post_init__"):
        body.append("    self.__post_init__()")
    parameters = ", ".join(positional + (keyword if len(keyword) > 1 else []))
    exec(f"def __init__({parameters}):\n" + "\n".join(body), names)
    init: Callable[..., None] = names["__init__"]
    init.__qualname__ = f"{cls.__qualname__}.__init__"
    return init


class Frozen(metaclass=_FrozenType):
    """Base of immutable classes, equal when of one class and with equal fields."""

    frozen_fields: ClassVar[_Fields]
    _values: ClassVar[Callable[[Any], Any]] = lambda _: ()

    def __eq__(self, other: object) -> bool:
        if other.__class__ is not self.__class__:
            return NotImplemented
        values = type(self)._values
        return bool(values(self) == values(other))

    def __hash__(self) -> int:
        return hash(type(self)._values(self))

    def __repr__(self) -> str:
        inside = ", ".join(f"{n}={getattr(self, n)!r}" for n in self.frozen_fields)
        return f"{type(self).__qualname__}({inside})"

    def __setattr__(self, name: str, _: object) -> NoReturn:
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise FrozenInstanceError(f"cannot delete field {name!r}")

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_fields, (type(self), {n: getattr(self, n) for n in self.frozen_fields})


_F = TypeVar("_F", bound=Frozen)


def _from_fields(cls: type[_F], values: dict[str, Any]) -> _F:
    return cls(**values)


def replace(record: _F, **changes: Any) -> _F:
    """A copy of ``record`` with other values in the fields named."""
    for n in record.frozen_fields:
        if n not in changes:
            changes[n] = getattr(record, n)
    return type(record)(**changes)
