"""Attention as a function: softmax(q k^T scale) v with masks, causality and dropout.

Without a mask, weights or dropout it is one op; otherwise it is written out in matrix products and
a softmax, which the compiler fuses with the mask around it.
"""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes

from nir import ops
from nir.errors import DTypeError, ShapeError
from nir.frontend.functional import arange, where
from nir.frontend.nn.dropout import dropout
from nir.frontend.random import Generator
from nir.frontend.tensor import Tensor, apply
from nir.ir.dim import Dim, prod
from nir.ir.location import caller
from nir.ir.types import DType


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    generator: Generator | None = None,
) -> Tensor:
    """softmax(q k^T scale + mask) v: [..., T, D], [..., S, D], [..., S, E] -> [..., T, E].

    ``attn_mask`` broadcasts to [..., T, S]: bool, True where a query may see a key, or floats that
    are added. ``is_causal`` lets query t see keys 0 .. t. ``scale`` is 1/sqrt(D) by default. A
    query that may see no key gets 0. ``dropout_p`` is applied whenever it is not 0. With
    ``enable_gqa`` each head of key and value (axis -3) serves several of query, in order.
    """
    q, k, v = _heads(query, key, value, enable_gqa)
    allowed, bias = split_mask("scaled_dot_product_attention", attn_mask)
    if query.ndim != 4:
        # Leading axes become one of batches; a mask follows if it has them.
        shape = (*query.shape[:-2], q.shape[-2], k.shape[-2])
        allowed, bias = (
            None if m is None else _four_axes(m.expand(*shape)) for m in (allowed, bias)
        )
    scale = 1 / math.sqrt(static(q.shape[-1])) if scale is None else scale
    out, _ = attend(q, k, v, allowed, bias, is_causal, scale, dropout_p, False, generator)
    return out.reshape(*query.shape[:-1], value.shape[-1])


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    allowed: Tensor | None,
    bias: Tensor | None,
    causal: bool,
    scale: float,
    dropout_p: float = 0.0,
    need_weights: bool = False,
    generator: Generator | None = None,
) -> tuple[Tensor, Tensor | None]:
    """(values, weights or None) of q [N, H, T, D], k [N, H, S, D], v [N, H, S, E].

    ``allowed`` (bool) and ``bias`` broadcast to [N, H, T, S].
    """
    fused = not dropout_p and not need_weights
    # The op's diagonal ends at the last key, PyTorch's begins at the first.
    if causal and (not fused or q.shape[2] != k.shape[2]):
        seen = arange(k.shape[2]) <= arange(q.shape[2]).unsqueeze(1)
        allowed, causal = seen if allowed is None else allowed & seen, False
    if fused:
        mask = None if allowed is None and bias is None else _one_mask(q.dtype, allowed, bias)
        return apply(ops.Attention, q, k, v, mask, causal=causal, scale=scale)[0], None
    scores = (q @ k.transpose(2, 3)) * scale
    scores = scores if bias is None else scores + bias
    if allowed is None:
        weights = scores.softmax(-1)
    else:
        # The lowest number, not -inf: where no key is allowed that gives 0 below, and no nan in
        # the gradient.
        weights = where(allowed, scores, _lowest(q.dtype)).softmax(-1)
        weights = where(allowed, weights, 0.0)
    weights = dropout(weights, dropout_p, True, generator)
    return weights @ v, weights if need_weights else None


def _one_mask(dtype: DType, allowed: Tensor | None, bias: Tensor | None) -> Tensor:
    """The mask of four axes that the op takes; bool if nothing is added to the scores."""
    if bias is None:
        mask = allowed
    else:
        bias = bias if bias.dtype == dtype else bias.to(dtype)
        mask = bias if allowed is None else where(allowed, bias, -math.inf)
    assert mask is not None
    return mask.reshape(*(1,) * (4 - mask.ndim), *mask.shape)


def split_mask(name: str, mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """(where a query may see a key, what is added to the scores) of a mask.

    A float mask hides where it is -inf, which adding alone would turn into nan in rows that hide
    everything.
    """
    if mask is None:
        return None, None
    if mask.dtype.kind == "bool":
        return mask, None
    if not mask.dtype.is_float:
        raise DTypeError(f"{name}: expected a mask of bool or float, got {mask.type}", caller())
    allowed = mask != -math.inf
    return allowed, where(allowed, mask, 0.0)


def static(size: Dim) -> int:
    if not isinstance(size, int):
        raise ShapeError(f"attention: expected known features, got the symbolic {size}", caller())
    return size


def _heads(query: Tensor, key: Tensor, value: Tensor, gqa: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The three with axes (batch, head, token, feature)."""
    shown = f"query {query.type}, key {key.type}, value {value.type}"
    if min(query.ndim, key.ndim, value.ndim) < 2:
        raise ShapeError(
            f"scaled_dot_product_attention: expected [..., tokens, features], got {shown}",
            caller(),
        )
    if gqa:
        heads, own = static(query.shape[-3]), static(key.shape[-3])
        if heads % own:
            raise ShapeError(
                f"scaled_dot_product_attention: {own} heads of key and value do not serve "
                f"{heads} of query ({shown})",
                caller(),
            )
        key, value = (t.repeat_interleave(heads // own, t.ndim - 3) for t in (key, value))
    if key.shape[:-2] != query.shape[:-2] or value.shape[:-2] != query.shape[:-2]:
        raise ShapeError(f"scaled_dot_product_attention: leading axes differ: {shown}", caller())
    return _four_axes(query), _four_axes(key), _four_axes(value)


def _four_axes(x: Tensor) -> Tensor:
    if x.ndim == 4:
        return x
    return x.reshape(prod(x.shape[:-2]), 1, *x.shape[-2:])


def _lowest(dtype: DType) -> float:
    finfo: Any = ml_dtypes.finfo  # it has no types
    return float(finfo(dtype.numpy).min)
