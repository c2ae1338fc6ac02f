"""Movement: the same elements in another shape or order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nir.errors import DTypeError, ShapeError
from nir.ir.dim import Shape, numbers, prod
from nir.ir.op import Op, Sample, Value
from nir.ir.types import TensorType

Grad = Sequence[Any]

_X = np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 7


def _shown(shape: Shape) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


class Reshape(Op):
    """The elements in row-major order, in another shape of as many."""

    x: Value
    shape: Shape
    kind = "movement"
    view = True

    def infer(self) -> tuple[TensorType, ...]:
        negative = any(isinstance(d, int) and d < 0 for d in self.shape)
        if prod(self.shape) != self.x.type.size or negative:
            raise ShapeError(
                f"reshape: {_shown(self.shape)} has {prod(self.shape)} elements, "
                f"expected {self.x.type.size} (x: {self.x.type})"
            )
        return (self.x.type.with_(shape=self.shape),)

    def ref(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        return (x.reshape(numbers(self.shape)),)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        return (cotangents[0].reshape(operands[0].shape),)

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        return [
            Sample((_X,), {"shape": (4, 6)}),
            Sample((_X,), {"shape": (2, 12)}),
            Sample((_X[:1, :1, :1],), {"shape": ()}),
            Sample((_X[:0],), {"shape": (4, 0)}),
        ]


class Transpose(Op):
    """Axis i of the result is axis perm[i] of x."""

    x: Value
    perm: tuple[int, ...]
    kind = "movement"

    def infer(self) -> tuple[TensorType, ...]:
        shape = self.x.type.shape
        if sorted(self.perm) != list(range(len(shape))):
            raise ShapeError(
                f"transpose: expected a permutation of {len(shape)} axes, got {self.perm} "
                f"(x: {self.x.type})"
            )
        return (self.x.type.with_(shape=tuple(shape[a] for a in self.perm)),)

    def ref(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        return (
            np.ascontiguousarray(x.transpose(self.perm)).reshape([x.shape[a] for a in self.perm]),
        )

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        inverse = tuple(self.perm.index(a) for a in range(len(self.perm)))
        return (cotangents[0].transpose(inverse),)

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        return [
            Sample((_X,), {"perm": (2, 0, 1)}),
            Sample((_X[0],), {"perm": (1, 0)}),
            Sample((_X[0, 0, 0],), {"perm": ()}),
        ]


class Broadcast(Op):
    """Repeat x along new axes: axis i of x is axis axes[i] of the result, with the same size."""

    x: Value
    shape: Shape
    axes: tuple[int, ...]
    kind = "movement"

    def infer(self) -> tuple[TensorType, ...]:
        t = self.x.type
        ascending = all(a < b for a, b in zip(self.axes, self.axes[1:], strict=False))
        inside = all(0 <= a < len(self.shape) for a in self.axes)
        if len(self.axes) != t.ndim or not ascending or not inside:
            raise ShapeError(
                f"broadcast: expected {t.ndim} ascending axes below {len(self.shape)}, "
                f"got {self.axes} (x: {t})"
            )
        if any(isinstance(d, int) and d < 0 for d in self.shape):
            raise ShapeError(f"broadcast: expected sizes >= 0, got {_shown(self.shape)}")
        for i, a in enumerate(self.axes):
            if t.shape[i] != self.shape[a]:
                raise ShapeError(
                    f"broadcast: axis {i} has size {t.shape[i]} (x: {t}), "
                    f"axis {a} of {_shown(self.shape)} has {self.shape[a]}"
                )
        return (t.with_(shape=self.shape),)

    def ref(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        with_ones = [1] * len(self.shape)
        for i, a in enumerate(self.axes):
            with_ones[a] = x.shape[i]
        shape = numbers(self.shape)
        # ascontiguousarray alone would make a vector of a scalar.
        return (np.ascontiguousarray(np.broadcast_to(x.reshape(with_ones), shape)).reshape(shape),)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        new = tuple(a for a in range(len(self.shape)) if a not in self.axes)
        return (cotangents[0].sum(new) if new else cotangents[0],)

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        return [
            Sample((_X[0, 0],), {"shape": (3, 4), "axes": (1,)}),
            Sample((_X[0],), {"shape": (3, 2, 4), "axes": (0, 2)}),
            Sample((_X[0, 0, 0],), {"shape": (2, 2), "axes": ()}),
            Sample((_X[0, 0],), {"shape": (0, 4), "axes": (1,)}),
        ]


class Slice(Op):
    """``sizes[i]`` elements of x[starts[i] :: steps[i]] along each axis; steps are positive."""

    x: Value
    starts: Shape
    sizes: Shape
    steps: tuple[int, ...]
    kind = "movement"

    def infer(self) -> tuple[TensorType, ...]:
        t = self.x.type
        if not len(self.starts) == len(self.sizes) == len(self.steps) == t.ndim:
            raise ShapeError(f"slice: expected {t.ndim} starts, sizes and steps (x: {t})")
        for a, (start, size, step, n) in enumerate(
            zip(self.starts, self.sizes, self.steps, t.shape, strict=True)
        ):
            if step < 1:
                raise ShapeError(f"slice: expected positive steps, got {step} on axis {a}")
            known = all(isinstance(d, int) for d in (start, size, n))
            if known and (start < 0 or size < 0 or (size and start + (size - 1) * step >= n)):
                raise ShapeError(
                    f"slice: {size} elements from {start} by {step} leave axis {a} of size {n} "
                    f"(x: {t})"
                )
        return (t.with_(shape=self.sizes),)

    def ref(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        starts, sizes = numbers(self.starts), numbers(self.sizes)
        index = tuple(
            slice(start, start + (size - 1) * step + 1 if size else start, step)
            for start, size, step in zip(starts, sizes, self.steps, strict=True)
        )
        return (np.ascontiguousarray(x[index]).reshape(sizes),)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        # Put the steps back between the elements, then the ends around them.
        ct, shape = cotangents[0], operands[0].shape
        if any(s != 1 for s in self.steps):
            ct = ct.dilate(self.steps)
        high = tuple(
            n - start - m for n, start, m in zip(shape, self.starts, ct.shape, strict=True)
        )
        return (ct.pad(self.starts, high, 0),)

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        return [
            Sample((_X,), {"starts": (0, 1, 1), "sizes": (2, 2, 2), "steps": (1, 1, 2)}),
            Sample((_X,), {"starts": (1, 0, 3), "sizes": (1, 2, 1), "steps": (1, 2, 1)}),
            Sample((_X,), {"starts": (0, 3, 0), "sizes": (2, 0, 4), "steps": (1, 1, 1)}),
        ]


class Pad(Op):
    """x with ``low[i]`` elements of ``value`` before and ``high[i]`` after it along each axis."""

    x: Value
    low: Shape
    high: Shape
    value: float | int | bool
    kind = "movement"

    def infer(self) -> tuple[TensorType, ...]:
        t = self.x.type
        if not len(self.low) == len(self.high) == t.ndim:
            raise ShapeError(f"pad: expected {t.ndim} low and high widths (x: {t})")
        if any(isinstance(d, int) and d < 0 for d in (*self.low, *self.high)):
            raise ShapeError(f"pad: expected widths >= 0, got {self.low}, {self.high} (x: {t})")
        shape = tuple(lo + n + hi for lo, n, hi in zip(self.low, t.shape, self.high, strict=True))
        return (t.with_(shape=shape),)

    def ref(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        width = list(zip(self.low, self.high, strict=True))
        if not width:
            return (x,)
        return (np.pad(x, width, constant_values=np.asarray(self.value).astype(x.dtype)),)  # type: ignore[arg-type]

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        return (cotangents[0].slice(self.low, operands[0].shape, (1,) * len(self.low)),)

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        return [
            Sample((_X,), {"low": (0, 1, 0), "high": (0, 2, 3), "value": 0.0}),
            Sample(
                (_X[0].astype(np.int32),),
                {"low": (1, 0), "high": (0, 1), "value": -1},
                differentiable=False,
            ),
            Sample((_X[:0],), {"low": (1, 0, 0), "high": (1, 0, 0), "value": 2.5}),
        ]


class Concat(Op):
    """The tensors one after the other along ``axis``."""

    xs: tuple[Value, ...]
    axis: int
    kind = "movement"

    def infer(self) -> tuple[TensorType, ...]:
        shown = ", ".join(str(x.type) for x in self.xs)
        if not self.xs or not 0 <= self.axis < self.xs[0].type.ndim:
            raise ShapeError(
                f"concat: expected tensors with an axis {self.axis}, got {shown or 'none'}"
            )
        first = self.xs[0].type
        for x in self.xs:
            if x.type.dtype != first.dtype:
                raise DTypeError(f"concat: expected operands of one dtype, got {shown}")
            rest = [d for a, d in enumerate(x.type.shape) if a != self.axis]
            if rest != [d for a, d in enumerate(first.shape) if a != self.axis]:
                raise ShapeError(f"concat: shapes differ beside axis {self.axis}: {shown}")
        total = sum((x.type.shape[self.axis] for x in self.xs[1:]), first.shape[self.axis])
        shape = tuple(total if a == self.axis else d for a, d in enumerate(first.shape))
        return (first.with_(shape=shape),)

    def ref(self, *xs: np.ndarray) -> tuple[np.ndarray, ...]:
        return (np.concatenate(xs, self.axis),)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        out, start = [], 0
        for x in operands:
            starts = tuple(start if a == self.axis else 0 for a in range(len(x.shape)))
            out.append(cotangents[0].slice(starts, x.shape, (1,) * len(x.shape)))
            start = start + x.shape[self.axis]
        return out

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        return [
            Sample((_X, _X[:, :1]), {"axis": 1}),
            Sample((_X[0], _X[1], _X[0][:0]), {"axis": 0}),
            Sample((_X,), {"axis": 2}),
        ]


class Flip(Op):
    """The order of the elements reversed along ``axes``."""

    x: Value
    axes: tuple[int, ...]
    kind = "movement"

    def infer(self) -> tuple[TensorType, ...]:
        t = self.x.type
        if any(not 0 <= a < t.ndim for a in self.axes) or len(set(self.axes)) != len(self.axes):
            raise ShapeError(
                f"flip: expected distinct axes below {t.ndim}, got {self.axes} (x: {t})"
            )
        return (t,)

    def ref(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        return (np.ascontiguousarray(np.flip(x, self.axes)).reshape(x.shape),)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        return (cotangents[0].flip(self.axes),)

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        return [Sample((_X,), {"axes": (0, 2)}), Sample((_X,), {"axes": ()})]


class Dilate(Op):
    """``factors[i] - 1`` zeros between neighbours along axis i: size n becomes (n - 1) * f + 1."""

    x: Value
    factors: tuple[int, ...]
    kind = "movement"

    def infer(self) -> tuple[TensorType, ...]:
        t = self.x.type
        if len(self.factors) != t.ndim or any(f < 1 for f in self.factors):
            raise ShapeError(f"dilate: expected {t.ndim} factors >= 1, got {self.factors} (x: {t})")
        # An empty axis stays empty: (0 - 1) * f + 1 would be negative.
        shape = tuple(
            0 if isinstance(n, int) and n == 0 else n * f - (f - 1)
            for n, f in zip(t.shape, self.factors, strict=True)
        )
        return (t.with_(shape=shape),)

    def ref(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        shape = [max(0, (n - 1) * f + 1) for n, f in zip(x.shape, self.factors, strict=True)]
        out = np.zeros(shape, x.dtype)
        out[tuple(slice(None, None, f) for f in self.factors)] = x
        return (out,)

    def grad(self, operands: Grad, results: Grad, cotangents: Grad) -> Grad:
        shape = operands[0].shape
        return (cotangents[0].slice((0,) * len(shape), shape, self.factors),)

    @classmethod
    def samples(cls) -> Sequence[Sample]:
        return [
            Sample((_X,), {"factors": (1, 2, 3)}),
            Sample((_X[:, :0],), {"factors": (2, 2, 1)}),
        ]
