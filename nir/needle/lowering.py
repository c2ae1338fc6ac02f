"""Ops of the face: what they compute is nir's, and so are their gradients."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import nir
from nir.frontend import autograd as nir_autograd
from nir.frontend import lazy
from nir.needle import pending
from nir.needle.autograd import Tensor, TensorOp, TensorTuple, TensorTupleOp, Value
from nir.needle.backend_selection import default_device
from nir.needle.store import Store, array_of, wrap

_OWN = __name__.rpartition(".")[0]


class NirOp(TensorOp):
    """An op whose result is what `lower` makes of the operands' nir Tensors."""

    def lower(self, *xs: nir.Tensor) -> nir.Tensor:
        raise NotImplementedError

    def compute(self, *arrays: Any) -> Any:
        """`lower` on arrays."""
        stores = [wrap(a) for a in arrays]
        device = stores[0].device if stores else default_device()
        return array_of(self.lower(*[s.value() for s in stores]), device)

    def evaluate(self, node: Value) -> None:
        if type(self).compute is not NirOp.compute:
            super().evaluate(node)  # a subclass computes in its own way
            return
        inputs = node.inputs
        args = tuple([x.value() for x in inputs])
        t = self.lower(*args)
        if any(t._cell is a._cell for a in args):
            t = t.clone()  # a node of its own
        node._args, node._recorded = args, t
        node._store = Store(t, self.device_of(inputs))

    def device_of(self, inputs: Sequence[Any]) -> Any:
        return inputs[0].device if inputs else default_device()

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
        found = self.lower(*[s.value() for s in stores])
        return tuple(array_of(t, stores[0].device) for t in found)

    def evaluate(self, node: Value) -> None:
        if type(self).compute is not NirTupleOp.compute:
            super().evaluate(node)
            return
        node._args = tuple([x.value() for x in node.inputs])
        node._recorded = tuple(self.lower(*node._args))
        node._store = tuple(Store(t, node.inputs[0].device) for t in node._recorded)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        """nir's vector-Jacobian product, each adjoint a node that can be differentiated again."""
        return _pullback_nodes(self, [*out_grad, *node.inputs], len(out_grad), node)


def _pullback_nodes(op: Any, args: list[Any], outputs: int, node: Any) -> tuple[Any, ...]:
    values = tuple(x.value() for x in args)
    grads = pullback(op, values[:outputs], values[outputs:])
    out = []
    for i, g in enumerate(grads):
        value = Tensor.__new__(Tensor)
        value._init(Pullback(op, outputs, i), args)
        value._args, value._recorded = values, g
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


# ---- whole graphs ------------------------------------------------------------------------------


class Gradient(TensorOp):
    """A gradient that `backward` took of a whole graph; inputs are the leaves still alive.

    The leaves are held weakly: a leaf nobody holds cannot be asked for its gradient, and a gradient
    does not keep alive the graph it came from.
    """

    def __init__(self, leaves: Sequence[tuple[weakref.ref[Tensor], nir.Tensor]]) -> None:
        self.leaves = leaves

    def inputs(self) -> tuple[list[Tensor], tuple[nir.Tensor, ...]]:
        alive = [(leaf, t) for ref, t in self.leaves if (leaf := ref()) is not None]
        return [leaf for leaf, _ in alive], tuple(t for _, t in alive)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        _, args = self.inputs()
        found = nir_autograd.gradients(
            node.value()._cell, [a._cell for a in args], out_grad.value()._cell, create_graph=True
        )
        return tuple(
            _leaf(nir.zeros_like(a.detach()) if c is None else nir.Tensor._of(c), node.device)
            for a, c in zip(args, found, strict=True)
        )


class GradientTensor(Tensor):
    """``grad`` of a node; reading it computes the gradients of all parameters together."""

    _family: Sequence[weakref.ref[GradientTensor]] = ()
    _lazy: Any = None  # the gradient as it was recorded

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
        out._lazy, out._family = self._recorded, self._family
        return out

    def _run(self) -> None:
        if self._lazy is not None and self._lazy._cell.is_pending:
            family = [g._lazy for ref in self._family if (g := ref()) is not None]
            pending.run([self._lazy, *family])


def _leaf(t: nir.Tensor, device: Any) -> Tensor:
    out: Tensor = Tensor.make_const(Store(t, device))
    return out


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
        if node.requires_grad and isinstance(node, Tensor) and not node.value().dtype.is_float:
            return False  # Needle differentiates integers too
    root, seed = output.value(), out_grad.value()
    if seed.shape != root.shape or seed.dtype != root.dtype:
        return False
    cells = {id(n): _cells(n) for n in order}
    wanted = list(dict.fromkeys(c for found in cells.values() for c in found if c.dtype.is_float))
    with lazy.enable_grad():
        found = nir_autograd.adjoints(root._cell, wanted, seed._cell)
    leaves = [(weakref.ref(n), n.value()) for n in order if n.op is None and isinstance(n, Tensor)]
    op = Gradient(leaves)
    family: list[weakref.ref[GradientTensor]] = []
    for node in order:
        grads = [found.get(c) for c in cells[id(node)]]
        if isinstance(node, TensorTuple):
            node.grad = _tuple_of(node, grads)  # type: ignore[attr-defined]
        elif grads[0] is not None:
            grad = _gradient(op, nir.Tensor._of(grads[0]), node.device)
            grad._family = family
            node.grad = grad
            if node._is_parameter:
                family.append(weakref.ref(grad))
    output.grad = out_grad
    return True


def _gradient(op: Gradient, t: nir.Tensor, device: Any) -> GradientTensor:
    out: GradientTensor = GradientTensor.__new__(GradientTensor)
    out._init(op, (), requires_grad=True)
    out._recorded, out._lazy, out._store = t, t, Store(t, device)
    return out


def _tuple_of(node: TensorTuple, grads: Sequence[Any]) -> Any:
    stores = [
        Store(nir.zeros_like(t.detach()) if g is None else nir.Tensor._of(g), s.device)
        for t, g, s in zip(node._recorded, grads, node._evaluated(), strict=True)
    ]
    return TensorTuple.make_const(stores)


def _cells(node: Any) -> list[lazy.Cell]:
    if isinstance(node, TensorTuple):
        return [t._cell for t in node._recorded]
    return [node.value()._cell]


def _is_current(node: Any) -> bool:
    """Whether the operands of ``node`` are still what it was recorded on."""
    if node._recorded is None:
        return False
    if isinstance(node.op, Gradient):
        return all(x.value()._cell is a._cell for x, a in zip(*node.op.inputs(), strict=True))
    own: list[lazy.Cell] = []
    for x in node.inputs:
        if isinstance(x, TensorTuple) and x._recorded is None:
            return False
        own += _cells(x)
    return len(own) == len(node._args) and all(
        c is a._cell for c, a in zip(own, node._args, strict=True)
    )
