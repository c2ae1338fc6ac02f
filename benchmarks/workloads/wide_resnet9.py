"""A wide ResNet-9 (64-128-256-512 channels, 3x3, pooling) on 32x32 images, batch 32."""

from typing import Any

from benchmarks import flops, training, weights
from benchmarks.workloads import Step, Workload

_BATCH, _SHAPE = 32, (3, 32, 32)


def _batches() -> list[Any]:
    return weights.images(_BATCH, 4, _SHAPE)


def _nir() -> Step:
    import nir
    from examples.resnet9 import ConvBN
    from nir import nn

    class WideResNet9(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.prep = ConvBN(3, 64, 3)
            self.layer1 = nn.Sequential(ConvBN(64, 128, 3), nn.MaxPool2d(2))
            self.block1 = nn.Residual(nn.Sequential(ConvBN(128, 128, 3), ConvBN(128, 128, 3)))
            self.layer2 = nn.Sequential(ConvBN(128, 256, 3), nn.MaxPool2d(2))
            self.layer3 = nn.Sequential(ConvBN(256, 512, 3), nn.MaxPool2d(2))
            self.block2 = nn.Residual(nn.Sequential(ConvBN(512, 512, 3), ConvBN(512, 512, 3)))
            self.head = nn.Sequential(nn.MaxPool2d(4), nn.Flatten(), nn.Linear(512, 10))

        def forward(self, x: nir.Tensor) -> nir.Tensor:
            x = self.block1(self.layer1(self.prep(x)))
            x = self.block2(self.layer3(self.layer2(x)))
            return self.head(x)

    return training.nir_step(WideResNet9(), _batches())


def _torch_model() -> Any:
    from benchmarks.torch_twins import WideResNet9

    return WideResNet9()


def _jax() -> Step:
    from benchmarks.jax_twins import wide_resnet9, wide_resnet9_shapes

    return training.jax_step(wide_resnet9, wide_resnet9_shapes(), _batches())


_FIRST = flops.conv(_BATCH, 3, 64, 32, 3)
_REST = (
    flops.conv(_BATCH, 64, 128, 32, 3)
    + 2 * flops.conv(_BATCH, 128, 128, 16, 3)
    + flops.conv(_BATCH, 128, 256, 16, 3)
    + flops.conv(_BATCH, 256, 512, 8, 3)
    + 2 * flops.conv(_BATCH, 512, 512, 4, 3)
    + flops.linear(_BATCH, 512, 10)
)

WORKLOAD = Workload(
    title="Wide ResNet-9 training step, batch 32: forward, backward, Adam",
    kind="training",
    flops=2 * _FIRST + 3 * _REST,
    parameters=6_575_370,
    # Adam's first steps have the length of the rate wherever a gradient's sign is noise: peers
    # that agree to 1e-7 in the first loss differ by up to 4e-3 in the third.
    tolerance=1e-2,
    peers={
        "nir": _nir,
        **training.torch_image_peers(_torch_model, _batches),
        "jax": _jax,
    },
)
