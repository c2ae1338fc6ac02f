"""Transformer layers by PyTorch's names, and embeddings of positions."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from nir.errors import NirError, ShapeError
from nir.frontend import init
from nir.frontend.functional import arange, zeros
from nir.frontend.nn import functional as F
from nir.frontend.nn.attention import MultiheadAttention
from nir.frontend.nn.layers import Dropout, Linear
from nir.frontend.nn.module import Module, ModuleList, Parameter
from nir.frontend.nn.norm import LayerNorm
from nir.frontend.tensor import Tensor
from nir.ir.location import caller

Activation: TypeAlias = "str | Callable[[Tensor], Tensor]"
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


def _activation(given: Activation) -> Callable[[Tensor], Tensor]:
    if not isinstance(given, str):
        return given
    if given not in _ACTIVATIONS:
        raise NirError(f"expected activation 'relu', 'gelu' or a function, got {given!r}", caller())
    return _ACTIVATIONS[given]


class _Layer(Module):
    """What both layers share: the perceptron, and x + block(norm(x)), or norm(x + block(x))."""

    norm_first: bool
    activation: Callable[[Tensor], Tensor]
    linear1: Linear
    linear2: Linear
    dropout: Dropout

    def _around(self, x: Tensor, norm: Module, block: Callable[[Tensor], Tensor]) -> Tensor:
        out: Tensor = x + block(norm(x)) if self.norm_first else norm(x + block(x))
        return out

    def _feed(self, x: Tensor) -> Tensor:
        hidden = self.dropout(self.activation(self.linear1(x)))
        return self.linear2(hidden)  # type: ignore[no-any-return]


class TransformerEncoderLayer(_Layer):
    """Self-attention and a two-layer perceptron, each with dropout, a residual and a norm.

    src [T, N, d_model], batch first if ``batch_first``. ``norm_first`` norms what goes into each
    block in the place of what comes out.
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = "relu",
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        dtype: object = "f32",
    ) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(
            d_model, nhead, dropout, bias, batch_first=batch_first, dtype=dtype
        )
        self.linear1 = Linear(d_model, dim_feedforward, bias, dtype=dtype)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(dim_feedforward, d_model, bias, dtype=dtype)
        self.norm_first = norm_first
        self.norm1 = LayerNorm(d_model, layer_norm_eps, bias=bias, dtype=dtype)
        self.norm2 = LayerNorm(d_model, layer_norm_eps, bias=bias, dtype=dtype)
        self.dropout1, self.dropout2 = Dropout(dropout), Dropout(dropout)
        self.activation = _activation(activation)

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Masks as in `MultiheadAttention`; ``is_causal`` alone lets token t see 0 .. t."""

        def attend(x: Tensor) -> Tensor:
            y, _ = self.self_attn(
                x, x, x, src_key_padding_mask, False, src_mask, is_causal=is_causal
            )
            return self.dropout1(y)  # type: ignore[no-any-return]

        def feed(x: Tensor) -> Tensor:
            return self.dropout2(self._feed(x))  # type: ignore[no-any-return]

        return self._around(self._around(src, self.norm1, attend), self.norm2, feed)


class TransformerDecoderLayer(_Layer):
    """Self-attention, attention to ``memory`` and a perceptron, each with a residual and a norm.

    tgt [T, N, d_model], memory [S, N, d_model], batch first if ``batch_first``.
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = "relu",
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        dtype: object = "f32",
    ) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(
            d_model, nhead, dropout, bias, batch_first=batch_first, dtype=dtype
        )
        self.multihead_attn = MultiheadAttention(
            d_model, nhead, dropout, bias, batch_first=batch_first, dtype=dtype
        )
        self.linear1 = Linear(d_model, dim_feedforward, bias, dtype=dtype)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(dim_feedforward, d_model, bias, dtype=dtype)
        self.norm_first = norm_first
        self.norm1 = LayerNorm(d_model, layer_norm_eps, bias=bias, dtype=dtype)
        self.norm2 = LayerNorm(d_model, layer_norm_eps, bias=bias, dtype=dtype)
        self.norm3 = LayerNorm(d_model, layer_norm_eps, bias=bias, dtype=dtype)
        self.dropout1, self.dropout2 = Dropout(dropout), Dropout(dropout)
        self.dropout3 = Dropout(dropout)
        self.activation = _activation(activation)

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """Masks as in `MultiheadAttention`; ``tgt_is_causal`` alone lets token t see 0 .. t."""

        def attend(x: Tensor) -> Tensor:
            y, _ = self.self_attn(
                x, x, x, tgt_key_padding_mask, False, tgt_mask, is_causal=tgt_is_causal
            )
            return self.dropout1(y)  # type: ignore[no-any-return]

        def look(x: Tensor) -> Tensor:
            y, _ = self.multihead_attn(
                x, memory, memory, memory_key_padding_mask, False, memory_mask,
                is_causal=memory_is_causal,
            )  # fmt: skip
            return self.dropout2(y)  # type: ignore[no-any-return]

        def feed(x: Tensor) -> Tensor:
            return self.dropout3(self._feed(x))  # type: ignore[no-any-return]

        x = self._around(tgt, self.norm1, attend)
        return self._around(self._around(x, self.norm2, look), self.norm3, feed)


