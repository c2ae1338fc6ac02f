"""The graph of a Needle program: `Op`, `Value`, `Tensor`, `TensorTuple`, and `backward`.

A Value is a node (op, inputs) as in Needle. What it holds is a nir Tensor: ops of the face say what
they compute by `lower`, which nir records, and gradients are nir's walk over what was recorded. Ops
that users write, with `compute` and `gradient` in Needle's words, take part one by one.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Sequence
from functools import reduce
from operator import add
from typing import Any

import numpy

import nir
from nir import needle
from nir.needle import deferred, pending
from nir.needle.backend_selection import NDArray as NDArray
from nir.needle.backend_selection import all_devices as all_devices
from nir.needle.backend_selection import array_api as array_api
from nir.needle.backend_selection import cpu as cpu
from nir.needle.backend_selection import default_device as default_device
from nir.needle.deferred import Ref
from nir.needle.store import IS_NUMPY, Store, store_of, stored, wrap

LAZY_MODE = False  # True: `cached_data` stays None until somebody realises it
TENSOR_COUNTER = 0  # Values alive


class Op:
    """An operation: `compute` on arrays, `gradient` on Values."""

    def __call__(self, *args: Any) -> Any:
        raise NotImplementedError

    def compute(self, *args: Any) -> Any:
        """The result, of arrays of the personality's kind."""
        raise NotImplementedError

    def gradient(self, out_grad: Any, node: Any) -> Any:
        """The adjoints of the inputs of ``node``, whose adjoint is ``out_grad``."""
        raise NotImplementedError

    def gradient_as_tuple(self, out_grad: Any, node: Any) -> tuple[Any, ...]:
        """`gradient`, always as a tuple."""
        output = self.gradient(out_grad, node)
        return tuple(output) if isinstance(output, tuple | list) else (output,)

    def evaluate(self, node: Value) -> None:
        """Give the new ``node`` its value."""
        data = self.compute(*[x.realize_cached_data() for x in node.inputs])
        several = isinstance(data, tuple | list)
        node._store = tuple(map(wrap, data)) if several else wrap(data)


class TensorOp(Op):
    """An op whose result is a Tensor."""

    def __call__(self, *args: Any) -> Any:
        return Tensor.make_from_op(self, args)


class TensorTupleOp(Op):
    """An op whose result is a TensorTuple."""

    def __call__(self, *args: Any) -> Any:
        return TensorTuple.make_from_op(self, args)


class Value:
    """A node of the graph. A leaf has no op; ``inputs`` are the operands of the op."""

    op: Op | None
    inputs: Sequence[Any]
    num_outputs: int
    requires_grad: bool
    _store: Any  # a Store; a tuple of Stores in a TensorTuple; None if not evaluated
    _args: tuple[Ref, ...] = ()  # the operands of the op when it was applied
    _result: Any = None  # the Ref (in a TensorTuple, the tuple of them) it gave
    _tracked: tuple[Ref, Ref] | None = None  # of a leaf: its value, and where gradients end
    _shown = False  # somebody has seen `cached_data`

    def _init(
        self,
        op: Op | None,
        inputs: Sequence[Any],
        *,
        num_outputs: int = 1,
        cached_data: Any = None,
        requires_grad: bool | None = None,
    ) -> None:
        global TENSOR_COUNTER
        TENSOR_COUNTER += 1
        if requires_grad is None:
            requires_grad = any(x.requires_grad for x in inputs)
        self.op, self.inputs, self.num_outputs = op, inputs, num_outputs
        self.requires_grad = requires_grad
        self._store = None
        if cached_data is not None:
            self.cached_data = cached_data

    def __del__(self) -> None:
        global TENSOR_COUNTER
        TENSOR_COUNTER -= 1

    def is_leaf(self) -> bool:
        return self.op is None

    # ---- data ----------------------------------------------------------------------------------

    @property
    def cached_data(self) -> Any:
        """The array; None while `LAZY_MODE` puts off computing it."""
        if LAZY_MODE and not self._shown and self.op is not None:
            return None
        return self.realize_cached_data()

    @cached_data.setter
    def cached_data(self, data: Any) -> None:
        self._result = self._tracked = None
        self._shown = True
        if data is None:
            self._store = None
        elif isinstance(data, tuple | list):
            self._store = tuple(d if isinstance(d, Store) else wrap(d) for d in data)
        else:
            self._store = data if isinstance(data, Store) else wrap(data)

    def realize_cached_data(self) -> Any:
        """The array, computed now if need be."""
        self._shown = True
        self._evaluated()
        if isinstance(self._store, tuple):
            return tuple(s.read() for s in self._store)
        return self._store.read()

    def _evaluated(self) -> Any:
        if self._store is None:
            assert self.op is not None
            self.op.evaluate(self)
        return self._store

    @classmethod
    def make_const(cls, data: Any, *, requires_grad: bool = False) -> Any:
        """A leaf that shares ``data``, an array of the personality's kind."""
        value = cls.__new__(cls)
        data = data._evaluated() if isinstance(data, Value) else data
        value._init(None, [], cached_data=data, requires_grad=requires_grad)
        return value

    @classmethod
    def make_from_op(cls, op: Op, inputs: Sequence[Any]) -> Any:
        """A node; a leaf of the same value where no gradient is required."""
        value = cls.__new__(cls)
        value._init(op, inputs)
        op.evaluate(value)
        if not LAZY_MODE and not value.requires_grad:
            return value.detach()
        return value

    def detach(self) -> Any:
        """A leaf that shares the value and takes no part in gradients."""
        return type(self).make_const(self)


