"""`Module`, `Parameter`, and the layers of the course's second homework."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import nir
from nir.frontend.nn import functional as F
from nir.needle import deferred, init, ops, pending
from nir.needle.autograd import Tensor, TensorTuple
from nir.needle.lowering import NirOp, NirTupleOp
from nir.needle.ops.ops_mathematic import together
from nir.needle.store import IS_NUMPY, Store


class Parameter(Tensor):
    """A Tensor that its module counts among its parameters."""

    _is_parameter = True


def _unpack_params(value: object) -> list[Any]:
    match value:
        case Parameter():
            return [value]
        case Module():
            return value.parameters()
        case dict():
            return [p for v in value.values() for p in _unpack_params(v)]
        case list() | tuple():
            return [p for v in value for p in _unpack_params(v)]
        case _:
            return []


def _child_modules(value: object) -> list[Any]:
    match value:
        case Module():
            return [value, *_child_modules(vars(value))]
        case dict():
            return [m for v in value.values() for m in _child_modules(v)]
        case list() | tuple():
            return [m for v in value for m in _child_modules(v)]
        case _:
            return []


class Module:
    """Base of layers: parameters and sub-modules are found among the attributes.

    A module is also a function of nir Tensors, so that `nir.trace`, `nir.compile` and `nir.jit`
    take it.
    """

    training: bool

    def __init__(self) -> None:
        self.training = True

    def parameters(self) -> list[Any]:
        """All Parameters, in the order of the attributes."""
        return _unpack_params(self.__dict__)

    def _children(self) -> list[Any]:
        return _child_modules(self.__dict__)

    def eval(self) -> None:
        """Set ``training`` to False here and below."""
        self._set_training(False)

    def train(self) -> None:
        """Set ``training`` to True here and below."""
        self._set_training(True)

    def _set_training(self, training: bool) -> None:
        for module in (self, *self._children()):
            module.training = training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(x, nir.Tensor) for x in (*args, *kwargs.values())):
            with deferred.at_once():
                given = {k: _wrapped(v) for k, v in kwargs.items()}
                return _unwrapped(self.forward(*map(_wrapped, args), **given))
        if _inside.depth:
            return self.forward(*args, **kwargs)
        _inside.depth = 1
        try:
            result = self.forward(*args, **kwargs)
        finally:
            _inside.depth = 0
        _note_outputs(result)
        return result


class _Inside(threading.local):
    """Whether a module is being called on this thread."""

    depth = 0


_inside = _Inside()


def _note_outputs(x: Any) -> None:
    match x:
        case Tensor():
            if x._result is not None:
                pending.add_result(x._result)
        case tuple() | list():
            for part in x:
                _note_outputs(part)


def _wrapped(x: Any) -> Any:
    if not isinstance(x, nir.Tensor):
        return x
    value = Tensor(x, requires_grad=x.requires_grad)
    value._result = deferred.recorded(x)
    return value


def _unwrapped(x: Any) -> Any:
    match x:
        case Tensor():
            return deferred.tensor(x.ref())
        case TensorTuple():
            return tuple(deferred.tensor(t.ref()) for t in x)
        case tuple() | list():
            return type(x)(map(_unwrapped, x))
        case _:
            return x


class Lowered(NirOp):
    """An op that computes ``fn(*operands, **options)``; a layer in one node.

    ``fn`` is a function of a module: that it is the same function says that it does the same.
    """

    def __init__(self, fn: Callable[..., nir.Tensor], **options: Any) -> None:
        self.fn, self.options = fn, tuple(options.items())

    def lower(self, *xs: nir.Tensor) -> nir.Tensor:
        return self.fn(*xs, **dict(self.options))


class LoweredTuple(NirTupleOp):
    """`Lowered` for functions of several results."""

    def __init__(self, fn: Callable[..., tuple[nir.Tensor, ...]], **options: Any) -> None:
        self.fn, self.options = fn, tuple(options.items())

    def lower(self, *xs: nir.Tensor) -> tuple[nir.Tensor, ...]:
        return self.fn(*xs, **dict(self.options))


class Identity(Module):
    """x."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return args[0]