class TransformerEncoder(Module):
    """``num_layers`` copies of a layer, and a norm at the end if given one.

    The copies start from equal weights, as in PyTorch.
    """

    def __init__(
        self, encoder_layer: TransformerEncoderLayer, num_layers: int, norm: Module | None = None
    ) -> None:
        super().__init__()
        self.layers = ModuleList(copy.deepcopy(encoder_layer) for _ in range(num_layers))
        self.num_layers, self.norm = num_layers, norm

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        x = src
        for layer in self.layers:
            x = layer(x, mask, src_key_padding_mask, is_causal)
        return x if self.norm is None else self.norm(x)


class TransformerDecoder(Module):
    """``num_layers`` copies of a layer, and a norm at the end if given one.

    The copies start from equal weights, as in PyTorch.
    """

    def __init__(
        self, decoder_layer: TransformerDecoderLayer, num_layers: int, norm: Module | None = None
    ) -> None:
        super().__init__()
        self.layers = ModuleList(copy.deepcopy(decoder_layer) for _ in range(num_layers))
        self.num_layers, self.norm = num_layers, norm

    def forward(self, tgt: Tensor, memory: Tensor, *masks: Any, **named_masks: Any) -> Tensor:
        """Masks as `TransformerDecoderLayer.forward` takes them."""
        x = tgt
        for layer in self.layers:
            x = layer(x, memory, *masks, **named_masks)
        return x if self.norm is None else self.norm(x)


class _Positions(Module):
    """Adds a row of a table to each token of [T, N, D], or [N, T, D] if ``batch_first``."""

    def __init__(self, max_length: int, dim: int, dropout: float, batch_first: bool) -> None:
        super().__init__()
        self.max_length, self.dim, self.batch_first = max_length, dim, batch_first
        self.dropout = Dropout(dropout)

    def add(self, x: Tensor, table: Tensor) -> Tensor:
        axis = 1 if self.batch_first else 0
        length = x.shape[axis] if x.ndim == 3 else 0
        if x.ndim != 3 or x.shape[2] != self.dim or (
            isinstance(length, int) and length > self.max_length
        ):  # fmt: skip
            order = "[N, T, D]" if self.batch_first else "[T, N, D]"
            raise ShapeError(
                f"{type(self).__name__}: expected {order} with T <= {self.max_length} and "
                f"D = {self.dim}, got {x.type}",
                caller(),
            )
        # A length that only the run knows is checked there, by the gather.
        if isinstance(length, int):
            rows = table.narrow(0, 0, length)
        else:
            rows = F.embedding(arange(length), table)
        return self.dropout(x + rows.unsqueeze(1 - axis))  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return f"{self.max_length}, {self.dim}, batch_first={self.batch_first}"


class LearnedPositionalEmbedding(_Positions):
    """x + weight[:T]: a trained row for each of the first ``max_length`` positions."""

    def __init__(
        self,
        max_length: int,
        dim: int,
        dropout: float = 0.0,
        batch_first: bool = False,
        dtype: object = "f32",
    ) -> None:
        super().__init__(max_length, dim, dropout, batch_first)
        self.weight = Parameter(zeros(max_length, dim, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw anew from N(0, 0.02^2)."""
        init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.add(x, self.weight)


class SinusoidalPositionalEmbedding(_Positions):
    """x + table[:T] (Vaswani et al., 2017): sin and cos of position / 10000^(2i/D).

    Feature 2i holds the sine and feature 2i + 1 the cosine. Nothing is trained or saved.
    """

    table: Tensor

    def __init__(
        self,
        max_length: int,
        dim: int,
        dropout: float = 0.0,
        batch_first: bool = False,
        dtype: object = "f32",
    ) -> None:
        super().__init__(max_length, dim, dropout, batch_first)
        angle = np.arange(max_length)[:, None] / 10000 ** (np.arange(0, dim, 2) / dim)
        values = np.empty((max_length, dim))
        values[:, 0::2], values[:, 1::2] = np.sin(angle), np.cos(angle)[:, : dim // 2]
        self.register_buffer("table", Tensor(values, dtype=dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.add(x, self.table)
