"""Attention and the transformer of the course's extra homework."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import nir
from nir.needle import init, ops
from nir.needle.autograd import Tensor
from nir.needle.backend_selection import array_api
from nir.needle.nn.nn_basic import (
    Dropout,
    LayerNorm1d,
    Linear,
    Lowered,
    Module,
    ReLU,
    Residual,
    Sequential,
)
from nir.needle.nn.nn_sequence import Embedding
from nir.needle.store import IS_NUMPY


class MultiHeadAttention(Module):
    """softmax(Q K^T / sqrt(D) + mask) V for Q, K, V of shape (B, H, T, D)."""

    def __init__(
        self,
        *,
        dropout: float = 0.0,
        causal: bool = False,
        device: Any = None,
        dtype: Any = "float32",
    ) -> None:
        super().__init__()
        self.device, self.dtype, self.causal = device, dtype, causal
        self.dropout = Dropout(dropout)

    def create_causal_mask(self, i: int, j: int, device: Any) -> Any:
        """An array (1, 1, i, j): the least float32 above the diagonal, else 0."""
        mask = _causal_mask(i, j)
        return mask if IS_NUMPY else array_api.array(mask, device=device)

    def matmul(self, a: Any, b_transpose: Any) -> Any:
        """a b for batches of matrices, b given as its transpose."""
        return ops.matmul(a, ops.transpose(b_transpose))

    def softmax(self, logit: Any) -> Any:
        """exp(logit) over its sum along the last axis; it does not overflow."""
        return Lowered(_softmax)(logit)

    def forward(self, q: Any, k: Any, v: Any) -> Any:
        """(result, probabilities after dropout)."""
        queries, keys, dim = q.shape[2], k.shape[2], q.shape[3]
        assert dim == k.shape[3] == v.shape[3]
        logits = self.matmul(q, k) / math.sqrt(dim)
        if self.causal:
            mask = Tensor(_causal_mask(queries, keys), device=q.device, requires_grad=False)
            logits = logits + ops.broadcast_to(mask, logits.shape)
        probs = self.dropout(self.softmax(logits))
        return ops.matmul(probs, v), probs


def _softmax(x: nir.Tensor) -> nir.Tensor:
    return x.softmax(-1)


def _causal_mask(i: int, j: int) -> np.ndarray:
    ones = np.ones((1, 1, i, j), dtype=np.float32)
    return np.asarray(-np.finfo(np.float32).max * np.triu(ones, j - i + 1), np.float32)


class AttentionLayer(Module):
    """Normalised and projected queries, keys and values, attention, and a projection back."""

    def __init__(
        self,
        q_features: int,
        num_head: int,
        dim_head: int,
        *,
        k_features: int | None = None,
        v_features: int | None = None,
        out_features: int | None = None,
        dropout: float = 0.0,
        causal: bool = True,
        device: Any = None,
        dtype: Any = "float32",
    ) -> None:
        super().__init__()
        self.device, self.dtype = device, dtype
        self.q_features = q_features
        self.k_features = q_features if k_features is None else k_features
        self.v_features = q_features if v_features is None else v_features
        self.out_features = q_features if out_features is None else out_features
        self.num_head, self.dim_head = num_head, dim_head
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        self.prenorm_q = LayerNorm1d(self.q_features, **kind)
        self.prenorm_k = LayerNorm1d(self.k_features, **kind)
        self.prenorm_v = LayerNorm1d(self.v_features, **kind)
        inner = num_head * dim_head
        self.q_projection = Linear(self.q_features, inner, bias=False, **kind)
        self.k_projection = Linear(self.k_features, inner, bias=False, **kind)
        self.v_projection = Linear(self.v_features, inner, bias=False, **kind)
        self.attn = MultiHeadAttention(dropout=dropout, causal=causal, **kind)
        self.out_projection = Linear(inner, self.out_features, bias=False, **kind)

    def _heads(self, x: Any, norm: Any, projection: Any) -> Any:
        """(B, T, features) -> (B, H, T, D)."""
        batch, length, _ = x.shape
        y = projection(norm(x)).reshape((batch, length, self.num_head, self.dim_head))
        return ops.transpose(y, axes=(1, 2))

    def forward(self, q: Any, k: Any = None, v: Any = None) -> Any:
        """(B, T, out_features); keys and values are the queries where they are not given."""
        k = q if k is None else k
        v = q if v is None else v
        result, _ = self.attn(
            self._heads(q, self.prenorm_q, self.q_projection),
            self._heads(k, self.prenorm_k, self.k_projection),
            self._heads(v, self.prenorm_v, self.v_projection),
        )
        batch, length, _ = q.shape
        result = ops.transpose(result, axes=(1, 2))
        return self.out_projection(result.reshape((batch, length, self.num_head * self.dim_head)))


class TransformerLayer(Module):
    """x += drop(attention(x)); x += drop(linear(drop(relu(linear(norm(x))))))."""

    def __init__(
        self,
        q_features: int,
        num_head: int,
        dim_head: int,
        hidden_size: int,
        *,
        dropout: float = 0.0,
        causal: bool = True,
        device: Any = None,
        dtype: Any = "float32",
    ) -> None:
        super().__init__()
        self.device, self.dtype = device, dtype
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        self.attention = AttentionLayer(
            q_features, num_head, dim_head, dropout=dropout, causal=causal, **kind
        )
        self.dropout = Dropout(dropout)
        self.feed_forward = Residual(
            Sequential(
                LayerNorm1d(q_features, **kind),
                Linear(q_features, hidden_size, **kind),
                ReLU(),
                Dropout(dropout),
                Linear(hidden_size, q_features, **kind),
                Dropout(dropout),
            )
        )

    def forward(self, x: Any) -> Any:
        return self.feed_forward(x + self.dropout(self.attention(x)))


class Transformer(Module):
    """`TransformerLayer`s over inputs with learned positions; (T, B, E) unless ``batch_first``."""

    def __init__(
        self,
        embedding_size: int,
        hidden_size: int,
        num_layers: int,
        *,
        num_head: int = 8,
        dim_head: int = 32,
        dropout: float = 0.0,
        causal: bool = True,
        device: Any = None,
        dtype: Any = "float32",
        batch_first: bool = False,
        sequence_len: int = 2048,
    ) -> None:
        super().__init__()
        self.device, self.dtype, self.batch_first = device, dtype, batch_first
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        self.embedding = Embedding(sequence_len, embedding_size, **kind)
        self.layers = Sequential(
            *[
                TransformerLayer(
                    embedding_size, num_head, dim_head, hidden_size,
                    dropout=dropout, causal=causal, **kind,
                )
                for _ in range(num_layers)
            ]
        )  # fmt: skip

    def forward(self, x: Any, h: Any = None) -> Any:
        """(y, zeros of its shape)."""
        if not self.batch_first:
            x = ops.transpose(x, axes=(0, 1))
        length = x.shape[1]
        positions = self.embedding(Tensor(np.arange(length), device=x.device, requires_grad=False))
        x = self.layers(x + ops.broadcast_to(positions, x.shape))
        if not self.batch_first:
            x = ops.transpose(x, axes=(0, 1))
        return x, init.zeros_like(x)
