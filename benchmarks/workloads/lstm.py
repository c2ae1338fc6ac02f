"""An LSTM language model: 10,000 words, embedding 128, two layers of 256, 35 x 16 tokens."""

from functools import partial
from typing import Any

import numpy as np

from benchmarks import flops, needle_face, training, weights
from benchmarks.workloads import Step, Workload

_WORDS, _EMBEDDING, _HIDDEN, _LAYERS, _TIME, _BATCH = 10_000, 128, 256, 2, 35, 16


def _batches() -> list[Any]:
    rng = np.random.default_rng(1)
    return [tuple(rng.integers(0, _WORDS, (2, _TIME, _BATCH))) for _ in range(4)]


def _nir() -> Step:
    import nir
    from nir import nn

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(_WORDS, _EMBEDDING)
            self.lstm = nn.LSTM(_EMBEDDING, _HIDDEN, _LAYERS)
            self.linear = nn.Linear(_HIDDEN, _WORDS)

        def forward(self, x: nir.Tensor) -> nir.Tensor:
            out, _ = self.lstm(self.embedding(x))
            return self.linear(out.reshape(-1, _HIDDEN))

    return training.nir_step(Model(), _batches(), (f"i64[{_TIME},{_BATCH}]",) * 2)


def _torch_model() -> Any:
    from benchmarks.torch_twins import LanguageModel

    return LanguageModel(_WORDS, _EMBEDDING, _HIDDEN, _LAYERS)


def _jax() -> Step:
    from benchmarks.jax_twins import lstm, lstm_shapes

    shapes = lstm_shapes(_WORDS, _EMBEDDING, _HIDDEN, _LAYERS)
    return training.jax_step(partial(lstm, layers=_LAYERS), shapes, _batches())


def _needle() -> Step:
    from nir.needle.apps.models import LanguageModel

    model = LanguageModel(_EMBEDDING, _WORDS, _HIDDEN, _LAYERS, "lstm")
    needle_face.load(model, _weights())
    return needle_face.train_step(model, _batches())


def _weights() -> dict[str, np.ndarray]:
    """The weights that the other peers make, in the order of Needle's parameters."""
    shapes: dict[str, Any] = {"embedding.weight": (_WORDS, _EMBEDDING)}
    for k in range(_LAYERS):
        width = _EMBEDDING if k == 0 else _HIDDEN
        for name, shape in {
            "weight_ih": (4 * _HIDDEN, width), "weight_hh": (4 * _HIDDEN, _HIDDEN),
            "bias_ih": (4 * _HIDDEN,), "bias_hh": (4 * _HIDDEN,),
        }.items():  # fmt: skip
            shapes[f"lstm.{name}_l{k}"] = shape
    shapes |= {"linear.weight": (_WORDS, _HIDDEN), "linear.bias": (_WORDS,)}
    made = weights.make({path: np.broadcast_to(0.0, s) for path, s in shapes.items()})
    return {path: made[path] for path in shapes}


_ROWS = _TIME * _BATCH
_GATES = 4 * _HIDDEN

WORKLOAD = Workload(
    title="LSTM language model training step, 35 x 16 tokens: forward, backward, Adam",
    kind="training",
    flops=3
    * (
        flops.linear(_ROWS, _EMBEDDING, _GATES)
        + 3 * flops.linear(_ROWS, _HIDDEN, _GATES)
        + flops.linear(_ROWS, _HIDDEN, _WORDS)
    ),
    parameters=4_771_600,
    peers={
        "nir": _nir,
        "needle": _needle,
        **training.torch_peers(_torch_model, _batches),
        "jax": _jax,
    },
)
