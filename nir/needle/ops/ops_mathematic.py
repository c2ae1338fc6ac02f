"""Arithmetic, reductions, moves and convolution, by Needle's names.

`lower` says what each op computes, on nir Tensors; gradients are nir's. In the np personality
dtypes follow numpy, in the nd personality all is float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import nir
from nir import ops as nir_ops
from nir.frontend.tensor import apply
from nir.needle.autograd import Tensor as Tensor
from nir.needle.autograd import TensorOp as TensorOp
from nir.needle.autograd import TensorTuple as TensorTuple
from nir.needle.autograd import TensorTupleOp as TensorTupleOp
from nir.needle.autograd import Value as Value
from nir.needle.backend_selection import BACKEND as BACKEND
from nir.needle.backend_selection import NDArray as NDArray
from nir.needle.backend_selection import array_api as array_api
from nir.needle.lowering import NirOp
from nir.needle.store import IS_NUMPY


def together(*xs: nir.Tensor) -> tuple[nir.Tensor, ...]:
    """All in numpy's common dtype."""
    if not IS_NUMPY or len({x.dtype for x in xs}) == 1:
        return xs
    common = np.result_type(*(x.dtype.numpy for x in xs))
    return tuple(x.to(common) for x in xs)


def with_scalar(a: nir.Tensor, scalar: Any) -> tuple[nir.Tensor, Any]:
    """The tensor in the common dtype of numpy, and the scalar, or array, to go with it."""
    if IS_NUMPY and isinstance(scalar, np.ndarray | np.generic | int | float):
        plain = isinstance(scalar, int | float) and not isinstance(scalar, np.generic)
        dtype = a.dtype.numpy
        other = type(scalar)(0) if plain else np.asarray(scalar).dtype
        if isinstance(scalar, np.ndarray) and scalar.ndim:
            a, b = together(a, nir.Tensor(scalar))
            return a, b
        a = a.to(np.result_type(dtype, other)) if not plain or isinstance(scalar, float) else a
    return a, scalar.item() if isinstance(scalar, np.ndarray | np.generic) else scalar


def floating(a: nir.Tensor) -> nir.Tensor:
    """numpy's functions of integers give float64."""
    return a if a.dtype.is_float else a.to(np.float64 if IS_NUMPY else np.float32)


class EWiseAdd(NirOp):
    def lower(self, *xs: nir.Tensor) -> nir.Tensor:
        a, b = together(*xs)
        return a + b


class EWiseMul(NirOp):
    def lower(self, *xs: nir.Tensor) -> nir.Tensor:
        a, b = together(*xs)
        return a * b


class EWisePow(NirOp):
    """a ** b."""

    def lower(self, *xs: nir.Tensor) -> nir.Tensor:
        a, b = together(*xs)
        return a**b


class EWiseDiv(NirOp):
    def lower(self, *xs: nir.Tensor) -> nir.Tensor:
        a, b = together(*xs)
        return floating(a) / floating(b)


class _ScalarOp(NirOp):
    """An op with a number."""

    def __init__(self, scalar: Any) -> None:
        self.scalar = scalar


class AddScalar(_ScalarOp):
    def lower(self, *xs: nir.Tensor) -> nir.Tensor:
        a, s = with_scalar(xs[0], self.scalar)
        out: nir.Tensor = a + s
        return out


class MulScalar(_ScalarOp):
    def lower(self, *xs: nir.Tensor) -> nir.Tensor:
        a, s = with_scalar(xs[0], self.scalar)
        out: nir.Tensor = a * s
        return out


class PowerScalar(_ScalarOp):
    """a ** scalar."""

    def lower(self, *xs: nir.Tensor) -> nir.Tensor:
        a, s = with_scalar(xs[0], self.scalar)
        out: nir.Tensor = a**s
        return out


class DivScalar(_ScalarOp):
    def lower(self, *xs: nir.Tensor) -> nir.Tensor:
        a, s = with_scalar(xs[0], self.scalar)
        out: nir.Tensor = floating(a) / s
        return out


class Transpose(NirOp):
    """Two axes swapped, the last two if ``axes`` is None."""

    def __init__(self, axes: Sequence[int] | None = None) -> None:
        self.axes = axes

    def lower(self, *xs: nir.Tensor) -> nir.Tensor:
        i, j = (-2, -1) if self.axes is None else self.axes
        return xs[0].transpose(i, j)


class Reshape(NirOp):
    def __init__(self, shape: Any) -> None:
        self.shape = shape

    def lower(self, *xs: nir.Tensor) -> nir.Tensor:
        shape = self.shape
        return xs[0].reshape(*shape) if isinstance(shape, tuple | list) else xs[0].reshape(shape)


class BroadcastTo(NirOp):
    def __init__(self, shape: Sequence[Any]) -> None:
        self.shape = shape

    def lower(self, *xs: nir.Tensor) -> nir.Tensor:
        return xs[0].expand(*self.shape)


class Summation(NirOp):
    """The sum over ``axes``: all of them if None, which in the nd personality leaves shape (1,)."""

    def __init__(self, axes: Any = None) -> None:
        self.axes = axes

    def lower(self, *xs: nir.Tensor) -> nir.Tensor:
        return over_axes(xs[0].sum, self.axes, xs[0])


def over_axes(reduce: Callable[[Any], nir.Tensor], axes: Any, x: nir.Tensor) -> nir.Tensor:
    """``reduce`` over ``axes`` (None, one or several), with Needle's shapes."""
    if axes is None:
        out = reduce(tuple(range(x.ndim)))
        return out if IS_NUMPY else out.reshape(1)
    axes = (axes,) if isinstance(axes, int | np.integer) else tuple(axes)
    return reduce(tuple(int(a) for a in axes)) if axes else x


