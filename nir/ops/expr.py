"""`Expr`: a value together with its builder, so that gradients and rewrites read like arithmetic.

    def grad(self, operands, results, cotangents):   # of exp
        return (cotangents[0] * results[0],)

Every op is a method by its name, made from the op's own fields: the Expr itself is the first
operand, the other operands and the attributes follow in the order of the class.

    x.exp()   x.sum((1,))   x.broadcast(shape, axes)   c.where(a, b)   x.iota((4,), 0, i64)
    a.matmul(b, transpose_rhs=True)   x.concat((y, z), axis=0)

An op without operands (`full`, `iota`) takes only the builder from the Expr. Operands of
elementwise ops may be Python numbers: they become a `Full` of the type of the operand beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

from nir.frozen import Frozen
from nir.ir.dim import Dim, Poly, Shape
from nir.ir.graph import Builder
from nir.ir.op import OPS, Op, Value
from nir.ir.types import DType, TensorType

Number: TypeAlias = "bool | int | float | Poly"
_NUMBERS = (bool, int, float, Poly)


class Expr(Frozen, eq=False):
    """A value of a graph under construction."""

    builder: Builder
    value: Value

    @property
    def type(self) -> TensorType:
        return self.value.type

    @property
    def shape(self) -> Shape:
        return self.value.type.shape

    @property
    def ndim(self) -> int:
        return self.value.type.ndim

    @property
    def dtype(self) -> DType:
        return self.value.type.dtype

    @property
    def size(self) -> Dim:
        return self.value.type.size

    def __repr__(self) -> str:
        return f"Expr({self.value!r})"

    def emit(self, op: Op) -> tuple[Expr, ...]:
        """Append ``op`` to the graph; one Expr per result."""
        return tuple(Expr(self.builder, v) for v in self.builder.emit(op))

    def full_like(self, number: Number) -> Expr:
        """``number`` (a symbolic size too) in this shape and dtype."""
        (out,) = self.emit(_full(number, self.type))
        return out

    def zeros_like(self) -> Expr:
        return self.full_like(False if self.dtype.kind == "bool" else 0)

    # ---- every op by its name ------------------------------------------------------------------

    def __getattr__(self, name: str) -> Callable[..., Any]:
        cls = OPS.get(name)
        if cls is None:
            raise AttributeError(f"Expr has no attribute and nir no op {name!r}")

        def call(*args: Any, **kwargs: Any) -> Any:
            out = self.emit(cls(**_bind(cls, self, args, kwargs)))
            return out[0] if len(out) == 1 else out

        return call

    # ---- operators -----------------------------------------------------------------------------

    def __neg__(self) -> Expr:
        return self._op("neg")

    def __add__(self, other: Expr | Number) -> Expr:
        return self._op("add", other)

    def __radd__(self, other: Number) -> Expr:
        return self.full_like(other)._op("add", self)

    def __sub__(self, other: Expr | Number) -> Expr:
        return self._op("sub", other)

    def __rsub__(self, other: Number) -> Expr:
        return self.full_like(other)._op("sub", self)

    def __mul__(self, other: Expr | Number) -> Expr:
        return self._op("mul", other)

    def __rmul__(self, other: Number) -> Expr:
        return self.full_like(other)._op("mul", self)

    def __truediv__(self, other: Expr | Number) -> Expr:
        return self._op("div", other)

    def __rtruediv__(self, other: Number) -> Expr:
        return self.full_like(other)._op("div", self)

    def __pow__(self, other: Expr | Number) -> Expr:
        return self._op("pow", other)

    def _op(self, name: str, *args: Expr | Number) -> Expr:
        out: Expr = getattr(self, name)(*args)
        return out


def _full(number: Number, like: TensorType) -> Op:
    fields: dict[str, Any] = {"value": number, "shape": like.shape, "dtype": like.dtype}
    return OPS["full"](**fields)


def _bind(
    cls: type[Op], first: Expr, args: Sequence[Any], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The fields of ``cls``: ``first`` as its first operand, then args and kwargs in order."""
    operands = dict(cls.operand_fields)
    names = [*operands, *cls.attribute_fields]
    if operands:
        many = operands[names[0]] == "many"
        args = ((first, *args[0]), *args[1:]) if many else (first, *args)
    if len(args) > len(names):
        raise TypeError(f"{cls.name} takes {', '.join(names)}; got {len(args)} arguments")
    bound = dict(zip(names, args, strict=False)) | kwargs
    for name, arity in operands.items():
        given = bound.get(name)
        match arity:
            case "many":
                bound[name] = tuple(e.value for e in given or ())
            case _ if isinstance(given, Expr):
                bound[name] = given.value
            case _ if isinstance(given, _NUMBERS) and cls.kind == "elementwise":
                (bound[name],) = first.builder.emit(_full(given, _peer(operands, bound)))
            case _ if given is not None or arity == "one":
                raise TypeError(f"{cls.name}: operand {name} is an Expr, not {given!r}")
    return bound


def _peer(operands: dict[str, str], bound: dict[str, Any]) -> TensorType:
    """The type that a number beside the given operands takes: theirs, a condition's aside."""

    def types() -> Iterator[TensorType]:
        for name in operands:
            v = bound.get(name)
            if isinstance(v, (Expr, Value)) and name != "condition":
                yield v.type

    found = next(types(), None)
    if found is None:
        raise TypeError("a number needs an operand beside it, to take its type from")
    return found
