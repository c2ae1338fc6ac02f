"""ResNet-9 for 32x32 images: 431,946 parameters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import nir
from nir import nn

# Batch norm divides by the scale of a convolution's weights, so a step of Adam turns small weights
# further. From a fifth of PyTorch's default bound, 10 epochs get further than from all of it.
INIT_SCALE = 0.2


class ConvBN(nn.Module):
    """Convolution, batch norm, relu. ``padding`` keeps the size up to the stride."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride=stride, padding=kernel // 2)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, x: nir.Tensor) -> nir.Tensor:
        return self.bn(self.conv(x)).relu()


class ResNet9(nn.Module):
    """f32[B,3,32,32] -> f32[B,10], logits."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvBN(3, 16, 7, 4), ConvBN(16, 32, 3, 2))
        self.block1 = nn.Residual(nn.Sequential(ConvBN(32, 32, 3), ConvBN(32, 32, 3)))
        self.down = nn.Sequential(ConvBN(32, 64, 3, 2), ConvBN(64, 128, 3, 2))
        self.block2 = nn.Residual(nn.Sequential(ConvBN(128, 128, 3), ConvBN(128, 128, 3)))
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, classes)
        )
        with nir.no_grad():
            for p in self.parameters():
                if p.ndim > 1:
                    p.mul_(INIT_SCALE)

    def forward(self, x: nir.Tensor) -> nir.Tensor:
        x = self.block1(self.stem(x))
        x = self.block2(self.down(x))
        return self.head(x)


class Classifier(nn.Module):
    """u8[B,3,32,32] -> f32[B,10]: pixels, normalised by channel, through ``body``."""

    def __init__(self, body: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.body = body
        # x/255 - mean, over std, as one multiplication and one addition.
        scale = 1 / (255 * np.asarray(std, np.float32))
        shift = -np.asarray(mean, np.float32) / np.asarray(std, np.float32)
        self.register_buffer("scale", nir.tensor(scale.reshape(-1, 1, 1)))
        self.register_buffer("shift", nir.tensor(shift.reshape(-1, 1, 1)))

    def forward(self, x: nir.Tensor) -> nir.Tensor:
        return self.body(x.float() * self.scale + self.shift)
