"""The models of examples/ in PyTorch, with the same parameter paths."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Residual(nn.Module):
    """x + fn(x)."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Any) -> Any:
        return x + self.fn(x)


class ConvBN(nn.Module):
    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride=stride, padding=kernel // 2)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, x: Any) -> Any:
        return self.bn(self.conv(x)).relu()


class ResNet9(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvBN(3, 16, 7, 4), ConvBN(16, 32, 3, 2))
        self.block1 = Residual(nn.Sequential(ConvBN(32, 32, 3), ConvBN(32, 32, 3)))
        self.down = nn.Sequential(ConvBN(32, 64, 3, 2), ConvBN(64, 128, 3, 2))
        self.block2 = Residual(nn.Sequential(ConvBN(128, 128, 3), ConvBN(128, 128, 3)))
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, classes)
        )

    def forward(self, x: Any) -> Any:
        x = self.block1(self.stem(x))
        x = self.block2(self.down(x))
        return self.head(x)


def mlp_resnet(
    dim: int = 784, hidden: int = 100, blocks: int = 3, classes: int = 10, drop: float = 0.1
) -> nn.Sequential:
    def block(dim: int, hidden: int) -> nn.Module:
        inner = nn.Sequential(
            nn.Linear(dim, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Dropout(drop),
            nn.Linear(hidden, dim),
            nn.BatchNorm1d(dim),
        )
        return nn.Sequential(Residual(inner), nn.ReLU())

    return nn.Sequential(
        nn.Linear(dim, hidden),
        nn.ReLU(),
        *(block(hidden, hidden // 2) for _ in range(blocks)),
        nn.Linear(hidden, classes),
    )


class LanguageModel(nn.Module):
    def __init__(self, words: int, embedding: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, embedding)
        self.lstm = nn.LSTM(embedding, hidden, layers)
        self.linear = nn.Linear(hidden, words)

    def forward(self, x: Any) -> Any:
        out, _ = self.lstm(self.embedding(x))
        return self.linear(out.reshape(-1, out.shape[-1]))


def load(module: nn.Module, weights: dict[str, Any]) -> nn.Module:
    """``module`` with the numpy arrays ``weights``, by path."""
    module.load_state_dict({path: torch.from_numpy(a.copy()) for path, a in weights.items()})
    return module
