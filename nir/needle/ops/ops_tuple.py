"""Tuples of tensors as nodes: packing, unpacking, `stack` and `split`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import nir
from nir.needle import deferred, init
from nir.needle.autograd import TensorOp, TensorTuple, TensorTupleOp, Value
from nir.needle.deferred import Ref
from nir.needle.lowering import NirOp, NirTupleOp, key_of
from nir.needle.store import Store, array_of, wrap


def _values(node: Value) -> tuple[Ref, ...]:
    """The elements of a TensorTuple."""
    if node._result is not None:
        return tuple(node._result)
    return tuple(s.value() for s in node._evaluated())


class MakeTensorTuple(TensorTupleOp):
    """A TensorTuple of the operands."""

    def compute(self, *arrays: Any) -> Any:
        return tuple(arrays)

    def evaluate(self, node: Value) -> None:
        node._args = node._result = tuple(x.ref() for x in node.inputs)
        node._store = tuple(
            Store(r, x.device) for r, x in zip(node._result, node.inputs, strict=True)
        )

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return tuple(out_grad[i] for i in range(len(node.inputs)))


class TupleGetItem(TensorOp):
    """Element ``index`` of a TensorTuple; of one that was just made, the operand itself."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __call__(self, *args: Any) -> Any:
        (value,) = args
        assert isinstance(value, TensorTuple)
        if isinstance(value.op, MakeTensorTuple):
            return value.inputs[self.index]
        return super().__call__(value)

    def compute(self, *arrays: Any) -> Any:
        return arrays[0][self.index]

    def evaluate(self, node: Value) -> None:
        source = node.inputs[0]
        node._args = _values(source)
        node._result = node._args[self.index]
        node._store = Store(node._result, source._evaluated()[self.index].device)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        source = node.inputs[0]
        zeros = [
            out_grad
            if i == self.index
            else init.zeros(*s.shape, dtype=out_grad.dtype, device=out_grad.device)
            for i, s in enumerate(source._evaluated())
        ]
        return make_tuple(*zeros)


class Stack(NirOp):
    """The elements of a TensorTuple along a new axis."""

    def __init__(self, axis: int) -> None:
        self.axis = axis

    def compute(self, *arrays: Any) -> Any:
        stores = [wrap(a) for a in arrays[0]]
        (ref,) = deferred.call(key_of(self), self._lower, [s.value() for s in stores])
        return array_of(ref, stores[0].device)

    def evaluate(self, node: Value) -> None:
        source = node.inputs[0]
        node._args = _values(source)
        (node._result,) = deferred.call(key_of(self), self._lower, node._args)
        node._store = Store(node._result, source._evaluated()[0].device)

    def lower(self, *xs: nir.Tensor) -> nir.Tensor:
        return nir.stack(xs, self.axis)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return split(out_grad, self.axis)


class Split(NirTupleOp):
    """The slices along ``axis``, without that axis."""

    def __init__(self, axis: int) -> None:
        self.axis = axis

    def lower(self, *xs: nir.Tensor) -> tuple[nir.Tensor, ...]:
        return xs[0].unbind(self.axis)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return stack(out_grad, self.axis)


class FusedAddScalars(NirTupleOp):
    """(a + c0, a + c1)."""

    def __init__(self, c0: float, c1: float) -> None:
        self.c0, self.c1 = c0, c1

    def lower(self, *xs: nir.Tensor) -> tuple[nir.Tensor, ...]:
        return xs[0] + self.c0, xs[0] + self.c1

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return out_grad[0] + out_grad[1]


def make_tuple(*args: Any) -> Any:
    return MakeTensorTuple()(*args)


def tuple_get_item(value: Any, index: int) -> Any:
    return TupleGetItem(index)(value)


def stack(args: Sequence[Any] | TensorTuple, axis: int) -> Any:
    """Tensors, or a TensorTuple, along a new axis."""
    return Stack(axis)(args if isinstance(args, TensorTuple) else make_tuple(*args))


def split(a: Any, axis: int) -> Any:
    """The slices of ``a`` along ``axis`` as a TensorTuple."""
    return Split(axis)(a)


def fused_add_scalars(x: Any, c0: float, c1: float) -> Any:
    return FusedAddScalars(c0, c1)(x)
