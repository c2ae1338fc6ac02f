"""Transformers: BERT-mini (6 layers of 384) and GPT-2 small (12 of 768)."""

from __future__ import annotations

import functools
from typing import Any


def bert_mini(
    nn: Any, words: int = 30522, d: int = 384, heads: int = 12, layers: int = 6, length: int = 512
) -> Any:
    """Words [N, T] to features [N, T, d], norms after the blocks (Devlin et al., 2019)."""

    class Layer(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)
            self.out, self.norm1 = nn.Linear(d, d), nn.LayerNorm(d)
            self.up, self.down, self.norm2 = (
                nn.Linear(d, 4 * d),
                nn.Linear(4 * d, d),
                nn.LayerNorm(d),
            )

        def forward(self, x: Any) -> Any:
            n, t = x.shape[0], x.shape[1]
            q, k, v = (
                f(x).reshape(n, t, heads, d // heads).swapaxes(1, 2)
                for f in (self.query, self.key, self.value)
            )
            y = nn.functional.scaled_dot_product_attention(q, k, v)
            x = self.norm1(x + self.out(y.swapaxes(1, 2).reshape(n, t, d)))
            return self.norm2(x + self.down(nn.functional.gelu(self.up(x))))

    class Bert(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(words, d)
            self.positions = nn.Embedding(length, d)
            self.norm = nn.LayerNorm(d)
            self.layers = nn.Sequential(*(Layer() for _ in range(layers)))

        def forward(self, x: Any) -> Any:
            x = self.words(x) + self.positions.weight[: x.shape[1]]
            return self.layers(self.norm(x))

    return Bert()


def gpt2_small(
    nn: Any, words: int = 50257, d: int = 768, heads: int = 12, layers: int = 12, length: int = 1024
) -> Any:
    """Words [N, T] to logits [N, T, words] (Radford et al., 2019).

    ``forward(x)`` is the prefill. With positions ``at`` (i64[T]) and ``attend`` the words stand
    there, and ``attend(layer, q, k, v)`` keeps keys and values of [N, heads, T, d / heads].
    """
    F = nn.functional

    class Block(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.ln_1, self.ln_2 = nn.LayerNorm(d), nn.LayerNorm(d)
            self.attn, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
            self.fc, self.out = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

        def forward(self, x: Any, attend: Any = None) -> Any:
            n, t = x.shape[0], x.shape[1]
            qkv = self.attn(self.ln_1(x))
            q, k, v = (
                qkv[:, :, i * d : (i + 1) * d].reshape(n, t, heads, d // heads).swapaxes(1, 2)
                for i in range(3)
            )
            if attend is None:
                y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            else:
                y = attend(q, k, v)
            x = x + self.proj(y.swapaxes(1, 2).reshape(n, t, d))
            return x + self.out(F.gelu(self.fc(self.ln_2(x)), approximate="tanh"))

    class GPT2(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.wte, self.wpe = nn.Embedding(words, d), nn.Embedding(length, d)
            self.h = nn.ModuleList([Block() for _ in range(layers)])
            self.ln_f = nn.LayerNorm(d)

        def forward(self, x: Any, at: Any = None, attend: Any = None) -> Any:
            x = self.wte(x) + (self.wpe.weight[: x.shape[1]] if at is None else self.wpe(at))
            for i, block in enumerate(self.h):
                x = block(x, attend and functools.partial(attend, i))
            return F.linear(self.ln_f(x), self.wte.weight)

    return GPT2()
