"""An MLP with residual blocks on 784 inputs, batch 100."""

from benchmarks import training, weights
from benchmarks.workloads import Step, Workload

_BATCH, _SHAPE = 100, (784,)


def _nir() -> Step:
    from examples.mlp_resnet import mlp_resnet

    # No dropout: peers draw different masks, and the losses are to be compared.
    return training.nir_step(mlp_resnet(drop=0.0), weights.images(_BATCH, 4, _SHAPE))


def _torch(compiled: bool = False) -> Step:
    from benchmarks.torch_twins import mlp_resnet

    return training.torch_step(mlp_resnet(drop=0.0), weights.images(_BATCH, 4, _SHAPE), compiled)


WORKLOAD = Workload(
    title="MLP-ResNet training step, batch 100: forward, backward, Adam",
    peers={"nir": _nir, "torch": _torch, "torch_compile": lambda: _torch(compiled=True)},
)
