"""Convolutional networks: ResNet-9 for 32x32 images, ResNet-50 and MobileNetV2 for 224x224."""

from __future__ import annotations

from typing import Any


def resnet9(nn: Any, classes: int = 10) -> Any:
    """The network of examples/resnet9.py."""

    class ConvBN(nn.Module):  # type: ignore[misc]
        def __init__(self, channels: int, out: int, kernel: int, stride: int = 1) -> None:
            super().__init__()
            self.conv = nn.Conv2d(channels, out, kernel, stride=stride, padding=kernel // 2)
            self.bn = nn.BatchNorm2d(out)

        def forward(self, x: Any) -> Any:
            return nn.functional.relu(self.bn(self.conv(x)))

    class ResNet9(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(ConvBN(3, 16, 7, 4), ConvBN(16, 32, 3, 2))
            self.block1 = nn.Sequential(ConvBN(32, 32, 3), ConvBN(32, 32, 3))
            self.down = nn.Sequential(ConvBN(32, 64, 3, 2), ConvBN(64, 128, 3, 2))
            self.block2 = nn.Sequential(ConvBN(128, 128, 3), ConvBN(128, 128, 3))
            self.head = nn.Sequential(
                nn.Flatten(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, classes)
            )

        def forward(self, x: Any) -> Any:
            x = self.stem(x)
            x = self.down(x + self.block1(x))
            return self.head(x + self.block2(x))

    return ResNet9()


def resnet50(nn: Any, classes: int = 1000) -> Any:
    """He et al., 2016, with the stride on the 3x3 convolutions."""

    class Bottleneck(nn.Module):  # type: ignore[misc]
        def __init__(self, channels: int, width: int, stride: int) -> None:
            super().__init__()
            out = 4 * width
            self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.conv3 = nn.Conv2d(width, out, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(out)
            self.downsample = None
            if stride != 1 or channels != out:
                self.downsample = nn.Sequential(
                    nn.Conv2d(channels, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out)
                )

        def forward(self, x: Any) -> Any:
            relu = nn.functional.relu
            y = relu(self.bn1(self.conv1(x)))
            y = relu(self.bn2(self.conv2(y)))
            y = self.bn3(self.conv3(y))
            return relu(y + (x if self.downsample is None else self.downsample(x)))

    def stage(channels: int, width: int, blocks: int, stride: int) -> Any:
        first = Bottleneck(channels, width, stride)
        return nn.Sequential(first, *(Bottleneck(4 * width, width, 1) for _ in range(blocks - 1)))

    class ResNet50(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
            self.bn1 = nn.BatchNorm2d(64)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
            self.layer1 = stage(64, 64, 3, 1)
            self.layer2 = stage(256, 128, 4, 2)
            self.layer3 = stage(512, 256, 6, 2)
            self.layer4 = stage(1024, 512, 3, 2)
            self.fc = nn.Linear(2048, classes)

        def forward(self, x: Any) -> Any:
            x = self.maxpool(nn.functional.relu(self.bn1(self.conv1(x))))
            x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
            return self.fc(x.mean((2, 3)))

    return ResNet50()


# MobileNetV2's stages: expansion, channels, blocks, stride of the first block.
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
           (6, 160, 3, 2), (6, 320, 1, 1))  # fmt: skip


def mobilenet_v2(nn: Any, classes: int = 1000) -> Any:
    """Sandler et al., 2018."""

    def conv(channels: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list:  # type: ignore[type-arg]
        layer = nn.Conv2d(
            channels, out, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False
        )
        return [layer, nn.BatchNorm2d(out)]

    class Inverted(nn.Module):  # type: ignore[misc]
        def __init__(self, channels: int, out: int, stride: int, expansion: int) -> None:
            super().__init__()
            width = channels * expansion
            wide = [] if expansion == 1 else [*conv(channels, width), nn.ReLU6()]
            depthwise = [*conv(width, width, 3, stride, width), nn.ReLU6()]
            self.conv = nn.Sequential(*wide, *depthwise, *conv(width, out))
            self.residual = stride == 1 and channels == out

        def forward(self, x: Any) -> Any:
            return x + self.conv(x) if self.residual else self.conv(x)

    class MobileNetV2(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            layers, channels = [*conv(3, 32, 3, 2), nn.ReLU6()], 32
            for expansion, out, blocks, stride in _STAGES:
                for i in range(blocks):
                    layers.append(Inverted(channels, out, 1 if i else stride, expansion))
                    channels = out
            self.features = nn.Sequential(*layers, *conv(channels, 1280), nn.ReLU6())
            self.classifier = nn.Linear(1280, classes)

        def forward(self, x: Any) -> Any:
            return self.classifier(self.features(x).mean((2, 3)))

    return MobileNetV2()
