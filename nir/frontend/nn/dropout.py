"""Dropout as a function."""

from __future__ import annotations

from nir.errors import NirError
from nir.frontend.functional import where
from nir.frontend.random import Generator, bernoulli
from nir.frontend.tensor import Tensor
from nir.ir.location import caller


def dropout(
    x: Tensor, p: float = 0.5, training: bool = True, generator: Generator | None = None
) -> Tensor:
    """In training, 0 with probability ``p`` and x / (1 - p) otherwise."""
    if not 0 <= p <= 1:
        raise NirError(f"dropout: expected a probability, got {p}", caller())
    if not training or p == 0:
        return x
    if p == 1:
        return x * 0.0
    keep = bernoulli(x.shape, 1 - p, generator=generator)
    return where(keep, x * (1 / (1 - p)), 0.0)
