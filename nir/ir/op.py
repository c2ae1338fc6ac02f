"""`Value` and `Op`: an op is one class, and an instance of it is a node of a graph.

A subclass is frozen and holds the target-independent facts of the op and nothing
else: operands and attributes as fields, the type rule, the numpy reference, the gradient and the
samples that the table-driven tests run. A missing fact is an error when the class is made.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field
from typing import Any, ClassVar, Literal, Self

import numpy as np

from nir.frozen import Frozen, kept, replace
from nir.ir.dim import Dim, Poly, evaluate, prod
from nir.ir.location import Location
from nir.ir.types import TensorType

Kind = Literal["elementwise", "movement", "reduction", "contraction", "source", "control", "other"]


class Value(Frozen, eq=False):
    """The result of an op or an input of a graph: an id, unique in its builder, and a type."""

    id: int
    type: TensorType

    def __repr__(self) -> str:
        return f"%{self.id}: {self.type}"


class Sample(Frozen):
    """Inputs for the table-driven tests: operand arrays in order, and attributes.

    ``differentiable`` False keeps a sample out of the gradient tests (a tie, a kink, an integer).
    ``arity`` says how many operands each variadic field takes, where there are several.
    """

    operands: tuple[np.ndarray, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    differentiable: bool = True
    arity: tuple[int, ...] = ()


# name -> class, for the parser, the tests over all ops and the generated op table.
OPS: dict[str, type[Op]] = {}

_OPERAND = {"Value": "one", "tuple[Value, ...]": "many", "Value | None": "optional"}
_FACTS = ("infer", "ref", "grad", "samples")


def snake_case(name: str) -> str:
    """LogSoftmax -> log_softmax, Conv2d -> conv2d, MaxPool2dGrad -> max_pool2d_grad."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


