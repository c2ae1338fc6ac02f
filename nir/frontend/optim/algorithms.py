"""The update rules. Each is a function of one parameter, written over its slots."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from nir.errors import NirError
from nir.frontend.optim.optimizer import Optimizer, ParamGroup
from nir.frontend.tensor import Tensor
from nir.ir.location import caller


class SGD(Optimizer):
    """Stochastic gradient descent with momentum m and weight decay c:

    g += c p;  v = m v + g;  p -= lr v        (nesterov: p -= lr (g + m v))
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        if nesterov and momentum <= 0:
            raise NirError(f"SGD: nesterov needs a positive momentum, got {momentum}", caller())
        super().__init__(
            params, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov
        )

    def slot_names(self, group: ParamGroup) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] else ()

    def update(
        self,
        group: ParamGroup,
        scalars: Sequence[Tensor],
        p: Tensor,
        g: Tensor,
        slots: dict[str, Tensor],
    ) -> Tensor:
        if group["weight_decay"]:
            g = g + group["weight_decay"] * p
        if momentum := group["momentum"]:
            v = slots["momentum_buffer"] = momentum * slots["momentum_buffer"] + g
            g = g + momentum * v if group["nesterov"] else v
        (lr,) = scalars
        return p - lr * g


class Adam(Optimizer):
    """Adam (Kingma and Ba, 2015), with weight decay c coupled into the gradient:

    g += c p;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
    p -= lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps)
    """

    decoupled = False

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        if not all(0 <= b < 1 for b in betas):
            raise NirError(
                f"{type(self).__name__}: expected betas in [0, 1), got {betas}", caller()
            )
        super().__init__(params, lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay)

    def slot_names(self, group: ParamGroup) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def scalars(self, group: ParamGroup) -> tuple[Tensor, ...]:
        """lr, lr / (1 - b1^t) and sqrt(1 - b2^t)."""
        lr, (b1, b2) = group["lr"], group["betas"]
        c1, c2 = (_one_minus_power(b, self.steps.to(lr.dtype)) for b in (b1, b2))
        return lr, lr / c1, c2.sqrt()

    def update(
        self,
        group: ParamGroup,
        scalars: Sequence[Tensor],
        p: Tensor,
        g: Tensor,
        slots: dict[str, Tensor],
    ) -> Tensor:
        lr, correction1, correction2 = scalars
        b1: float
        b2: float
        (b1, b2), decay, eps = group["betas"], float(group["weight_decay"]), float(group["eps"])
        if decay and self.decoupled:
            p = p - (lr * decay) * p
        elif decay:
            g = g + decay * p
        m = slots["exp_avg"] = slots["exp_avg"] + (1 - b1) * (g - slots["exp_avg"])
        v = slots["exp_avg_sq"] = b2 * slots["exp_avg_sq"] + (1 - b2) * (g * g)
        return p - correction1 * (m / (v.sqrt() / correction2 + eps))


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019): p -= lr c p first."""

    decoupled = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)


def _one_minus_power(beta: float, step: Tensor) -> Tensor:
    """1 - beta^step; as -expm1(step log beta) it loses no digits to cancellation in f32."""
    if beta == 0:
        return step * 0 + 1
    return -(step * math.log(beta)).expm1()
