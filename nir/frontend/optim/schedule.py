"""Learning-rate schedules: closed formulas of the epoch, written into the optimiser's 0-d tensors.

A schedule runs on the host between steps. Since a compiled step reads the rate from a tensor, no
value that a schedule sets ever causes a new compile.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

from nir.errors import NirError
from nir.frontend.optim.optimizer import Optimizer
from nir.ir.location import caller


class LRScheduler:
    """Base of schedules: subclasses give the rate of epoch ``epoch`` for a base rate.

    Making one sets the rates of epoch 0; `step` goes to the next epoch.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.base_lrs = [group.initial_lr.item() for group in optimizer.param_groups]
        self.last_epoch = 0
        self._write()

    def rate(self, base: float, epoch: int) -> float:
        """The learning rate in epoch ``epoch`` (from 0) where ``base`` is the optimiser's own."""
        raise NotImplementedError(f"{type(self).__name__} must define rate")

    def step(self) -> None:
        """Go to the next epoch."""
        self.last_epoch += 1
        self._write()

    def get_last_lr(self) -> list[float]:
        """The rates now in force, one for each parameter group."""
        return [self.rate(base, self.last_epoch) for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        return {"last_epoch": self.last_epoch, "base_lrs": list(self.base_lrs)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.last_epoch, self.base_lrs = int(state["last_epoch"]), list(state["base_lrs"])
        self._write()

    def _write(self) -> None:
        for group, rate in zip(self.optimizer.param_groups, self.get_last_lr(), strict=True):
            group.set_lr(rate)


class StepLR(LRScheduler):
    """base * gamma^floor(epoch / step_size)."""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        self.step_size, self.gamma = step_size, gamma
        super().__init__(optimizer)

    def rate(self, base: float, epoch: int) -> float:
        return base * float(self.gamma ** (epoch // self.step_size))


class CosineAnnealingLR(LRScheduler):
    """eta_min + (base - eta_min) (1 + cos(pi epoch / T_max)) / 2."""

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> None:
        self.T_max, self.eta_min = T_max, eta_min
        super().__init__(optimizer)

    def rate(self, base: float, epoch: int) -> float:
        cosine = math.cos(math.pi * epoch / self.T_max)
        return self.eta_min + (base - self.eta_min) * (1 + cosine) / 2


class LambdaLR(LRScheduler):
    """base * lr_lambda(epoch)."""

    def __init__(self, optimizer: Optimizer, lr_lambda: Callable[[int], float]) -> None:
        self.lr_lambda = lr_lambda
        super().__init__(optimizer)

    def rate(self, base: float, epoch: int) -> float:
        return base * self.lr_lambda(epoch)


class LinearLR(LRScheduler):
    """Warm-up: base times a factor that goes linearly from start to end over ``total_iters``."""

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
    ) -> None:
        self.start_factor, self.end_factor = start_factor, end_factor
        self.total_iters = total_iters
        super().__init__(optimizer)

    def rate(self, base: float, epoch: int) -> float:
        done = min(epoch, self.total_iters) / self.total_iters
        return base * (self.start_factor + (self.end_factor - self.start_factor) * done)


class SequentialLR(LRScheduler):
    """``schedulers[i]`` from ``milestones[i-1]`` on, counting its epochs from there."""

    def __init__(
        self, optimizer: Optimizer, schedulers: Sequence[LRScheduler], milestones: Sequence[int]
    ) -> None:
        if len(milestones) != len(schedulers) - 1 or list(milestones) != sorted(milestones):
            raise NirError(
                f"SequentialLR: expected {len(schedulers) - 1} ascending milestones, "
                f"got {list(milestones)}",
                caller(),
            )
        self.schedulers, self.milestones = list(schedulers), list(milestones)
        super().__init__(optimizer)

    def rate(self, base: float, epoch: int) -> float:
        i = bisect_right(self.milestones, epoch)
        return self.schedulers[i].rate(base, epoch - (self.milestones[i - 1] if i else 0))