class Op(Frozen, eq=False, kw_only=True):
    """Base of all ops. ``results`` and ``locs`` are filled in by the Builder."""

    results: tuple[Value, ...] = ()
    locs: frozenset[Location] = frozenset()
    # Ops of one segment (not 0) are computed again when their gradients are; no part of the text.
    segment: int = 0

    name: ClassVar[str]
    kind: ClassVar[Kind] = "other"
    # Two equal ops on equal operands give equal results, so cse may merge them.
    pure: ClassVar[bool] = True
    # The result has the operand's bytes, in the same order: both may share storage while they live.
    view: ClassVar[bool] = False
    # (field name, "one" | "many" | "optional") of each operand, and names of attributes.
    operand_fields: ClassVar[tuple[tuple[str, str], ...]]
    attribute_fields: ClassVar[tuple[str, ...]]

    def __init_subclass__(cls) -> None:
        if cls.__name__.startswith("_"):  # a base shared by several ops, not an op
            return
        missing = [f for f in _FACTS if getattr(cls, f, None) is getattr(Op, f)]
        if missing or not cls.__doc__:
            raise TypeError(f"op {cls.__name__} lacks {', '.join(missing) or 'a docstring'}")
        cls.name = cls.__dict__.get("name") or snake_case(cls.__name__)
        annotations: dict[str, str] = {}
        for base in reversed(cls.__mro__):
            if issubclass(base, Op) and base is not Op:
                own = inspect.get_annotations(base).items()
                annotations.update((k, v) for k, v in own if not str(v).startswith("ClassVar"))
        cls.operand_fields = tuple(
            (n, _OPERAND[a]) for n, a in annotations.items() if a in _OPERAND
        )
        cls.attribute_fields = tuple(n for n, a in annotations.items() if a not in _OPERAND)
        OPS[cls.name] = cls

    # ---- facts, one per op ---------------------------------------------------------------------

    def infer(self) -> tuple[TensorType, ...]:
        """The types of the results. Raises ShapeError or DTypeError on operands that do not fit."""
        raise NotImplementedError

    # Any, for mypy: an op names its operands, and this signature lets it.
    def ref(self, *operands: Any, **_: Any) -> tuple[np.ndarray, ...]:
        """The results in numpy, for concrete attributes: the meaning of the op."""
        raise NotImplementedError

    def grad(
        self, operands: Sequence[Any], results: Sequence[Any], cotangents: Sequence[Any]
    ) -> Sequence[Any]:
        """One cotangent (or None) per operand. All arguments are `nir.ops.expr.Expr`.

        A cotangent is None where nothing flows back to that result. Raises NotDifferentiable.
        """
        raise NotImplementedError

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        """Inputs that show the op, its edge cases included."""
        raise NotImplementedError

    def decompose(self, operands: Sequence[Any]) -> Sequence[Any] | None:
        """The op in terms of simpler ones (Expr in, one Expr per result out), or None."""
        return None

    def early_results(self) -> tuple[Value, ...]:
        """Results that a kernel of this op writes before it has read all of its operands."""
        return ()

    def takes_over(self) -> tuple[tuple[Value, Value], ...]:
        """(operand, result) pairs in which a kernel may write the result over the operand.

        It reads each element of that operand before it writes there, and never again.
        """
        if self.kind != "elementwise":
            return ()
        pairs = ((x, r) for x in dict.fromkeys(self.operands) for r in self.results)
        return tuple(
            (x, r) for x, r in pairs
            if x.type.shape == r.type.shape and x.type.nbytes == r.type.nbytes
        )  # fmt: skip

    # How a kernel goes about it, for the interpreter that looks for operands overwritten too soon.

    def row_axes(self) -> int | None:
        """The leading axes whose rows are finished one by one; None where single elements are."""
        return None

    def passes(self) -> tuple[int, ...]:
        """For each result, the pass over a row's elements that writes it."""
        return (0,) * len(self.results)

    def ref_torn(
        self, operands: Sequence[np.ndarray], torn: Sequence[np.ndarray], start: int
    ) -> tuple[np.ndarray, ...]:
        """The results where pass ``start`` and later ones find ``torn`` in place of operands."""
        return self.ref(*torn)

    def flops(self) -> Dim:
        """Arithmetic on elements that a run takes; what only moves elements takes none."""
        match self.kind:
            case "elementwise":
                return prod(self.results[0].type.shape)
            case "reduction":
                return prod(self.operands[0].type.shape)
        return 0

    def traffic(self) -> Dim:
        """Bytes that a run reads and writes at least: each operand and each result, once."""
        values = dict.fromkeys((*self.operands, *self.results))
        return sum((v.type.nbytes for v in values), 0)

    # ---- structure -----------------------------------------------------------------------------

    @property
    def result(self) -> Value:
        """The only result."""
        (value,) = self.results
        return value

    @kept
    def operands(self) -> tuple[Value, ...]:
        """All operands, in order, variadic ones flattened and absent ones left out."""
        out: list[Value] = []
        for name, arity in self.operand_fields:
            value = getattr(self, name)
            if arity == "one":
                out.append(value)
            elif arity == "many":
                out.extend(value)
            elif value is not None:
                out.append(value)
        return tuple(out)

    @property
    def attributes(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.attribute_fields}

    def map_operands(self, fn: Callable[[Value], Value]) -> Self:
        """This op with each operand replaced; the same object if none changes."""
        changes: dict[str, Any] = {}
        for name, arity in self.operand_fields:
            old = getattr(self, name)
            if old is None:
                continue
            if arity == "many":
                new: Any = tuple(map(fn, old))
                same = all(a is b for a, b in zip(old, new, strict=True))
            else:
                new = fn(old)
                same = new is old
            if not same:
                changes[name] = new
        return replace(self, **changes) if changes else self

    def bind(self, env: Mapping[str, int]) -> Self:
        """This op with the symbols in its attributes replaced by numbers."""
        changes = {}
        for name in self.attribute_fields:
            old = getattr(self, name)
            new = bind_attribute(old, env)
            if new is not old:
                changes[name] = new
        return replace(self, **changes) if changes else self

    def regions(self) -> Iterator[tuple[str, Any]]:
        """(attribute name, Graph) of each region, for ops that hold closed graphs."""
        return iter(())


def construct(
    cls: type[Op],
    operands: Sequence[Value],
    attributes: Mapping[str, Any],
    arity: Sequence[int] = (),
) -> Op:
    """An op from operands in order and attributes by name.

    An optional operand is absent where ``attributes`` holds None for it. A lone variadic field
    takes what the others leave; several take ``arity`` operands each.
    """
    given = dict(attributes)
    rest = list(operands)
    present = [(n, k) for n, k in cls.operand_fields if not (k == "optional" and n in given)]
    several = iter(arity or (len(rest) - sum(k != "many" for _, k in present),))
    for name, kind in present:
        if kind == "many":
            count = next(several)
            given[name], rest = tuple(rest[:count]), rest[count:]
        else:
            given[name] = rest.pop(0)
    return cls(**given)


def bind_attribute(value: Any, env: Mapping[str, Dim]) -> Any:
    """``value`` with symbolic dimensions evaluated, through nested tuples; itself if unchanged."""
    if isinstance(value, Poly):
        return evaluate(value, env)
    if isinstance(value, tuple):
        new = tuple(bind_attribute(v, env) for v in value)
        return value if all(a is b for a, b in zip(value, new, strict=True)) else new
    if isinstance(value, TensorType):
        shape = bind_attribute(value.shape, env)
        return value if shape is value.shape else value.with_(shape=shape)
    return value