class MatMul(NirOp):
    """The product of matrices, or of batches of them."""

    def lower(self, *xs: nir.Tensor) -> nir.Tensor:
        a, b = together(*xs)
        return a @ b


class Negate(NirOp):
    def lower(self, *xs: nir.Tensor) -> nir.Tensor:
        return -xs[0]


class Log(NirOp):
    def lower(self, *xs: nir.Tensor) -> nir.Tensor:
        return floating(xs[0]).log()


class Exp(NirOp):
    def lower(self, *xs: nir.Tensor) -> nir.Tensor:
        return floating(xs[0]).exp()


class ReLU(NirOp):
    """max(a, 0), with derivative 0 at 0."""

    def lower(self, *xs: nir.Tensor) -> nir.Tensor:
        return xs[0].relu()


class Tanh(NirOp):
    def lower(self, *xs: nir.Tensor) -> nir.Tensor:
        return floating(xs[0]).tanh()


class Flip(NirOp):
    """The elements in reverse order along ``axes``."""

    def __init__(self, axes: Any = None) -> None:
        self.axes = axes

    def lower(self, *xs: nir.Tensor) -> nir.Tensor:
        axes = range(xs[0].ndim) if self.axes is None else self.axes
        return xs[0].flip(*([axes] if isinstance(axes, int) else axes))


class Dilate(NirOp):
    """``dilation`` zeros after each element along ``axes``: n becomes n (1 + dilation)."""

    def __init__(self, axes: Any, dilation: int) -> None:
        self.axes, self.dilation = axes, dilation

    def lower(self, *xs: nir.Tensor) -> nir.Tensor:
        x = xs[0]
        for axis in _axes_of(x, self.axes):
            shape = x.shape
            wide = x.unsqueeze(axis + 1)
            sizes = [0, 0] * (wide.ndim - axis - 2) + [0, self.dilation]
            x = nir.pad(wide, sizes).reshape(
                *shape[:axis], shape[axis] * (1 + self.dilation), *shape[axis + 1 :]
            )
        return x


class UnDilate(NirOp):
    """Every (1 + dilation)-th element along ``axes``: what `Dilate` spread out."""

    def __init__(self, axes: Any, dilation: int) -> None:
        self.axes, self.dilation = axes, dilation

    def lower(self, *xs: nir.Tensor) -> nir.Tensor:
        x = xs[0]
        axes = _axes_of(x, self.axes)
        step = slice(None, None, self.dilation + 1)
        return x[tuple(step if a in axes else slice(None) for a in range(x.ndim))]


def _axes_of(x: nir.Tensor, axes: Any) -> list[int]:
    """The axes that ``x`` has; others are ignored."""
    given = (axes,) if isinstance(axes, int) else axes
    return sorted({a % x.ndim for a in given if -x.ndim <= a < x.ndim})


class Conv(NirOp):
    """Cross-correlation of images (N, H, W, C_in) with a kernel (k, k, C_in, C_out)."""

    def __init__(self, stride: int | None = 1, padding: int | None = 0) -> None:
        self.stride, self.padding = stride, padding

    def lower(self, *xs: nir.Tensor) -> nir.Tensor:
        images, kernel = together(*xs)
        s, p = self.stride or 1, self.padding or 0
        out: nir.Tensor = apply(
            nir_ops.Conv2d,
            images,
            kernel,
            stride=(s, s),
            padding=((p, p), (p, p)),
            dilation=(1, 1),
            groups=1,
        )
        return out


# ---- functions ---------------------------------------------------------------------------------


def add(a: Any, b: Any) -> Any:
    return EWiseAdd()(a, b)


def add_scalar(a: Any, scalar: Any) -> Any:
    return AddScalar(scalar)(a)


def multiply(a: Any, b: Any) -> Any:
    return EWiseMul()(a, b)


def mul_scalar(a: Any, scalar: Any) -> Any:
    return MulScalar(scalar)(a)


def power(a: Any, b: Any) -> Any:
    return EWisePow()(a, b)


def power_scalar(a: Any, scalar: Any) -> Any:
    return PowerScalar(scalar)(a)


def divide(a: Any, b: Any) -> Any:
    return EWiseDiv()(a, b)


def divide_scalar(a: Any, scalar: Any) -> Any:
    return DivScalar(scalar)(a)


def transpose(a: Any, axes: Any = None) -> Any:
    return Transpose(axes)(a)


def reshape(a: Any, shape: Any) -> Any:
    return Reshape(shape)(a)


def broadcast_to(a: Any, shape: Any) -> Any:
    return BroadcastTo(shape)(a)


def summation(a: Any, axes: Any = None) -> Any:
    return Summation(axes)(a)


def matmul(a: Any, b: Any) -> Any:
    return MatMul()(a, b)


def negate(a: Any) -> Any:
    return Negate()(a)


def log(a: Any) -> Any:
    return Log()(a)


def exp(a: Any) -> Any:
    return Exp()(a)


def relu(a: Any) -> Any:
    return ReLU()(a)


def tanh(a: Any) -> Any:
    return Tanh()(a)


def flip(a: Any, axes: Any) -> Any:
    return Flip(axes)(a)


def dilate(a: Any, axes: Any, dilation: int) -> Any:
    return Dilate(axes, dilation)(a)


def undilate(a: Any, axes: Any, dilation: int) -> Any:
    return UnDilate(axes, dilation)(a)


def conv(a: Any, b: Any, stride: int = 1, padding: int = 1) -> Any:
    return Conv(stride, padding)(a, b)
