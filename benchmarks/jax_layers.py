"""Layers of PyTorch's names and parameter paths on JAX, as far as `benchmarks.models` needs them.

A module holds its weights; `functional_call` gives a function of the weights, for `jax.jit`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class Module:
    """Attributes that are arrays are weights; those that are modules have paths of their own."""

    def __init__(self) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)  # type: ignore[attr-defined]

    def _slots(self, prefix: str = "") -> dict[str, tuple[Any, str]]:
        found: dict[str, tuple[Any, str]] = {}
        for name, value in vars(self).items():
            if isinstance(value, Module):
                found |= value._slots(f"{prefix}{name}.")
            elif hasattr(value, "shape"):
                found[prefix + name] = (self, name)
        return found

    def state_dict(self) -> dict[str, Any]:
        return {path: getattr(m, name) for path, (m, name) in self._slots().items()}

    def load_state_dict(self, weights: Mapping[str, Any]) -> None:
        for path, (m, name) in self._slots().items():
            setattr(m, name, weights[path])

    def eval(self) -> Module:
        return self


def functional_call(module: Module, call: Callable[..., Any]) -> Callable[..., Any]:
    """``call`` as a function of the weights of ``module`` and its own arguments."""

    def run(weights: Mapping[str, Any], *args: Any) -> Any:
        before = module.state_dict()
        module.load_state_dict(weights)
        try:
            return call(*args)
        finally:
            module.load_state_dict(before)

    return run


class Sequential(Module):
    def __init__(self, *layers: Module) -> None:
        self.__dict__ |= {str(i): layer for i, layer in enumerate(layers)}

    def __iter__(self) -> Any:
        return iter(vars(self).values())

    def forward(self, x: Any) -> Any:
        for layer in self:
            x = layer(x)
        return x


class ModuleList(Sequential):
    def __init__(self, layers: Any) -> None:
        super().__init__(*layers)


class Linear(Module):
    def __init__(self, features: int, out: int) -> None:
        self.weight, self.bias = np.zeros((out, features), "f4"), np.zeros(out, "f4")

    def forward(self, x: Any) -> Any:
        return x @ self.weight.T + self.bias


class Embedding(Module):
    def __init__(self, words: int, d: int) -> None:
        self.weight = np.zeros((words, d), "f4")

    def forward(self, x: Any) -> Any:
        return jnp.take(self.weight, x, axis=0)


class LayerNorm(Module):
    def __init__(self, d: int) -> None:
        self.weight, self.bias = np.ones(d, "f4"), np.zeros(d, "f4")

    def forward(self, x: Any) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        scale = jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + 1e-5)
        return centred * scale * self.weight + self.bias


class Conv2d(Module):
    def __init__(
        self, channels: int, out: int, kernel: int, stride: int = 1, padding: int = 0,
        groups: int = 1, bias: bool = True,
    ) -> None:  # fmt: skip
        self.weight = np.zeros((out, channels // groups, kernel, kernel), "f4")
        self.bias = np.zeros(out, "f4") if bias else None
        self.stride, self.padding, self.groups = stride, padding, groups

    def forward(self, x: Any) -> Any:
        y = jax.lax.conv_general_dilated(
            x, self.weight, (self.stride,) * 2, [(self.padding,) * 2] * 2,
            dimension_numbers=("NCHW", "OIHW", "NCHW"), feature_group_count=self.groups,
        )  # fmt: skip
        return y if self.bias is None else y + self.bias[:, None, None]


class BatchNorm2d(Module):
    def __init__(self, channels: int) -> None:
        self.weight, self.bias = np.ones(channels, "f4"), np.zeros(channels, "f4")
        self.running_mean, self.running_var = np.zeros(channels, "f4"), np.ones(channels, "f4")
        self.num_batches_tracked = np.zeros((), "i8")

    def forward(self, x: Any) -> Any:
        scale = self.weight * jax.lax.rsqrt(self.running_var + 1e-5)
        return x * scale[:, None, None] + (self.bias - self.running_mean * scale)[:, None, None]


class MaxPool2d(Module):
    def __init__(self, kernel: int, stride: int, padding: int = 0) -> None:
        self.sizes = (kernel, stride, padding)

    def forward(self, x: Any) -> Any:
        kernel, stride, padding = self.sizes
        pads = [(0, 0)] * 2 + [(padding, padding)] * 2
        return jax.lax.reduce_window(
            x, -jnp.inf, jax.lax.max, (1, 1, kernel, kernel), (1, 1, stride, stride), pads
        )


class ReLU(Module):
    def forward(self, x: Any) -> Any:
        return jnp.maximum(x, 0)


class ReLU6(Module):
    def forward(self, x: Any) -> Any:
        return jnp.clip(x, 0, 6)


class Flatten(Module):
    def forward(self, x: Any) -> Any:
        return x.reshape(x.shape[0], -1)


def _attention(q: Any, k: Any, v: Any, attn_mask: Any = None, is_causal: bool = False) -> Any:
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
    if is_causal:
        attn_mask = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    if attn_mask is not None:
        scores = jnp.where(attn_mask, scores, -jnp.inf)
    return jax.nn.softmax(scores, -1) @ v


functional = SimpleNamespace(
    relu=lambda x: jnp.maximum(x, 0),
    gelu=lambda x, approximate="none": jax.nn.gelu(x, approximate=approximate == "tanh"),
    linear=lambda x, weight: x @ weight.T,
    scaled_dot_product_attention=_attention,
)