class TensorTuple(Value):
    """A tuple of Tensors as one node."""

    def __len__(self) -> int:
        return len(self._evaluated())

    def __getitem__(self, index: int) -> Any:
        return needle.ops.tuple_get_item(self, index)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def tuple(self) -> builtins.tuple[Any, ...]:
        return builtins.tuple(iter(self))

    def __repr__(self) -> str:
        return "needle.TensorTuple" + str(self.tuple())

    __str__ = __repr__

    def __add__(self, other: Any) -> Any:
        assert isinstance(other, TensorTuple)
        assert len(self) == len(other)
        return needle.ops.make_tuple(*[a + b for a, b in zip(self, other, strict=True)])


class Tensor(Value):
    """An array with a gradient.

    ``array``: a Tensor (shared where device and dtype stay), an NDArray, or what numpy makes an
    array of. Gradients are required unless ``requires_grad`` says otherwise.
    """

    grad: Any
    _is_parameter = False

    def __init__(
        self,
        array: Any,
        *,
        device: Any = None,
        dtype: Any = None,
        requires_grad: bool = True,
        **kwargs: Any,
    ) -> None:
        if isinstance(array, Tensor):
            device = array.device if device is None else device
            dtype = array.dtype if dtype is None else dtype
            same = device == array.device and numpy.dtype(dtype) == numpy.dtype(array.dtype)
            store = array._evaluated() if same else None
            if store is None:
                (ref,) = deferred.call(
                    ("to", str(dtype)),
                    lambda x: (x.to(numpy.dtype(dtype)) if IS_NUMPY else x,),
                    [array.ref().untracked()],
                )
                store = Store(ref, device)
        else:
            store = store_of(array, device, dtype)
        self._init(None, [], cached_data=store, requires_grad=requires_grad)
        self._shown = False

    # ---- facts ---------------------------------------------------------------------------------

    def ref(self) -> Ref:
        """The value; gradients flow to it where they are required."""
        if self._result is not None:
            return self._result  # type: ignore[no-any-return]
        ref: Ref = self._evaluated().value()
        if not self.requires_grad or not ref.type.dtype.is_float:
            return ref
        if self._tracked is None or self._tracked[0] is not ref:
            # Gradients end at a value that is there.
            self._tracked = (ref, deferred.leaf(stored(ref), tracks=True))
        return self._tracked[1]

    @property
    def __nir_tensor__(self) -> nir.Tensor:
        ref: Ref = self._evaluated().settle()
        return deferred.tensor(ref) if ref.data is None else ref.data

    @__nir_tensor__.setter
    def __nir_tensor__(self, t: nir.Tensor) -> None:
        self._store.ref, self._store.array = deferred.leaf(t), None

    @property
    def shape(self) -> Any:
        return self._evaluated().shape if self._result is None else self._result.type.shape

    @property
    def dtype(self) -> Any:
        return self._evaluated().dtype

    @property
    def device(self) -> Any:
        return self._evaluated().device

    @property
    def data(self) -> Any:
        """The same value without gradients; assigning swaps it, to whatever shape."""
        return self.detach()

    @data.setter
    def data(self, value: Any) -> None:
        assert isinstance(value, Tensor)
        assert value.dtype == self.dtype, f"{value.dtype} {self.dtype}"
        self._result = self._tracked = None
        self._store = value._evaluated()
        if self._store.ref is not None:
            self._store = Store(self._store.ref.untracked(), self._store.device)
            pending.add_update(self._store.ref)

    def detach(self) -> Any:
        """A leaf that shares the value and takes no part in gradients."""
        return Tensor.make_const(self)

    def numpy(self) -> numpy.ndarray:
        """A numpy array of the value, in memory of its own."""
        self._shown = True
        store = self._evaluated()
        out: numpy.ndarray = store.numpy()
        return out

    def backward(self, out_grad: Any = None) -> None:
        """Set ``grad`` of every node that self depends on to d(sum of self * out_grad)/d node."""
        compute_gradient_of_variables(self, ones_like(self) if out_grad is None else out_grad)

    def __repr__(self) -> str:
        return f"needle.Tensor({self.realize_cached_data()})"

    def __str__(self) -> str:
        return str(self.realize_cached_data())

    # ---- operators -----------------------------------------------------------------------------

    def __add__(self, other: Any) -> Any:
        if isinstance(other, Tensor):
            return needle.ops.EWiseAdd()(self, other)
        return needle.ops.AddScalar(other)(self)

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, Tensor):
            return needle.ops.EWiseMul()(self, other)
        return needle.ops.MulScalar(other)(self)

    def __pow__(self, other: Any) -> Any:
        if isinstance(other, Tensor):
            return needle.ops.EWisePow()(self, other)
        return needle.ops.PowerScalar(other)(self)

    def __sub__(self, other: Any) -> Any:
        if isinstance(other, Tensor):
            return needle.ops.EWiseAdd()(self, needle.ops.Negate()(other))
        return needle.ops.AddScalar(-other)(self)

    def __rsub__(self, other: Any) -> Any:
        return needle.ops.AddScalar(other)(needle.ops.Negate()(self))

    def __truediv__(self, other: Any) -> Any:
        if isinstance(other, Tensor):
            return needle.ops.EWiseDiv()(self, other)
        return needle.ops.DivScalar(other)(self)

    def __matmul__(self, other: Any) -> Any:
        return needle.ops.MatMul()(self, other)

    def matmul(self, other: Any) -> Any:
        return needle.ops.MatMul()(self, other)

    def sum(self, axes: Any = None) -> Any:
        return needle.ops.Summation(axes)(self)

    def broadcast_to(self, shape: Any) -> Any:
        return needle.ops.BroadcastTo(shape)(self)

    def reshape(self, shape: Any) -> Any:
        return needle.ops.Reshape(shape)(self)

    def __neg__(self) -> Any:
        return needle.ops.Negate()(self)

    def transpose(self, axes: Any = None) -> Any:
        return needle.ops.Transpose(axes)(self)

    __radd__ = __add__
    __rmul__ = __mul__


