"""GPT-2 small decodes word by word, with the keys and values of all words so far in a cache.

The cache has room for `CAPACITY` words, and the first `PROMPT` places hold random ones. A step
feeds one word behind them; after `CAPACITY` words the next goes to place `PROMPT` again. Words are
drawn beforehand, so that peers agree where two logits are nearly equal.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from typing import Any

import numpy as np

from benchmarks import inference, models, weights
from benchmarks.workloads import Step

CAPACITY, PROMPT = 256, 128
LAYERS, HEADS, WIDTH, WORDS = 12, 12, 768, 50257

Decode = Callable[[np.ndarray, int], np.ndarray]


def caches() -> list[np.ndarray]:
    """A key and a value of each layer, [1, heads, capacity, width / heads]; 0 behind the prompt."""
    rng = np.random.default_rng(2)
    shape = (1, HEADS, CAPACITY, WIDTH // HEADS)
    made = [rng.standard_normal(shape, np.float32) for _ in range(2 * LAYERS)]
    for cache in made:
        cache[:, :, PROMPT:] = 0
    return made


def step_of(make: Callable[[], Decode]) -> Step:
    """A step of ``make()``, on the next word in the next place; its value are the logits."""
    rng = np.random.default_rng(3)
    count = CAPACITY - PROMPT
    turn = cycle(zip(rng.integers(0, WORDS, (count, 1, 1)), range(PROMPT, CAPACITY), strict=True))
    decode = make()
    return lambda: decode(*next(turn))


def nir_decode() -> Decode:
    """One program for a step; the cache is given away and comes back with the new word in it."""
    import nir

    model = inference.nir_model(models.gpt2_small)
    F = nir.nn.functional

    def step(word: Any, at: Any, cache: list[Any]) -> Any:
        new = list(cache)
        seen = nir.arange(CAPACITY) <= at

        def attend(layer: int, q: Any, k: Any, v: Any) -> Any:
            for i, x in ((2 * layer, k), (2 * layer + 1, v)):
                new[i] = cache[i].index_copy(2, at, x)
            mask = seen.reshape(1, CAPACITY)
            keys, values = new[2 * layer : 2 * layer + 2]
            return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)

        return model(word, at, attend), new

    first = [nir.tensor(c) for c in caches()]
    types = [inference.nir_spec(c) for c in caches()]
    compiled = inference.lazily(
        lambda: nir.compile(step, "i64[1,1]", "i64[1]", types, state=[model], donate=["cache"])
    )

    def decode(word: np.ndarray, at: int) -> np.ndarray:
        logits, first[:] = compiled(word, np.array([at]), first)
        return np.from_dlpack(logits)

    return decode


def torch_decode(compiled: bool = False) -> Decode:
    """The cache is written in place; eager code reads as much of it as is filled."""
    import torch

    model = inference.torch_model(models.gpt2_small)
    cache = [torch.from_numpy(c) for c in caches()]
    F = torch.nn.functional
    places = torch.arange(CAPACITY)

    def step(word: Any, at: Any, count: int) -> Any:
        def attend(layer: int, q: Any, k: Any, v: Any) -> Any:
            keys, values = cache[2 * layer : 2 * layer + 2]
            keys.index_copy_(2, at, k)
            values.index_copy_(2, at, v)
            if compiled:  # of a fixed size, or every step would be compiled
                mask = (places <= at).reshape(1, CAPACITY)
                return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
            return F.scaled_dot_product_attention(q, keys[:, :, :count], values[:, :, :count])

        return model(word, at, attend)

    call = torch.compile(step) if compiled else step

    def decode(word: np.ndarray, at: int) -> np.ndarray:
        with torch.inference_mode():
            count = 0 if compiled else at + 1
            out: np.ndarray = call(torch.from_numpy(word), torch.tensor([at]), count).numpy()
        return out

    return decode


def ort_decode() -> Decode:
    """Past keys and values go in, and come out one word longer, as exported models have it."""
    import torch

    model = inference.torch_model(models.gpt2_small)

    class Step(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, word: Any, at: Any, *past: Any) -> Any:
            new: list[Any] = list(past)

            def attend(layer: int, q: Any, k: Any, v: Any) -> Any:
                for i, x in ((2 * layer, k), (2 * layer + 1, v)):
                    new[i] = torch.cat([past[i], x], 2)
                keys, values = new[2 * layer : 2 * layer + 2]
                scores = (q @ keys.transpose(2, 3)) * (q.shape[-1] ** -0.5)
                return scores.softmax(-1) @ values

            return self.model(word, at, attend), *new

    full = caches()
    first = [np.ascontiguousarray(c[:, :, :PROMPT]) for c in full]
    given = (torch.zeros((1, 1), dtype=torch.int64), torch.tensor([PROMPT]))
    names = ["word", "at", *(f"past{i}" for i in range(2 * LAYERS))]
    exported = inference.onnx_model(
        Step().eval(),
        (*given, *map(torch.from_numpy, first)),
        input_names=names,
        output_names=["logits", *(f"new{i}" for i in range(2 * LAYERS))],
        dynamic_axes={f"{n}{i}": {2: n} for n in ("past", "new") for i in range(2 * LAYERS)},
    )
    run = inference.lazily(lambda: inference.ort_session(exported).run)
    state = {"past": first}

    def decode(word: np.ndarray, at: int) -> np.ndarray:
        given = (word, np.array([at]), *(first if at == PROMPT else state["past"]))
        logits, *state["past"] = run(None, dict(zip(names, given, strict=True)))
        return logits  # type: ignore[no-any-return]

    return decode


def jax_decode() -> Decode:
    """The cache is donated, and written by a scatter."""
    import jax
    import jax.numpy as jnp

    from benchmarks import jax_layers

    model = models.gpt2_small(jax_layers)
    made = {k: jnp.asarray(a) for k, a in weights.inference(model.state_dict()).items()}

    def step(word: Any, at: Any, cache: Any) -> Any:
        new = list(cache)
        mask = (jnp.arange(CAPACITY) <= at).reshape(1, CAPACITY)

        def attend(layer: int, q: Any, k: Any, v: Any) -> Any:
            for i, x in ((2 * layer, k), (2 * layer + 1, v)):
                new[i] = jax.lax.dynamic_update_slice(cache[i], x, (0, 0, at[0], 0))
            keys, values = new[2 * layer : 2 * layer + 2]
            return jax_layers.functional.scaled_dot_product_attention(q, keys, values, mask)

        return model(word, at, attend), new

    call = jax.jit(jax_layers.functional_call(model, step), donate_argnums=(3,))
    state = {"cache": [jnp.asarray(c) for c in caches()]}

    def decode(word: np.ndarray, at: int) -> np.ndarray:
        logits, state["cache"] = call(made, word, np.array([at]), state["cache"])
        return np.asarray(logits)

    return decode