class Linear(Module):
    """X W + b: (..., in) -> (..., out), with W (in, out) and b (1, out)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = "float32",
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = Parameter(init.kaiming_uniform(in_features, out_features, **kind))
        self.bias = None
        if bias:
            drawn = init.kaiming_uniform(out_features, 1, **kind)
            self.bias = Parameter(ops.transpose(drawn))

    def forward(self, X: Any) -> Any:
        y = ops.matmul(X, self.weight)
        return y if self.bias is None else y + ops.broadcast_to(self.bias, y.shape)


class Flatten(Module):
    """(B, ...) -> (B, product of the rest)."""

    def forward(self, X: Any) -> Any:
        return Lowered(_flatten)(X)


def _flatten(x: nir.Tensor) -> nir.Tensor:
    return x.flatten(1)


class ReLU(Module):
    """max(x, 0)."""

    def forward(self, x: Any) -> Any:
        return ops.relu(x)


class Sequential(Module):
    """One module after the other."""

    def __init__(self, *modules: Module) -> None:
        super().__init__()
        self.modules = modules

    def forward(self, x: Any) -> Any:
        for module in self.modules:
            x = module(x)
        return x

    def __iter__(self) -> Iterator[Module]:
        return iter(self.modules)


class SoftmaxLoss(Module):
    """The mean over the batch of logsumexp(z) - z_y, for logits (B, C) and labels (B,)."""

    def forward(self, logits: Any, y: Any) -> Any:
        return Lowered(_softmax_loss)(logits, y)


def _softmax_loss(logits: nir.Tensor, y: nir.Tensor) -> nir.Tensor:
    mean = F.cross_entropy(logits, y.to(nir.int64))
    return mean if IS_NUMPY else mean.reshape(1)


class BatchNorm1d(Module):
    """Normalises each column of (B, dim), in training by the batch's own statistics.

    The running statistics are (1 - momentum) old + momentum batch, with the biased variance.
    """

    def __init__(
        self,
        dim: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        device: Any = None,
        dtype: Any = "float32",
    ) -> None:
        super().__init__()
        self.dim, self.eps, self.momentum = dim, eps, momentum
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = Parameter(init.ones(dim, **kind))
        self.bias = Parameter(init.zeros(dim, **kind))
        self.running_mean = init.zeros(dim, **kind)
        self.running_var = init.ones(dim, **kind)

    def forward(self, x: Any) -> Any:
        running = (self.running_mean, self.running_var)
        if not self.training:
            return Lowered(_by_running, eps=self.eps)(x, self.weight, self.bias, *running)
        y, *found = LoweredTuple(_by_batch, eps=self.eps)(x, self.weight, self.bias)
        for held, batch in zip(running, found, strict=True):
            refs = [held.ref().untracked(), batch.ref().untracked()]
            key = ("running", self.momentum)
            (new,) = deferred.call(key, functools.partial(_running, m=self.momentum), refs)
            held.cached_data = Store(new, held.device)
            pending.add_result(new)
        return y


def _by_running(
    x: nir.Tensor, w: nir.Tensor, b: nir.Tensor, m: nir.Tensor, v: nir.Tensor, eps: float
) -> nir.Tensor:
    x, w, b, m, v = together(x, w, b, m, v)
    return F.batch_norm(x, m, v, w, b, eps=eps)


def _by_batch(x: nir.Tensor, w: nir.Tensor, b: nir.Tensor, eps: float) -> tuple[nir.Tensor, ...]:
    x, w, b = together(x, w, b)
    return F.batch_norm_stats(x, w, b, eps)


def _running(old: nir.Tensor, batch: nir.Tensor, m: float) -> tuple[nir.Tensor, ...]:
    return (((1 - m) * old + m * batch).to(old.dtype),)


class BatchNorm2d(BatchNorm1d):
    """`BatchNorm1d` of the channels of (N, C, H, W)."""


class LayerNorm1d(Module):
    """Normalises the last axis, of size dim, by its own mean and biased variance."""

    def __init__(
        self, dim: int, eps: float = 1e-5, device: Any = None, dtype: Any = "float32"
    ) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps
        self.weight = Parameter(init.ones(dim, device=device, dtype=dtype))
        self.bias = Parameter(init.zeros(dim, device=device, dtype=dtype))

    def forward(self, x: Any) -> Any:
        return Lowered(_layer_norm, eps=self.eps)(x, self.weight, self.bias)


def _layer_norm(x: nir.Tensor, w: nir.Tensor, b: nir.Tensor, eps: float) -> nir.Tensor:
    x, w, b = together(x, w, b)
    if not IS_NUMPY:
        return F.layer_norm(x, tuple(w.shape), w, b, eps)  # type: ignore[arg-type]
    # Short rows lose most digits to cancellation.
    wide = [t.to(nir.float64) for t in (x, w, b)]
    return F.layer_norm(wide[0], tuple(w.shape), wide[1], wide[2], eps).to(x.dtype)  # type: ignore[arg-type]


class Dropout(Module):
    """In training, x times a mask that is 0 with probability ``p``, divided by 1 - p."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Any) -> Any:
        if not self.training:
            return x
        mask = init.randb(*x.shape, p=1 - self.p, device=x.device, dtype=x.dtype)
        return x * mask / (1 - self.p)


class Residual(Module):
    """fn(x) + x."""

    def __init__(self, fn: Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Any) -> Any:
        return self.fn(x) + x
