"""Attention beside PyTorch and JAX: softmax(q k^T scale) v, causal or not, and its gradients.

q, k and v are [batch, heads, tokens, features], contiguous; "projection" cases take the tensor of
a joint projection, [batch, tokens, 3 heads features], as nn.MultiheadAttention does, and give
[batch, tokens, heads features]. "decode" is one query against a cache of keys and values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.kernels import Case
from benchmarks.kernels.peers import jax_step, nir_step, numbers, torch_step

TITLE = "Attention: softmax(q k^T scale) v"


def _case(
    group: str, b: int, h: int, t: int, s: int, d: int, causal: bool, backward: bool = False
) -> Case:
    def arrays() -> list[np.ndarray]:
        shapes = [(b, h, t, d), (b, h, s, d), (b, h, s, d)] + ([(b, h, t, d)] if backward else [])
        return [numbers(*shape, seed=i) for i, shape in enumerate(shapes)]

    def with_nir() -> Any:
        forward = _nir(causal)
        return nir_step(_nir_gradients(forward) if backward else forward, arrays())

    def with_torch() -> Any:
        forward = _torch(causal)
        return _torch_gradients(forward, arrays()) if backward else torch_step(forward, arrays())

    def with_jax() -> Any:
        forward = _jax(causal)
        return jax_step(_jax_gradients(forward) if backward else forward, arrays())

    elements = 4.0 * b * h * d * (2 * t + 2 * s)
    return Case(
        f"{b}x{h} heads, {t}{'' if s == t else f' on {s}'} tokens, d {d}"
        + (", causal" if causal else "") + (", forward+backward" if backward else ""),
        group,
        {"nir": with_nir, "torch": with_torch, "jax": with_jax},
        flops=(14.0 if backward else 4.0) * b * h * t * s * d * (0.5 if causal else 1.0),
        bytes=elements * (2 if backward else 1),
        tolerance=1e-3,
    )  # fmt: skip


def _projection(b: int, t: int, h: int, d: int, causal: bool, backward: bool) -> Case:
    def arrays() -> list[np.ndarray]:
        shapes = [(b, t, 3 * h * d)] + ([(b, t, h * d)] if backward else [])
        return [numbers(*shape, seed=i) for i, shape in enumerate(shapes)]

    def apart(attend: Callable[..., Any], swap: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def forward(x: Any) -> Any:
            parts = [x[..., i * h * d : (i + 1) * h * d] for i in range(3)]
            q, k, v = (swap(p.reshape(b, t, h, d)) for p in parts)
            return swap(attend(q, k, v)).reshape(b, t, h * d)

        return forward

    def with_nir() -> Any:
        forward = apart(_nir(causal), lambda x: x.permute(0, 2, 1, 3))
        return nir_step(_nir_gradients(forward) if backward else forward, arrays())

    def with_torch() -> Any:
        forward = apart(_torch(causal), lambda x: x.transpose(1, 2))
        return _torch_gradients(forward, arrays()) if backward else torch_step(forward, arrays())

    def with_jax() -> Any:
        forward = apart(_jax(causal), lambda x: x.swapaxes(1, 2))
        return jax_step(_jax_gradients(forward) if backward else forward, arrays())

    return Case(
        f"{b} x {t} tokens, {h} heads, d {d}"
        + (", causal" if causal else "") + (", forward+backward" if backward else ""),
        "projection",
        {"nir": with_nir, "torch": with_torch, "jax": with_jax},
        flops=(14.0 if backward else 4.0) * b * h * t * t * d * (0.5 if causal else 1.0),
        bytes=4.0 * b * t * h * d * (4 if not backward else 8),
        tolerance=1e-3,
    )  # fmt: skip


def _nir(causal: bool) -> Callable[..., Any]:
    from nir.nn.functional import scaled_dot_product_attention

    return lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=causal)


def _nir_gradients(forward: Callable[..., Any]) -> Callable[..., Any]:
    import nir

    def step(*given: Any) -> Any:
        *inputs, ct = given
        n = tuple(range(len(inputs)))
        return nir.grad(lambda *xs: (forward(*xs) * ct).sum(), argnums=n)(*inputs)

    return step


def _torch(causal: bool) -> Callable[..., Any]:
    from torch.nn.functional import scaled_dot_product_attention

    return lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=causal)


def _torch_gradients(forward: Callable[..., Any], arrays: list[np.ndarray]) -> Callable[[], Any]:
    import torch

    *inputs, ct = (torch.from_numpy(a) for a in arrays)
    for x in inputs:
        x.requires_grad_()
    return lambda: torch.autograd.grad(forward(*inputs), inputs, ct)


def _jax(causal: bool) -> Callable[..., Any]:
    import jax

    def attend(q: Any, k: Any, v: Any) -> Any:
        swapped = (x.swapaxes(1, 2) for x in (q, k, v))
        return jax.nn.dot_product_attention(*swapped, is_causal=causal).swapaxes(1, 2)

    return attend


def _jax_gradients(forward: Callable[..., Any]) -> Callable[..., Any]:
    import jax

    def step(*given: Any) -> Any:
        *inputs, ct = given
        return jax.vjp(forward, *inputs)[1](ct)

    return step


CASES: tuple[Case, ...] = (
    *(
        _case("forward", 1, h, t, t, 64, causal)
        for h, t in ((12, 128), (8, 512), (8, 1024), (4, 2048), (2, 4096))
        for causal in (False, True)
    ),
    *(_case("forward", 1, 8, 512, 512, d, True) for d in (32, 128)),
    *(
        _case("backward", 1, h, t, t, 64, causal, True)
        for h, t in ((12, 128), (8, 512), (8, 1024), (4, 2048), (2, 4096))
        for causal in (False, True)
    ),
    *(_case("backward", 1, 8, 512, 512, d, True, True) for d in (32, 128)),
    # BERT-mini, GPT-2 small, and the training of a GPT of width 256.
    _projection(1, 128, 12, 32, False, False),
    _projection(32, 128, 12, 32, False, False),
    _projection(1, 128, 12, 64, True, False),
    _projection(16, 128, 8, 32, True, False),
    _projection(16, 128, 8, 32, True, True),
    *(_case("decode", 1, 12, 1, s, 64, False) for s in (128, 512, 1024, 4096)),
    *(_case("decode", 8, 12, 1, s, 64, False) for s in (128, 1024)),
)
