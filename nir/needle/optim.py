"""Optimisers: a step is recorded and runs, with the loss and its gradients, as one program."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

import nir
from nir.needle import deferred, pending
from nir.needle.autograd import Tensor
from nir.needle.deferred import Ref
from nir.needle.store import Store


class Optimizer:
    """Base of optimisers over a list of parameters. What `step` records runs when it returns."""

    def __init__(self, params: Sequence[Any]) -> None:
        self.params = params

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "step" in vars(cls):
            cls.step = _running(cls.step)  # type: ignore[method-assign]

    def step(self) -> None:
        raise NotImplementedError

    def reset_grad(self) -> None:
        """Forget all gradients."""
        for p in self.params:
            p.grad = None

    def clip_grad_norm(self, max_norm: float = 0.25) -> None:
        """Scale all gradients by max_norm / (their joint norm + 1e-6), where that is below 1."""
        found = _grads(self.params)
        rule = functools.partial(_clip, max_norm=max_norm)
        clipped = deferred.call(("clip", max_norm), rule, [g for _, _, g in found])
        for (p, _, _), g in zip(found, clipped, strict=True):
            p.grad = Tensor.make_const(Store(g, p.device))


def _running(step: Any) -> Any:
    @functools.wraps(step)
    def run(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        pending.run_updates()
        return result

    return run


def _grads(params: Sequence[Any]) -> list[tuple[Any, Ref, Ref]]:
    """(parameter, its value, its gradient) where there is one."""
    given = [(p, getattr(p, "grad", None)) for p in params]
    return [(p, p.ref().untracked(), g.ref().untracked()) for p, g in given if g is not None]


def _slot(slots: dict[Any, Any], p: Any) -> Ref:
    """The state of ``p``, zeros at first."""
    if p not in slots:
        zeros = np.zeros(tuple(p.shape), p.ref().type.dtype.numpy)
        slots[p] = Tensor.make_const(Store(deferred.leaf(nir.Tensor(zeros)), p.device))
    return slots[p].ref()  # type: ignore[no-any-return]


def _keep(slots: dict[Any, Any], p: Any, value: Ref) -> None:
    slots[p] = Tensor.make_const(Store(value, p.device))
    pending.add_update(value)


def _assign(p: Any, value: Ref) -> None:
    p.data = Tensor.make_const(Store(value, p.device))


class _Numbers:
    """Numbers that may change from step to step, in the dtypes of the parameters."""

    def __init__(self, *values: float) -> None:
        self.values = values
        self.made: dict[Any, list[Ref]] = {}

    def like(self, p: Ref) -> list[Ref]:
        dtype = p.type.dtype
        if dtype not in self.made:
            arrays = [np.asarray(x, dtype.numpy) for x in self.values]
            self.made[dtype] = [deferred.leaf(nir.Tensor(a)) for a in arrays]
        return self.made[dtype]


class SGD(Optimizer):
    """g = grad + wd p;  u = m u + (1 - m) g;  p -= lr u."""

    def __init__(
        self,
        params: Sequence[Any],
        lr: float = 0.01,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params)
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.u: dict[Any, Any] = {}

    def step(self) -> None:
        m, wd = self.momentum, self.weight_decay
        key, rule = ("sgd", m, wd), functools.partial(_sgd, m=m, wd=wd)
        numbers = _Numbers(self.lr)
        for p, value, g in _grads(self.params):
            slots = [_slot(self.u, p)] if m else []
            new, *u = deferred.call(key, rule, [value, g, *numbers.like(value), *slots])
            if u:
                _keep(self.u, p, u[0])
            _assign(p, new)


def _sgd(
    p: nir.Tensor, g: nir.Tensor, lr: nir.Tensor, *u: nir.Tensor, m: float, wd: float
) -> tuple[nir.Tensor, ...]:
    g = g.to(p.dtype) + wd * p if wd else g.to(p.dtype)
    if not u:
        return (p - lr * g,)
    new = m * u[0] + (1 - m) * g
    return p - lr * new, new


def _clip(*grads: nir.Tensor, max_norm: float) -> tuple[nir.Tensor, ...]:
    if not grads:
        return ()
    squares = [(g * g).sum() for g in grads]
    norm = nir.sqrt(sum(squares[1:], squares[0]))
    scale = nir.minimum(max_norm / (norm + 1e-6), 1.0)
    return tuple(g * scale for g in grads)


class Adam(Optimizer):
    """Adam (Kingma and Ba, 2015) with both moments corrected, the decay coupled into the gradient:

    g = grad + wd p;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
    p -= lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
    """

    def __init__(
        self,
        params: Sequence[Any],
        lr: float = 0.01,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params)
        self.lr, self.beta1, self.beta2, self.eps = lr, beta1, beta2, eps
        self.weight_decay, self.t = weight_decay, 0
        self.m: dict[Any, Any] = {}
        self.v: dict[Any, Any] = {}

    def step(self) -> None:
        self.t += 1
        b1, b2 = self.beta1, self.beta2
        options: dict[str, Any] = {"b1": b1, "b2": b2, "eps": self.eps, "wd": self.weight_decay}
        key, rule = ("adam", *options.values()), functools.partial(_adam, **options)
        numbers = _Numbers(self.lr, 1 - b1**self.t, 1 - b2**self.t)
        for p, value, g in _grads(self.params):
            state = [_slot(self.m, p), _slot(self.v, p)]
            new, m, v = deferred.call(key, rule, [value, g, *state, *numbers.like(value)])
            _keep(self.m, p, m)
            _keep(self.v, p, v)
            _assign(p, new)


def _adam(
    p: nir.Tensor, g: nir.Tensor, m: nir.Tensor, v: nir.Tensor, lr: nir.Tensor, c1: nir.Tensor,
    c2: nir.Tensor, *, b1: float, b2: float, eps: float, wd: float,
) -> tuple[nir.Tensor, ...]:  # fmt: skip
    g = g.to(p.dtype) + wd * p if wd else g.to(p.dtype)
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * (g * g)
    return p - lr * (m / c1) / (nir.sqrt(v / c2) + eps), m, v
