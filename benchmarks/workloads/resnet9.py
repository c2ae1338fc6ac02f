"""ResNet-9 on 32x32 images, batch 128."""

from benchmarks import needle_face, training, weights
from benchmarks.workloads import Step, Workload

_BATCH, _SHAPE = 128, (3, 32, 32)


def _nir() -> Step:
    from examples.resnet9 import ResNet9

    return training.nir_step(ResNet9(), weights.images(_BATCH, 4, _SHAPE))


def _torch(compiled: bool = False) -> Step:
    from benchmarks.torch_twins import ResNet9

    return training.torch_step(ResNet9(), weights.images(_BATCH, 4, _SHAPE), compiled)


def _needle() -> Step:
    from examples.resnet9 import ResNet9 as Twin
    from nir.needle.apps.models import ResNet9

    twin, model = Twin(), ResNet9()
    made = weights.make(twin.state_dict())
    needle_face.load(model, {name: made[name] for name, _ in twin.named_parameters()})
    return needle_face.train_step(model, weights.images(_BATCH, 4, _SHAPE))


WORKLOAD = Workload(
    title="ResNet-9 training step, batch 128: forward, backward, Adam",
    peers={
        "nir": _nir,
        "needle": _needle,
        "torch": _torch,
        "torch_compile": lambda: _torch(compiled=True),
    },
)
