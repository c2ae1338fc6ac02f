"""`MultiheadAttention`, with PyTorch's parameters and masks."""

from __future__ import annotations

import math

from nir.errors import ShapeError
from nir.frontend import init
from nir.frontend.functional import zeros
from nir.frontend.nn import functional as F
from nir.frontend.nn.attend import attend, split_mask
from nir.frontend.nn.layers import Linear
from nir.frontend.nn.module import Module, Parameter
from nir.frontend.tensor import Tensor
from nir.ir.dim import Dim
from nir.ir.location import caller


class MultiheadAttention(Module):
    """Attention of several heads (Vaswani et al., 2017).

    query [T, N, E], key [S, N, kdim], value [S, N, vdim] -> [T, N, E], batch first if
    ``batch_first``, or without N. Parameters: in_proj_weight [3E, E] (or q_, k_ and v_proj_weight
    where kdim or vdim is not E), in_proj_bias [3E], and out_proj. ``dropout`` is of the weights.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        *,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        dtype: object = "f32",
    ) -> None:
        super().__init__()
        if num_heads < 1 or embed_dim % num_heads:
            raise ShapeError(
                f"MultiheadAttention: expected embed_dim divisible by {num_heads} heads, "
                f"got {embed_dim}",
                caller(),
            )
        self.embed_dim, self.num_heads, self.dropout = embed_dim, num_heads, dropout
        self.batch_first = batch_first
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        self.q_proj_weight = self.k_proj_weight = self.v_proj_weight = None
        self.in_proj_weight = self.in_proj_bias = None
        e = embed_dim
        if self.kdim == e == self.vdim:
            self.in_proj_weight = Parameter(zeros(3 * e, e, dtype=dtype))
        else:
            self.q_proj_weight = Parameter(zeros(e, e, dtype=dtype))
            self.k_proj_weight = Parameter(zeros(e, self.kdim, dtype=dtype))
            self.v_proj_weight = Parameter(zeros(e, self.vdim, dtype=dtype))
        if bias:
            self.in_proj_bias = Parameter(zeros(3 * e, dtype=dtype))
        self.out_proj = Linear(e, e, bias, dtype=dtype)
        self.reset_parameters()

    q_proj_weight: Parameter | None
    k_proj_weight: Parameter | None
    v_proj_weight: Parameter | None
    in_proj_weight: Parameter | None
    in_proj_bias: Parameter | None

    def reset_parameters(self) -> None:
        """Draw the input projections anew (Xavier, uniform); biases become 0."""
        own = (self.in_proj_weight, self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        for weight in own:
            if weight is not None:
                init.xavier_uniform_(weight)
        for bias in (self.in_proj_bias, self.out_proj.bias):
            if bias is not None:
                init.zeros_(bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """(output, weights [N, T, S], or [N, H, T, S] if not averaged, or None if not needed).

        Masks hide where they are True or -inf, and other floats are added: ``key_padding_mask``
        [N, S], ``attn_mask`` [T, S] or [N H, T, S]. ``is_causal`` without an ``attn_mask`` lets
        query t see keys 0 .. t; with one it is a hint, and the mask decides. A query that sees no
        key gets weights 0.
        """
        batched = query.ndim == 3
        self._check(query, key, value)
        if not batched:
            axis = 0 if self.batch_first else 1
            same = key is query, value is key
            query = query.unsqueeze(axis)
            key = query if same[0] else key.unsqueeze(axis)
            value = key if same[1] else value.unsqueeze(axis)
            if key_padding_mask is not None:
                key_padding_mask = key_padding_mask.unsqueeze(0)
        q, k, v = (self._split(x) for x in self._project(query, key, value))
        n, t, s = q.shape[0], q.shape[2], k.shape[2]
        allowed, bias = self._masks(attn_mask, key_padding_mask, n, t, s)
        out, weights = attend(
            q, k, v, allowed, bias,
            causal=is_causal and attn_mask is None,
            scale=1 / math.sqrt(self.embed_dim // self.num_heads),
            dropout_p=self.dropout if self.training else 0.0,
            need_weights=need_weights,
        )  # fmt: skip
        order = (0, 2, 1, 3) if self.batch_first else (2, 0, 1, 3)
        lead = (n, t) if self.batch_first else (t, n)
        out = self.out_proj(out.permute(*order).reshape(*lead, self.embed_dim))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            out = out.squeeze(0 if self.batch_first else 1)
            weights = None if weights is None else weights.squeeze(0)
        return out, weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Query, key and value by their weights; what has one source is one product."""
        e, w, b = self.embed_dim, self.in_proj_weight, self.in_proj_bias
        if w is not None and key is query and value is key:
            return list(F.linear(query, w, b).chunk(3, -1))
        bias = [None] * 3 if b is None else b.chunk(3)
        if w is not None and value is key:
            both = F.linear(
                key, w.narrow(0, e, 2 * e), None if b is None else b.narrow(0, e, 2 * e)
            )
            return [F.linear(query, w.narrow(0, 0, e), bias[0]), *both.chunk(2, -1)]
        if w is not None:
            weights = w.chunk(3)
        else:
            assert self.q_proj_weight is not None and self.k_proj_weight is not None
            assert self.v_proj_weight is not None
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        return [
            F.linear(x, y, z) for x, y, z in zip((query, key, value), weights, bias, strict=True)
        ]

    def _split(self, x: Tensor) -> Tensor:
        """[T, N, E], or [N, T, E], as [N, H, T, E/H]."""
        heads = x.reshape(*x.shape[:2], self.num_heads, self.embed_dim // self.num_heads)
        return heads.permute(*((0, 2, 1, 3) if self.batch_first else (1, 2, 0, 3)))

    def _masks(
        self, attn_mask: Tensor | None, padding: Tensor | None, n: Dim, t: Dim, s: Dim
    ) -> tuple[Tensor | None, Tensor | None]:
        if attn_mask is not None:
            if tuple(attn_mask.shape) == (n * self.num_heads, t, s):
                attn_mask = attn_mask.reshape(n, self.num_heads, t, s)
            elif tuple(attn_mask.shape) != (t, s):
                raise ShapeError(
                    f"MultiheadAttention: expected attn_mask [{t},{s}] or "
                    f"[{n * self.num_heads},{t},{s}], got {attn_mask.type}",
                    caller(),
                )
        if padding is not None:
            if tuple(padding.shape) != (n, s):
                raise ShapeError(
                    f"MultiheadAttention: expected key_padding_mask [{n},{s}], got {padding.type}",
                    caller(),
                )
            padding = padding.reshape(n, 1, 1, s)
        allowed, bias = _hidden(attn_mask)
        allowed_keys, bias_keys = _hidden(padding)
        return (
            allowed if allowed_keys is None else
            allowed_keys if allowed is None else allowed & allowed_keys,
            bias if bias_keys is None else bias_keys if bias is None else bias + bias_keys,
        )  # fmt: skip

    def _check(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        want = (self.embed_dim, self.kdim, self.vdim)
        given = (query, key, value)
        if query.ndim not in (2, 3) or any(
            x.ndim != query.ndim or x.shape[-1] != e for x, e in zip(given, want, strict=True)
        ):
            order = "[N, T, E]" if self.batch_first else "[T, N, E]"
            raise ShapeError(
                f"MultiheadAttention: expected query, key and value {order} or [T, E] with "
                f"features {want}, got {', '.join(str(x.type) for x in given)}",
                caller(),
            )

    def extra_repr(self) -> str:
        return (
            f"{self.embed_dim}, {self.num_heads}, dropout={self.dropout}, "
            f"batch_first={self.batch_first}"
        )


def _hidden(mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """`split_mask` of a mask that is True where a key is hidden."""
    if mask is not None and mask.dtype.kind == "bool":
        mask = mask.logical_not()
    return split_mask("MultiheadAttention", mask)
