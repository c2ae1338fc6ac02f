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


class WideResNet9(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.prep = ConvBN(3, 64, 3)
        self.layer1 = nn.Sequential(ConvBN(64, 128, 3), nn.MaxPool2d(2))
        self.block1 = Residual(nn.Sequential(ConvBN(128, 128, 3), ConvBN(128, 128, 3)))
        self.layer2 = nn.Sequential(ConvBN(128, 256, 3), nn.MaxPool2d(2))
        self.layer3 = nn.Sequential(ConvBN(256, 512, 3), nn.MaxPool2d(2))
        self.block2 = Residual(nn.Sequential(ConvBN(512, 512, 3), ConvBN(512, 512, 3)))
        self.head = nn.Sequential(nn.MaxPool2d(4), nn.Flatten(), nn.Linear(512, classes))

    def forward(self, x: Any) -> Any:
        x = self.block1(self.layer1(self.prep(x)))
        x = self.block2(self.layer3(self.layer2(x)))
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


class Block(nn.Module):
    """x + attention(norm(x)), and then x + perceptron(norm(x))."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Any) -> Any:
        n, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(n, t, d))
        hidden = nn.functional.gelu(self.up(self.norm2(x)), approximate="tanh")
        return x + self.down(hidden)


class Positions(nn.Module):
    """x + weight[:T]."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(tokens, width))

    def forward(self, x: Any) -> Any:
        return x + self.weight[: x.shape[1]]


class GPT(nn.Module):
    def __init__(self, words: int, tokens: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(words, width)
        self.positions = Positions(tokens, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, words, bias=False)

    def forward(self, x: Any) -> Any:
        x = self.blocks(self.positions(self.tokens(x)))
        return self.head(self.norm(x).reshape(-1, x.shape[-1]))


def load(module: nn.Module, weights: dict[str, Any]) -> nn.Module:
    """``module`` with the numpy arrays ``weights``, by path."""
    module.load_state_dict({path: torch.from_numpy(a.copy()) for path, a in weights.items()})
    return module
