"""Derivatives of functions: `grad`, `value_and_grad`; the walk is nir.ops.vjp's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nir import ops
from nir.errors import NotDifferentiable
from nir.frontend import lazy
from nir.frontend.gradients import gradients
from nir.frontend.state import flatten, unflatten
from nir.frontend.tensor import Tensor
from nir.ir.location import caller


def value_and_grad(
    fn: Callable[..., Any], argnums: int | tuple[int, ...] = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """A function that returns (value, gradients) of the scalar function ``fn``.

    ``argnums`` says by which positional arguments (trees of tensors); with ``has_aux`` fn returns
    (scalar, anything) and so does the value.
    """

    def derived(*args: Any, **kwargs: Any) -> Any:
        numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)
        before = lazy.grad_enabled()
        lazy._state.grad = True
        try:
            trees = []
            given = list(args)
            for n in numbers:
                tensors, structure = flatten(args[n])
                for t in tensors:
                    if not t.dtype.is_float:
                        raise NotDifferentiable(
                            f"grad: expected argument {n} of a float dtype, got {t.type}", caller()
                        )
                own = [_variable(t) for t in tensors]
                given[n] = unflatten(structure, own)
                trees.append((own, structure))
            result = fn(*given, **kwargs)
            value = result[0] if has_aux else result
            if not isinstance(value, Tensor) or value.shape != ():
                shown = value.type if isinstance(value, Tensor) else type(value).__name__
                raise NotDifferentiable(
                    f"grad: expected a function to a scalar, got {shown}", caller()
                )
            wrt = [t._cell for own, _ in trees for t in own]
            found = gradients(value._cell, wrt) if value._cell.tracks else [None] * len(wrt)
        finally:
            lazy._state.grad = before
        flat = iter(found)
        out = []
        for own, structure in trees:
            cells = [(t, next(flat)) for t in own]
            grads = [_zeros(t) if c is None else Tensor._of(c) for t, c in cells]
            out.append(unflatten(structure, grads))
        return result, (out[0] if isinstance(argnums, int) else tuple(out))

    return derived


def grad(
    fn: Callable[..., Any], argnums: int | tuple[int, ...] = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """The gradient of the scalar function ``fn``; with ``has_aux``, (gradient, aux).

    >>> import nir
    >>> nir.grad(lambda x: (x * x).sum())(nir.tensor([1.0, 2.0])).tolist()
    [2.0, 4.0]
    """

    def derived(*args: Any, **kwargs: Any) -> Any:
        result, grads = value_and_grad(fn, argnums, has_aux)(*args, **kwargs)
        return (grads, result[1]) if has_aux else grads

    return derived


def _variable(t: Tensor) -> Tensor:
    """``t`` as a value of its own that gradients end at; what t came from stays behind it."""
    (cell,) = lazy.record(ops.Reshape(t._cell.value, t.shape), [t._cell], tracks=True)
    return Tensor._of(cell)


def _zeros(t: Tensor) -> Tensor:
    return t.detach() * 0
