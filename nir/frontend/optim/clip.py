"""Gradient clipping, in place, between ``backward`` and ``step``."""

from __future__ import annotations

from collections.abc import Iterable

from nir.errors import NirError
from nir.frontend.functional import stack
from nir.frontend.tensor import Tensor
from nir.ir.location import caller

_EPS = 1e-6  # PyTorch's


def clip_grad_norm_(
    parameters: Iterable[Tensor] | Tensor, max_norm: float, norm_type: float = 2.0
) -> Tensor:
    """Scale all gradients so that their joint norm is at most ``max_norm``; the norm before.

    scale = min(1, max_norm / (norm + 1e-6)); ``norm_type`` is a positive number or infinity.
    """
    pairs = _with_grad(parameters)
    if not pairs:
        raise NirError(
            "clip_grad_norm_: expected a parameter that has a gradient, found none", caller()
        )
    grads = [g for _, g in pairs]
    if norm_type == float("inf"):
        norm = stack([g.abs().amax() for g in grads]).amax()
    elif norm_type == 2:
        norm = stack([(g * g).sum() for g in grads]).sum().sqrt()
    else:
        norm = stack([(g.abs() ** norm_type).sum() for g in grads]).sum() ** (1 / norm_type)
    scale = (max_norm / (norm + _EPS)).clamp(max=1.0)
    for p, g in pairs:
        p.grad = g * scale
    return norm


def clip_grad_value_(parameters: Iterable[Tensor] | Tensor, clip_value: float) -> None:
    """Clamp every element of every gradient to +-``clip_value``."""
    for p, g in _with_grad(parameters):
        p.grad = g.clamp(-clip_value, clip_value)


def _with_grad(parameters: Iterable[Tensor] | Tensor) -> list[tuple[Tensor, Tensor]]:
    tensors = [parameters] if isinstance(parameters, Tensor) else parameters
    return [(p, p.grad) for p in tensors if p.grad is not None]
