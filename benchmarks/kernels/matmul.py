"""Matrix products: squares, DeepBench, few rows, transposed forms, batches, layers of models.

A name says M x K x N of C[M, N] = A[M, K] B[K, N], in front of it the batch. NT has B stored as
[N, K], TN has A as [K, M]. In the groups "weights" and "epilogue" B is a constant of nir's program,
as weights are when a model is compiled for inference; PyTorch gets it as `linear` does, as [N, K].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.kernels import Case
from benchmarks.kernels.peers import jax_step, nir_step, numbers, numpy_step, torch_step

TITLE = "matmul, f32"

# Work on more than this is bounded by memory as well as by arithmetic.
_CACHES = 48 << 20


def _product(form: str, a: Any, b: Any) -> Any:
    """A @ B, an operand that is stored transposed turned first: views on every peer."""
    a = a.swapaxes(-1, -2) if form[0] == "T" else a
    b = b.swapaxes(-1, -2) if form[1] == "T" else b
    return a @ b


def _bytes(*shapes: tuple[int, ...]) -> float:
    total = 4.0 * sum(int(np.prod(s)) for s in shapes)
    return total if total > _CACHES else 0.0


def _plain(group: str, form: str, m: int, k: int, n: int, batch: int = 0) -> Case:
    lead = (batch,) if batch else ()
    a = (*lead, k, m) if form[0] == "T" else (*lead, m, k)
    b = (*lead, n, k) if form[1] == "T" else (*lead, k, n)

    def arrays() -> list[np.ndarray]:
        return [numbers(*a, seed=1), numbers(*b, seed=2)]

    fn = partial(_product, form)
    return Case(
        f"{form} {f'{batch} x ' if batch else ''}{m} x {k} x {n}",
        group,
        {
            "nir": lambda: nir_step(fn, arrays()),
            "torch": lambda: torch_step(fn, arrays()),
            "numpy": lambda: numpy_step(fn, arrays()),
            "jax": lambda: jax_step(fn, arrays()),
        },
        flops=2.0 * max(batch, 1) * m * k * n,
        bytes=_bytes(a, b, (*lead, m, n)),
    )


def _weights(m: int, k: int, n: int, layer: str = "") -> Case:
    """A linear layer of a compiled model; ``layer`` names what follows the product."""

    def x() -> np.ndarray:
        return numbers(m, k, seed=1)

    def w() -> np.ndarray:
        return numbers(n, k, seed=2) / np.float32(k**0.5)

    def bias() -> np.ndarray:
        return numbers(n, seed=3)

    def residual() -> np.ndarray:
        return numbers(m, n, seed=4)

    def with_nir() -> Any:
        follow = _NIR_LAYERS[layer]
        if not layer:
            return nir_step(lambda x, w: x @ w, [x()], [np.ascontiguousarray(w().T)])
        return nir_step(
            lambda x, r, w, b: follow(x @ w + b, r),
            [x(), residual()],
            [np.ascontiguousarray(w().T), bias()],
        )

    def with_torch() -> Any:
        import torch

        linear, follow = torch.nn.functional.linear, _torch_layers()[layer]
        if not layer:
            return torch_step(linear, [x(), w()])
        return torch_step(
            lambda x, w, b, r: follow(linear(x, w, b), r), [x(), w(), bias(), residual()]
        )

    return Case(
        f"{layer or 'weights'} {m} x {k} x {n}",
        "epilogue" if layer else "weights",
        {"nir": with_nir, "torch": with_torch},
        flops=2.0 * m * k * n,
        bytes=_bytes((m, k), (k, n), (m, n)),
    )


def _gelu(x: Any) -> Any:
    from nir.nn import functional

    return functional.gelu(x)


_NIR_LAYERS: dict[str, Callable[[Any, Any], Any]] = {
    "": lambda y, r: y,
    "bias": lambda y, r: y,
    "bias+relu": lambda y, r: y.relu(),
    "bias+gelu": lambda y, r: _gelu(y),
    "bias+residual": lambda y, r: y + r,
}


def _torch_layers() -> dict[str, Callable[[Any, Any], Any]]:
    import torch

    return {
        "": lambda y, r: y,
        "bias": lambda y, r: y,
        "bias+relu": lambda y, r: torch.relu(y),
        "bias+gelu": lambda y, r: torch.nn.functional.gelu(y),
        "bias+residual": lambda y, r: y + r,
    }


_SQUARES = (64, 96, 128, 192, 256, 384, 500, 512, 768, 1000, 1024, 1536, 2048, 3000, 4096)
_FEW_ROWS = (1, 2, 4, 8, 16, 32, 64)
# DeepBench's (m, n, k) counts columns first: its n is the rows here. What needs less than 500 MB
# and a second.
_DEEPBENCH = (
    (16, 1760, 1760), (32, 1760, 1760), (64, 1760, 1760), (128, 1760, 1760), (7000, 1760, 1760),
    (16, 2048, 2048), (32, 2048, 2048), (64, 2048, 2048), (128, 2048, 2048),
    (16, 2560, 2560), (64, 2560, 2560), (700, 2048, 5124), (700, 2048, 35), (700, 2560, 35),
    (1500, 2560, 5124), (64, 2560, 7680), (128, 2560, 7680), (4, 1024, 3072), (128, 1024, 3072),
    (8457, 1760, 35), (1500, 1024, 3072),
)  # fmt: skip
# A language model of 10,000 words (35 x 16 tokens, width 256) with both gradients of its logits,
# the step of its LSTM and the gradient of that; GPT, d 256, 2048 tokens.
_TRAINING = (
    ("NN", 16, 128, 1024), ("NN", 16, 256, 1024), ("NT", 16, 1024, 256), ("NN", 560, 128, 1024),
    ("TN", 256, 560, 1024), ("NN", 560, 256, 10000), ("NT", 560, 10000, 256),
    ("TN", 256, 560, 10000), ("NN", 2048, 256, 768), ("NT", 2048, 768, 256),
    ("TN", 256, 2048, 768), ("NN", 2048, 256, 1024), ("NT", 2048, 1024, 256),
    ("TN", 256, 2048, 1024), ("NN", 2048, 256, 10000), ("NT", 2048, 10000, 256),
    ("TN", 256, 2048, 10000),
)  # fmt: skip
# BERT-mini and GPT-2 small (M, K, N), the decoding of one token, ResNet-50's 1 x 1 convolutions.
_INFERENCE = (
    (128, 384, 384), (128, 384, 1152), (128, 384, 1536), (128, 1536, 384),
    (4096, 384, 384), (4096, 384, 1152), (4096, 384, 1536), (4096, 1536, 384),
    (128, 768, 768), (128, 768, 2304), (128, 768, 3072), (128, 3072, 768), (128, 768, 50257),
    (1, 768, 2304), (1, 768, 3072), (1, 3072, 768), (1, 768, 50257),
    (3136, 64, 64), (3136, 64, 256), (3136, 256, 64), (784, 512, 128), (784, 128, 512),
    (784, 256, 512), (196, 1024, 256), (196, 256, 1024), (49, 2048, 512), (49, 512, 2048),
    (1, 2048, 1000), (16, 2048, 1000),
)  # fmt: skip
_EPILOGUES = (
    (128, 384, 1536),
    (4096, 384, 1536),
    (2048, 256, 1024),
    (3136, 64, 256),
    (16, 256, 1024),
)

CASES: tuple[Case, ...] = (
    *(_plain("square", "NN", n, n, n) for n in _SQUARES),
    *(_plain("transposed", f, n, n, n) for f in ("NT", "TN") for n in (64, 256, 512, 1000, 2048)),
    *(_plain("skinny", "NN", m, 1024, 1024) for m in _FEW_ROWS),
    *(_plain("skinny", "NT", m, 1024, 1024) for m in _FEW_ROWS),
    *(_plain("skinny", f, m, 4096, 4096) for f in ("NN", "NT") for m in (1, 8, 64)),
    *(_plain("deepbench", f, *s) for s in _DEEPBENCH for f in ("NN", "NT")),
    *(_plain("batched", f, 128, 32, 128, 8) for f in ("NN", "NT", "TN")),
    *(_plain("batched", f, 128, 128, 32, 8) for f in ("NN", "TN")),
    *(_plain("batched", "NT", 128, 64, 128, b) for b in (12, 96)),
    *(_plain("batched", "NN", 128, 128, 64, b) for b in (12, 96)),
    *(_plain("batched", "NN", n, n, n, 64) for n in (16, 32, 64)),
    *(_plain("training", *s) for s in _TRAINING),
    *(_weights(*s) for s in _INFERENCE),
    *(_weights(*s, layer=layer) for s in _EPILOGUES for layer in _NIR_LAYERS if layer),
)  # fmt: skip
