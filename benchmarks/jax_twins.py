"""The training models in plain JAX: shapes by PyTorch's parameter paths, and a forward function.

Images are NHWC inside, which XLA's convolutions on the CPU want; weights stay as PyTorch has them
and are transposed in the step, at the cost of a copy of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Params = Mapping[str, Any]
Shapes = dict[str, tuple[int, ...]]
_MOMENTUM = 0.1


def _linear_shapes(path: str, inputs: int, outputs: int, bias: bool = True) -> Shapes:
    return {f"{path}.weight": (outputs, inputs)} | ({f"{path}.bias": (outputs,)} if bias else {})


def _linear(p: Params, path: str, x: Any) -> Any:
    return x @ p[f"{path}.weight"].T + p[f"{path}.bias"]


# ---- norms and convolutions --------------------------------------------------------------------


def _norm_shapes(path: str, size: int, running: bool = True) -> Shapes:
    names = ["weight", "bias", *(["running_mean", "running_var"] if running else [])]
    return {f"{path}.{n}": (size,) for n in names}


def _batch_norm(p: Params, new: dict[str, Any], path: str, x: Any) -> Any:
    """By the batch's statistics, over all axes but the last; the running ones go into ``new``."""
    axes = tuple(range(x.ndim - 1))
    mean, var = x.mean(axes), x.var(axes)
    count = x.size // x.shape[-1]
    for name, value in {"running_mean": mean, "running_var": var * count / (count - 1)}.items():
        old = p[f"{path}.{name}"]
        new[f"{path}.{name}"] = old + _MOMENTUM * (lax.stop_gradient(value) - old)
    scale = p[f"{path}.weight"] * lax.rsqrt(var + 1e-5)
    return (x - mean) * scale + p[f"{path}.bias"]


def _conv_shapes(path: str, inputs: int, outputs: int, kernel: int) -> Shapes:
    conv = {f"{path}.conv.weight": (outputs, inputs, kernel, kernel)}
    return conv | {f"{path}.conv.bias": (outputs,)} | _norm_shapes(f"{path}.bn", outputs)


