"""Ops of the face: what they compute is nir's, and so are their gradients."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Sequence
from typing import Any

import nir
from nir.frontend import autograd as nir_autograd
from nir.frontend import lazy
from nir.needle import deferred, pending
from nir.needle.autograd import (
    Tensor,
    TensorOp,
    TensorTuple,
    TensorTupleOp,
    Value,
    sum_node_list,
)
from nir.needle.backend_selection import default_device
from nir.needle.deferred import Ref
from nir.needle.store import Store, array_of, wrap

_OWN = __name__.rpartition(".")[0]


def key_of(op: Any) -> Hashable:
    """What ``op`` computes: equal for ops that compute the same. None if that is not known."""
    parts = [type(op)]
    for name, value in vars(op).items():
        parts += (name, _plain(value))
    key = tuple(parts)
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _plain(value: Any) -> Any:
    """``value`` so that it can be hashed; 1, 1.0 and True are not the same."""
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    if isinstance(value, NirOp | NirTupleOp):
        return key_of(value)
    return type(value), value


class NirOp(TensorOp):
    """An op whose result is what `lower` makes of the operands' nir Tensors."""

    def lower(self, *xs: nir.Tensor) -> nir.Tensor:
        raise NotImplementedError

    def compute(self, *arrays: Any) -> Any:
        """`lower` on arrays."""
        stores = [wrap(a) for a in arrays]
        device = stores[0].device if stores else default_device()
        (ref,) = deferred.call(key_of(self), self._lower, [s.value() for s in stores])
        return array_of(ref, device)

    def _lower(self, *xs: nir.Tensor) -> tuple[nir.Tensor, ...]:
        t = self.lower(*xs)
        # A node has a value of its own.
        return (t.clone() if any(t._cell is x._cell for x in xs) else t,)

    def evaluate(self, node: Value) -> None:
        if type(self).compute is not NirOp.compute:
            super().evaluate(node)  # a subclass computes in its own way
            return
        inputs = node.inputs
        node._args = tuple([x.ref() for x in inputs])
        (node._result,) = deferred.call(key_of(self), self._lower, node._args)
        node._store = Store(node._result, inputs[0].device if inputs else default_device())

    def gradient(self, out_grad: Any, node: Any) -> Any:
        """nir's vector-Jacobian product, each adjoint a node that can be differentiated again."""
        return _pullback_nodes(self, [out_grad, *node.inputs], 1, node)


class NirTupleOp(TensorTupleOp):
    """An op whose results are what `lower` makes of the operands' nir Tensors."""

    def lower(self, *xs: nir.Tensor) -> tuple[nir.Tensor, ...]:
        raise NotImplementedError

    def compute(self, *arrays: Any) -> Any:
        """`lower` on arrays."""
        stores = [wrap(a) for a in arrays]
        refs = deferred.call(key_of(self), self.lower, [s.value() for s in stores])
        return tuple(array_of(r, stores[0].device) for r in refs)

    def evaluate(self, node: Value) -> None:
        if type(self).compute is not NirTupleOp.compute:
            super().evaluate(node)
            return
        node._args = tuple([x.ref() for x in node.inputs])
        node._result = tuple(deferred.call(key_of(self), self.lower, node._args))
        node._store = tuple(Store(r, node.inputs[0].device) for r in node._result)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        """nir's vector-Jacobian product, each adjoint a node that can be differentiated again."""
        return _pullback_nodes(self, [*out_grad, *node.inputs], len(out_grad), node)


def _pullback_nodes(op: Any, args: list[Any], outputs: int, node: Any) -> tuple[Any, ...]:
    refs = tuple(x.ref() for x in args)
    grads = deferred.call(
        None if (key := key_of(op)) is None else ("pullback", key, outputs),
        lambda *xs: tuple(pullback(op, xs[:outputs], xs[outputs:])),
        refs,
    )
    out = []
    for i, g in enumerate(grads):
        value = Tensor.__new__(Tensor)
        value._init(Pullback(op, outputs, i), args)
        value._args, value._result = refs, g
        value._store = Store(g, node.inputs[i].device)
        out.append(value if value.requires_grad else value.detach())
    return tuple(out)


