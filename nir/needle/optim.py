"""Optimisers: a step is recorded and runs, with the loss and its gradients, as one program."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

import nir
from nir.needle import pending
from nir.needle.autograd import Tensor
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


def _running(step: Any) -> Any:
    @functools.wraps(step)
    def run(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        pending.run_updates()
        return result

    return run


def _grads(params: Sequence[Any]) -> list[tuple[Any, nir.Tensor, nir.Tensor]]:
    """(parameter, its value, its gradient) where there is one."""
    given = [(p, getattr(p, "grad", None)) for p in params]
    return [
        (p, v := p.value().detach(), g.value().detach().to(v.dtype))
        for p, g in given
        if g is not None
    ]


def _slot(slots: dict[Any, Any], p: Any) -> nir.Tensor:
    """The state of ``p``, zeros at first."""
    if p not in slots:
        zeros = np.zeros(tuple(p.shape), p.value().dtype.numpy)
        slots[p] = Tensor.make_const(Store(nir.Tensor(zeros), p.device))
    return slots[p].value().detach()  # type: ignore[no-any-return]


def _keep(slots: dict[Any, Any], p: Any, value: nir.Tensor) -> None:
    slots[p] = Tensor.make_const(Store(value, p.device))
    pending.add_update(value)


def _assign(p: Any, value: nir.Tensor) -> None:
    p.data = Tensor.make_const(Store(value, p.device))


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
        m = self.momentum
        for p, value, g in _grads(self.params):
            if self.weight_decay:
                g = g + self.weight_decay * value
            if m:
                g = m * _slot(self.u, p) + (1 - m) * g
                _keep(self.u, p, g)
            _assign(p, value - self.lr * g)

    def clip_grad_norm(self, max_norm: float = 0.25) -> None:
        """Scale all gradients by max_norm / (their joint norm + 1e-6), where that is below 1."""
        found = _grads(self.params)
        if not found:
            return
        total = sum((g * g).sum() for _, _, g in found)
        scale = nir.minimum(max_norm / (nir.sqrt(total) + 1e-6), 1.0)  # type: ignore[arg-type]
        for p, _, g in found:
            p.grad = Tensor.make_const(Store(g * scale, p.device))


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
        c1, c2 = 1 - b1**self.t, 1 - b2**self.t
        for p, value, g in _grads(self.params):
            if self.weight_decay:
                g = g + self.weight_decay * value
            m = b1 * _slot(self.m, p) + (1 - b1) * g
            v = b2 * _slot(self.v, p) + (1 - b2) * (g * g)
            _keep(self.m, p, m)
            _keep(self.v, p, v)
            _assign(p, value - self.lr * (m / c1) / (nir.sqrt(v / c2) + self.eps))
