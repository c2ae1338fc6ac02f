"""An MLP with residual blocks, for flattened 28x28 images."""

from __future__ import annotations

from nir import nn


def block(dim: int, hidden: int, drop: float) -> nn.Module:
    """relu(x + f(x)), f two linear layers with batch norm around a relu and dropout."""
    inner = nn.Sequential(
        nn.Linear(dim, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Dropout(drop),
        nn.Linear(hidden, dim),
        nn.BatchNorm1d(dim),
    )
    return nn.Sequential(nn.Residual(inner), nn.ReLU())


def mlp_resnet(
    dim: int = 784, hidden: int = 100, blocks: int = 3, classes: int = 10, drop: float = 0.1
) -> nn.Sequential:
    """f32[B,dim] -> f32[B,classes], logits."""
    return nn.Sequential(
        nn.Linear(dim, hidden),
        nn.ReLU(),
        *(block(hidden, hidden // 2, drop) for _ in range(blocks)),
        nn.Linear(hidden, classes),
    )