def pullback(op: Any, gs: Sequence[nir.Tensor], xs: Sequence[nir.Tensor]) -> list[nir.Tensor]:
    """The adjoints of the operands ``xs`` of ``op``, whose results have the adjoints ``gs``."""
    with lazy.enable_grad():
        variables = [_variable(x if x.dtype.is_float else x.to(nir.float64)) for x in xs]
        made = op.lower(*variables)
        ys = made if isinstance(made, tuple) else (made,)
        wanted = [v._cell for v in variables]
        if len(ys) == 1:
            root, seed = ys[0], gs[0].to(ys[0].dtype).expand(*ys[0].shape)
        else:
            parts = [(y * g.to(y.dtype)).sum() for y, g in zip(ys, gs, strict=True)]
            root = sum(parts[1:], parts[0])
            seed = nir.ones_like(root)
        found = nir_autograd.gradients(root._cell, wanted, seed._cell, create_graph=True)
    return [
        nir.zeros_like(x) if cell is None else nir.Tensor._of(cell)
        for x, cell in zip(xs, found, strict=True)
    ]


def _variable(x: nir.Tensor) -> nir.Tensor:
    # Through an op, so that a derivative of the derivative reaches x.
    return nir.Tensor._of(nir_autograd.passed_on(x._cell, tracks=True))


class Pullback(NirOp):
    """Adjoint number ``index`` of the operands of ``op``.

    Its inputs are the adjoints of the ``outputs`` results of op, and op's operands.
    """

    def __init__(self, op: Any, outputs: int, index: int) -> None:
        self.op, self.outputs, self.index = op, outputs, index

    def lower(self, *xs: nir.Tensor) -> nir.Tensor:
        return pullback(self.op, xs[: self.outputs], xs[self.outputs :])[self.index]


def walk(output: Any, out_grad: Any, order: Sequence[Any]) -> None:
    """Set ``grad`` of all nodes in ``order``, node by node, by the gradients of their ops."""
    adjoints: dict[int, list[Any]] = {id(output): [out_grad]}
    for node in reversed(order):
        contributions = adjoints.pop(id(node), None)
        if contributions is None:
            continue
        node.grad = sum_node_list(contributions)
        if node.op is None:
            continue
        found = node.op.gradient_as_tuple(node.grad, node)
        for x, adjoint in zip(node.inputs, found, strict=False):
            if adjoint is not None:
                adjoints.setdefault(id(x), []).append(adjoint)


# ---- whole graphs ------------------------------------------------------------------------------


class Gradient(TensorOp):
    """A gradient that `backward` took of a whole graph; inputs are the leaves still alive.

    The leaves are held weakly: a leaf nobody holds cannot be asked for its gradient, and a gradient
    does not keep alive the graph it came from.
    """

    def __init__(self, leaves: Sequence[tuple[weakref.ref[Tensor], Ref]]) -> None:
        self.leaves = leaves

    def inputs(self) -> tuple[list[Tensor], tuple[Ref, ...]]:
        alive = [(leaf, r) for held, r in self.leaves if (leaf := held()) is not None]
        return [leaf for leaf, _ in alive], tuple(r for _, r in alive)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        _, refs = self.inputs()
        return tuple(
            Tensor.make_const(Store(g, node.device))
            for g in gradients(node.ref(), out_grad.ref(), refs)
        )


def gradients(root: Ref, seed: Ref, wrt: Sequence[Ref]) -> list[Ref]:
    """d root / d r, times ``seed``, for each of ``wrt``, by one walk of nir's."""
    return deferred.call(("gradient",), _gradients, [root, seed, *wrt], tracks=True)


def _gradients(root: nir.Tensor, seed: nir.Tensor, *wrt: nir.Tensor) -> tuple[nir.Tensor, ...]:
    found = nir_autograd.adjoints(root._cell, [t._cell for t in wrt], seed._cell)
    return tuple(
        nir.Tensor._of(found[t._cell]) if t._cell in found else nir.zeros_like(t.detach())
        for t in wrt
    )