def _conv(p: Params, new: dict[str, Any], path: str, x: Any, stride: int = 1) -> Any:
    w = p[f"{path}.conv.weight"]
    pad = w.shape[2] // 2
    y = lax.conv_general_dilated(
        x, w.transpose(2, 3, 1, 0), (stride, stride), [(pad, pad)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    y = _batch_norm(p, new, f"{path}.bn", y + p[f"{path}.conv.bias"])
    return jax.nn.relu(y)


def _max_pool(x: Any, size: int) -> Any:
    window = (1, size, size, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID")


def _residual(p: Params, new: dict[str, Any], path: str, x: Any) -> Any:
    y = _conv(p, new, f"{path}.fn.0", x)
    return x + _conv(p, new, f"{path}.fn.1", y)


# ---- the models --------------------------------------------------------------------------------


def mlp_resnet_shapes(dim: int = 784, hidden: int = 100, blocks: int = 3) -> Shapes:
    shapes = _linear_shapes("0", dim, hidden)
    for k in range(2, 2 + blocks):
        inner = f"{k}.0.fn"
        shapes |= _linear_shapes(f"{inner}.0", hidden, hidden // 2)
        shapes |= _norm_shapes(f"{inner}.1", hidden // 2)
        shapes |= _linear_shapes(f"{inner}.4", hidden // 2, hidden)
        shapes |= _norm_shapes(f"{inner}.5", hidden)
    return shapes | _linear_shapes(str(2 + blocks), hidden, 10)


def mlp_resnet(p: Params, x: Any, blocks: int = 3) -> Any:
    new: dict[str, Any] = {}
    x = jax.nn.relu(_linear(p, "0", x))
    for k in range(2, 2 + blocks):
        inner = f"{k}.0.fn"
        y = jax.nn.relu(_batch_norm(p, new, f"{inner}.1", _linear(p, f"{inner}.0", x)))
        y = _batch_norm(p, new, f"{inner}.5", _linear(p, f"{inner}.4", y))
        x = jax.nn.relu(x + y)
    return _linear(p, str(2 + blocks), x), new


# (path, inputs, outputs, kernel, stride) of each convolution of ResNet-9.
_RESNET9 = [
    ("stem.0", 3, 16, 7, 4), ("stem.1", 16, 32, 3, 2),
    ("block1.fn.0", 32, 32, 3, 1), ("block1.fn.1", 32, 32, 3, 1),
    ("down.0", 32, 64, 3, 2), ("down.1", 64, 128, 3, 2),
    ("block2.fn.0", 128, 128, 3, 1), ("block2.fn.1", 128, 128, 3, 1),
]  # fmt: skip


def resnet9_shapes() -> Shapes:
    shapes: Shapes = {}
    for path, inputs, outputs, kernel, _ in _RESNET9:
        shapes |= _conv_shapes(path, inputs, outputs, kernel)
    return shapes | _linear_shapes("head.1", 128, 128) | _linear_shapes("head.3", 128, 10)


def resnet9(p: Params, x: Any) -> Any:
    new: dict[str, Any] = {}
    x = x.transpose(0, 2, 3, 1)
    x = _conv(p, new, "stem.1", _conv(p, new, "stem.0", x, 4), 2)
    x = _residual(p, new, "block1", x)
    x = _conv(p, new, "down.1", _conv(p, new, "down.0", x, 2), 2)
    x = _residual(p, new, "block2", x).reshape(x.shape[0], -1)
    return _linear(p, "head.3", jax.nn.relu(_linear(p, "head.1", x))), new


def wide_resnet9_shapes() -> Shapes:
    shapes: Shapes = {}
    for path, inputs, outputs in [
        ("prep", 3, 64), ("layer1.0", 64, 128), ("block1.fn.0", 128, 128),
        ("block1.fn.1", 128, 128), ("layer2.0", 128, 256), ("layer3.0", 256, 512),
        ("block2.fn.0", 512, 512), ("block2.fn.1", 512, 512),
    ]:  # fmt: skip
        shapes |= _conv_shapes(path, inputs, outputs, 3)
    return shapes | _linear_shapes("head.2", 512, 10)


def wide_resnet9(p: Params, x: Any) -> Any:
    new: dict[str, Any] = {}
    x = _conv(p, new, "prep", x.transpose(0, 2, 3, 1))
    x = _max_pool(_conv(p, new, "layer1.0", x), 2)
    x = _residual(p, new, "block1", x)
    x = _max_pool(_conv(p, new, "layer2.0", x), 2)
    x = _max_pool(_conv(p, new, "layer3.0", x), 2)
    x = _residual(p, new, "block2", x).max((1, 2))
    return _linear(p, "head.2", x), new


def lstm_shapes(words: int, embedding: int, hidden: int, layers: int) -> Shapes:
    shapes: Shapes = {"embedding.weight": (words, embedding)}
    for k in range(layers):
        width = embedding if k == 0 else hidden
        shapes |= {
            f"lstm.weight_ih_l{k}": (4 * hidden, width),
            f"lstm.weight_hh_l{k}": (4 * hidden, hidden),
            f"lstm.bias_ih_l{k}": (4 * hidden,),
            f"lstm.bias_hh_l{k}": (4 * hidden,),
        }
    return shapes | _linear_shapes("linear", hidden, words)


def lstm(p: Params, x: Any, layers: int) -> Any:
    """Tokens [T, B] to logits; the products with a layer's input are one, before its loop."""
    x = p["embedding.weight"][x]
    for k in range(layers):
        bias = p[f"lstm.bias_ih_l{k}"] + p[f"lstm.bias_hh_l{k}"]
        shares = x @ p[f"lstm.weight_ih_l{k}"].T + bias
        w = p[f"lstm.weight_hh_l{k}"].T
        zeros = jnp.zeros((x.shape[1], w.shape[0]), x.dtype)

        def cell(state: Any, share: Any, w: Any = w) -> Any:
            h, c = state
            i, f, g, o = jnp.split(share + h @ w, 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        _, x = lax.scan(cell, (zeros, zeros), shares)
    return _linear(p, "linear", x.reshape(-1, x.shape[-1])), {}


def gpt_shapes(words: int, tokens: int, width: int, layers: int) -> Shapes:
    shapes: Shapes = {"tokens.weight": (words, width), "positions.weight": (tokens, width)}
    for k in range(layers):
        at = f"blocks.{k}"
        shapes |= _norm_shapes(f"{at}.norm1", width, running=False)
        shapes |= _norm_shapes(f"{at}.norm2", width, running=False)
        shapes |= _linear_shapes(f"{at}.qkv", width, 3 * width)
        shapes |= _linear_shapes(f"{at}.out", width, width)
        shapes |= _linear_shapes(f"{at}.up", width, 4 * width)
        shapes |= _linear_shapes(f"{at}.down", 4 * width, width)
    shapes |= _norm_shapes("norm", width, running=False)
    return shapes | _linear_shapes("head", width, words, bias=False)


def _layer_norm(p: Params, path: str, x: Any) -> Any:
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) * lax.rsqrt(var + 1e-5) * p[f"{path}.weight"] + p[f"{path}.bias"]


def gpt(p: Params, x: Any, layers: int, heads: int) -> Any:
    """Tokens [B, T] to logits [B T, words]."""
    batch, tokens = x.shape
    seen = jnp.tril(jnp.ones((tokens, tokens), bool))
    x = p["tokens.weight"][x] + p["positions.weight"][:tokens]
    width = x.shape[-1]
    for k in range(layers):
        at = f"blocks.{k}"
        qkv = _linear(p, f"{at}.qkv", _layer_norm(p, f"{at}.norm1", x))
        q, key, v = qkv.reshape(batch, tokens, 3, heads, -1).transpose(2, 0, 3, 1, 4)
        scores = q @ key.swapaxes(-1, -2) / jnp.sqrt(jnp.float32(width // heads))
        attended = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1) @ v
        attended = attended.swapaxes(1, 2).reshape(batch, tokens, width)
        x = x + _linear(p, f"{at}.out", attended)
        hidden = jax.nn.gelu(_linear(p, f"{at}.up", _layer_norm(p, f"{at}.norm2", x)), True)
        x = x + _linear(p, f"{at}.down", hidden)
    x = _layer_norm(p, "norm", x)
    return x.reshape(-1, width) @ p["head.weight"].T, {}