def ones_like(t: Tensor) -> Tensor:
    """Ones of the shape, dtype and device of ``t``, as a leaf."""
    (ref,) = deferred.call(("ones",), lambda x: (nir.ones_like(x),), [t.ref().untracked()])
    return Tensor.make_const(Store(ref, t.device))  # type: ignore[no-any-return]


def find_topo_sort(node_list: Sequence[Value]) -> list[Value]:
    """The nodes that ``node_list`` needs, itself included, each after its inputs."""
    order: list[Value] = []
    visited: set[int] = set()
    for node in node_list:
        topo_sort_dfs(node, visited, order)
    return order


def topo_sort_dfs(node: Value, visited: Any, topo_order: list[Value]) -> None:
    """Append what ``node`` needs and ``visited`` does not hold, in post-order."""
    stack: list[tuple[Value, bool]] = [(node, False)]
    while stack:
        current, ready = stack.pop()
        if ready:
            topo_order.append(current)
        elif id(current) not in visited:
            visited.add(id(current))
            stack.append((current, True))
            stack.extend((x, False) for x in reversed(current.inputs))


def sum_node_list(node_list: Sequence[Any]) -> Any:
    """The sum, without a node for an initial 0."""
    return reduce(add, node_list)


def compute_gradient_of_variables(output_tensor: Any, out_grad: Any) -> None:
    """Set ``grad`` of every node behind ``output_tensor``, whose adjoint is ``out_grad``."""
    pending.before_backward()
    order = find_topo_sort([output_tensor])
    # In np, the personality of programs that look into the graph, a gradient is a node with
    # operands, as in Needle; in nd one walk of nir's takes all gradients.
    if IS_NUMPY or not needle.lowering.backward(output_tensor, out_grad, order):
        needle.lowering.walk(output_tensor, out_grad, order)
    pending.after_backward(output_tensor.ref())
