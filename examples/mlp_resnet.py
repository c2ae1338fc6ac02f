"""An MLP with residual blocks, for flattened 28x28 images."""

from __future__ import annotations

from nir import nn


def block(dim: int, hidden: int, drop: float, norm: type[nn.Module] = nn.BatchNorm1d) -> nn.Module:
    """relu(x + f(x)), f two linear layers with norms around a relu and dropout."""
    inner = nn.Sequential(
        nn.Linear(dim, hidden),
        norm(hidden),
        nn.ReLU(),
        nn.Dropout(drop),
        nn.Linear(hidden, dim),
        norm(dim),
    )
    return nn.Sequential(nn.Residual(inner), nn.ReLU())


def mlp_resnet(
    dim: int = 784,
    hidden: int = 100,
    blocks: int = 3,
    classes: int = 10,
    drop: float = 0.1,
    norm: type[nn.Module] = nn.BatchNorm1d,
) -> nn.Sequential:
    """f32[B,dim] -> f32[B,classes], logits. ``norm``: BatchNorm1d or LayerNorm."""
    return nn.Sequential(
        nn.Linear(dim, hidden),
        nn.ReLU(),
        *(block(hidden, hidden // 2, drop, norm) for _ in range(blocks)),
        nn.Linear(hidden, classes),
    )
