"""An MLP with residual blocks on 784 inputs, batch 100."""

from typing import Any

from benchmarks import flops, training, weights
from benchmarks.workloads import Step, Workload

_BATCH, _SHAPE = 100, (784,)


def _batches() -> list[Any]:
    return weights.images(_BATCH, 4, _SHAPE)


# No dropout: peers draw different masks, and the losses are to be compared.


def _nir() -> Step:
    from examples.mlp_resnet import mlp_resnet

    return training.nir_step(mlp_resnet(drop=0.0), _batches())


def _torch_model() -> Any:
    from benchmarks.torch_twins import mlp_resnet

    return mlp_resnet(drop=0.0)


def _jax() -> Step:
    from benchmarks.jax_twins import mlp_resnet, mlp_resnet_shapes

    return training.jax_step(mlp_resnet, mlp_resnet_shapes(), _batches())


_FIRST = flops.linear(_BATCH, 784, 100)
_REST = 6 * flops.linear(_BATCH, 100, 50) + flops.linear(_BATCH, 100, 10)

WORKLOAD = Workload(
    title="MLP-ResNet training step, batch 100: forward, backward, Adam",
    kind="training",
    flops=2 * _FIRST + 3 * _REST,
    parameters=110_860,
    peers={"nir": _nir, **training.torch_peers(_torch_model, _batches), "jax": _jax},
)