class GradientTensor(Tensor):
    """``grad`` of a node; reading it computes the gradients of all parameters together."""

    _family: Sequence[weakref.ref[GradientTensor]] = ()
    _lazy: Ref | None = None  # the gradient as it was taken

    @property
    def inputs(self) -> Any:
        return self.op.inputs()[0] if isinstance(self.op, Gradient) else self._inputs

    @inputs.setter
    def inputs(self, value: Any) -> None:
        self._inputs = value

    def realize_cached_data(self) -> Any:
        self._run()
        return super().realize_cached_data()

    def numpy(self) -> Any:
        self._run()
        return super().numpy()

    def detach(self) -> Any:
        out: GradientTensor = GradientTensor.__new__(GradientTensor)
        out._init(None, (), cached_data=self._evaluated(), requires_grad=False)
        out._lazy, out._family = self._lazy, self._family
        return out

    def _run(self) -> None:
        if self._lazy is not None and self._lazy.data is None:
            family = [g._lazy for held in self._family if (g := held()) is not None]
            pending.run([self._lazy, *(r for r in family if r is not None)])


_known: dict[type, bool] = {}


def _is_own(op: Any) -> bool:
    """Whether value and gradient of ``op`` are those that the face defines."""
    kind = type(op)
    if kind not in _known:
        methods = (kind.compute, kind.gradient)
        own = all(m.__module__.startswith(_OWN) for m in methods)
        _known[kind] = own and not issubclass(kind, Pullback)
    return _known[kind]


def backward(output: Any, out_grad: Any, order: Sequence[Any]) -> bool:
    """Set ``grad`` of all nodes in ``order`` by one walk of nir's; False if that cannot be.

    It can where all ops are the face's and every operand still has the value it had.
    """
    if not isinstance(output, Tensor) or not output.requires_grad:
        return False
    for node in order:
        if node.op is not None and not (_is_own(node.op) and _is_current(node)):
            return False
        if node.requires_grad and isinstance(node, Tensor) and not node.ref().type.dtype.is_float:
            return False  # Needle differentiates integers too
    root, seed = output.ref(), out_grad.ref()
    if seed.type.shape != root.type.shape or seed.type.dtype != root.type.dtype:
        return False
    refs = {id(n): _refs(n) for n in order}
    wanted = list(dict.fromkeys(r for own in refs.values() for r in own if r.type.dtype.is_float))
    found = dict(zip(wanted, gradients(root, seed, wanted), strict=True))
    leaves = [(weakref.ref(n), n.ref()) for n in order if n.op is None and isinstance(n, Tensor)]
    op = Gradient(leaves)
    family: list[weakref.ref[GradientTensor]] = []
    for node in order:
        grads = [found.get(r) for r in refs[id(node)]]
        if isinstance(node, TensorTuple):
            node.grad = _tuple_of(node, grads)  # type: ignore[attr-defined]
        elif grads[0] is not None:
            grad: GradientTensor = GradientTensor.__new__(GradientTensor)
            grad._init(op, (), requires_grad=True)
            grad._result = grad._lazy = grads[0]
            grad._store, grad._family = Store(grads[0], node.device), family
            node.grad = grad
            if node._is_parameter:
                family.append(weakref.ref(grad))
    output.grad = out_grad
    return True


def _tuple_of(node: TensorTuple, grads: Sequence[Any]) -> Any:
    stores = [Store(g, s.device) for g, s in zip(grads, node._evaluated(), strict=True)]
    return TensorTuple.make_const(stores)


def _refs(node: Any) -> tuple[Ref, ...]:
    return tuple(node._result) if isinstance(node, TensorTuple) else (node.ref(),)


def _is_current(node: Any) -> bool:
    """Whether the operands of ``node`` are still what its op was applied to."""
    if node._result is None:
        return False
    if isinstance(node.op, Gradient):
        return all(x.ref() is r for x, r in zip(*node.op.inputs(), strict=True))
    own: list[Ref] = []
    for x in node.inputs:
        if isinstance(x, TensorTuple) and x._result is None:
            return False
        own += _refs(x)
    return len(own) == len(node._args) and all(r is a for r, a in zip(own, node._args, strict=True))
