"""A small GPT: 4 layers of width 256, 8 heads, 16 x 128 tokens, 10,000 words."""

from functools import partial
from typing import Any

import numpy as np

from benchmarks import flops, training
from benchmarks.workloads import Step, Workload

_WORDS, _WIDTH, _LAYERS, _HEADS, _TIME, _BATCH = 10_000, 256, 4, 8, 128, 16


def _batches() -> list[Any]:
    rng = np.random.default_rng(1)
    return [tuple(rng.integers(0, _WORDS, (2, _BATCH, _TIME))) for _ in range(4)]


def _nir() -> Step:
    import nir
    from nir import nn
    from nir.nn import functional as F

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(_WIDTH), nn.LayerNorm(_WIDTH)
            self.qkv, self.out = nn.Linear(_WIDTH, 3 * _WIDTH), nn.Linear(_WIDTH, _WIDTH)
            self.up, self.down = nn.Linear(_WIDTH, 4 * _WIDTH), nn.Linear(4 * _WIDTH, _WIDTH)

        def forward(self, x: nir.Tensor) -> nir.Tensor:
            qkv = self.qkv(self.norm1(x)).reshape(_BATCH, _TIME, 3, _HEADS, _WIDTH // _HEADS)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(_BATCH, _TIME, _WIDTH))
            return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(_WORDS, _WIDTH)
            self.positions = nn.LearnedPositionalEmbedding(_TIME, _WIDTH, batch_first=True)
            self.blocks = nn.Sequential(*(Block() for _ in range(_LAYERS)))
            self.norm = nn.LayerNorm(_WIDTH)
            self.head = nn.Linear(_WIDTH, _WORDS, bias=False)

        def forward(self, x: nir.Tensor) -> nir.Tensor:
            x = self.blocks(self.positions(self.tokens(x)))
            return self.head(self.norm(x).reshape(-1, _WIDTH))

    return training.nir_step(GPT(), _batches(), (f"i64[{_BATCH},{_TIME}]",) * 2)


def _torch_model() -> Any:
    from benchmarks.torch_twins import GPT

    return GPT(_WORDS, _TIME, _WIDTH, _LAYERS, _HEADS)


def _jax() -> Step:
    from benchmarks.jax_twins import gpt, gpt_shapes

    forward = partial(gpt, layers=_LAYERS, heads=_HEADS)
    return training.jax_step(forward, gpt_shapes(_WORDS, _TIME, _WIDTH, _LAYERS), _batches())


_ROWS = _BATCH * _TIME
_LAYER = flops.linear(_ROWS, _WIDTH, 12 * _WIDTH) + flops.causal_attention(
    _BATCH, _HEADS, _TIME, _WIDTH // _HEADS
)

WORKLOAD = Workload(
    title="GPT training step, 16 x 128 tokens: forward, backward, Adam",
    kind="training",
    flops=3 * (_LAYERS * _LAYER + flops.linear(_ROWS, _WIDTH, _WORDS)),
    parameters=8_312_320,
    peers={"nir": _nir, **training.torch_peers(_torch_model, _batches), "jax": _jax},
)
