"""ResNet-9 on 32x32 images, batch 128."""

from typing import Any

from benchmarks import flops, needle_face, training, weights
from benchmarks.workloads import Step, Workload

_BATCH, _SHAPE = 128, (3, 32, 32)


def _batches() -> list[Any]:
    return weights.images(_BATCH, 4, _SHAPE)


def _nir() -> Step:
    from examples.resnet9 import ResNet9

    return training.nir_step(ResNet9(), _batches())


def _torch_model() -> Any:
    from benchmarks.torch_twins import ResNet9

    return ResNet9()


def _jax() -> Step:
    from benchmarks.jax_twins import resnet9, resnet9_shapes

    return training.jax_step(resnet9, resnet9_shapes(), _batches())


def _needle() -> Step:
    from examples.resnet9 import ResNet9 as Twin
    from nir.needle.apps.models import ResNet9

    twin, model = Twin(), ResNet9()
    made = weights.make(twin.state_dict())
    needle_face.load(model, {name: made[name] for name, _ in twin.named_parameters()})
    return needle_face.train_step(model, _batches())


_FIRST = flops.conv(_BATCH, 3, 16, 32, 7, 4)
_REST = (
    flops.conv(_BATCH, 16, 32, 8, 3, 2)
    + 2 * flops.conv(_BATCH, 32, 32, 4, 3)
    + flops.conv(_BATCH, 32, 64, 4, 3, 2)
    + flops.conv(_BATCH, 64, 128, 2, 3, 2)
    + 2 * flops.conv(_BATCH, 128, 128, 1, 3)
    + flops.linear(_BATCH, 128, 128)
    + flops.linear(_BATCH, 128, 10)
)

WORKLOAD = Workload(
    title="ResNet-9 training step, batch 128: forward, backward, Adam",
    kind="training",
    flops=2 * _FIRST + 3 * _REST,
    parameters=431_946,
    peers={
        "nir": _nir,
        "needle": _needle,
        **training.torch_image_peers(_torch_model, _batches),
        "jax": _jax,
    },
)
