"""Optimisers, gradient clipping and learning-rate schedules, by PyTorch's names.

optimizer = nir.optim.Adam(model.parameters(), lr=5e-4)
optimizer.zero_grad(); loss.backward(); optimizer.step()
"""

from nir.frontend.optim.algorithms import SGD, Adam, AdamW
from nir.frontend.optim.clip import clip_grad_norm_, clip_grad_value_
from nir.frontend.optim.optimizer import Optimizer, ParamGroup
from nir.frontend.optim.schedule import (
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    SequentialLR,
    StepLR,
)

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "CosineAnnealingLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "Optimizer",
    "ParamGroup",
    "SequentialLR",
    "StepLR",
    "clip_grad_norm_",
    "clip_grad_value_",
]
