"""Derivatives of functions: `grad`, `value_and_grad`, `vjp`, `jacobian`.

They record the function on its own variables and walk back, so they work eagerly, inside traced
functions and inside each other, to any order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nir.errors import DTypeError, NotDifferentiable, ShapeError
from nir.frontend import autograd, emit, lazy, pytree
from nir.frontend.functional import stack, zeros
from nir.frontend.lazy import Cell
from nir.frontend.tensor import Tensor
from nir.ir.location import caller


def value_and_grad(
    fn: Callable[..., Any], argnums: int | tuple[int, ...] = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """A function that returns (value, gradients) of the scalar function ``fn``.

    ``argnums`` says by which positional arguments, trees of float tensors; the gradients are such
    trees. With ``has_aux`` fn returns (scalar, anything), and that is the value. Raises ShapeError
    if the result is no scalar, NotDifferentiable where there is no derivative.
    """
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    def derived(*args: Any, **kwargs: Any) -> Any:
        with lazy.enable_grad():
            given, variables, trees = _variables(args, numbers)
            result = fn(*given, **kwargs)
            value = result[0] if has_aux else result
            _check_value(value)
            grads, create_graph = _backward(value._cell, variables, None)
        out = [
            pytree.unflatten(tree, [Tensor._of(next(flat)) for _ in range(count)])
            for flat in (iter(grads),)
            for tree, count in trees
        ]
        if not create_graph:
            result = pytree.map_tensors(Tensor.detach, result)
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


def vjp(fn: Callable[..., Any], *args: Any) -> tuple[Any, Callable[[Any], tuple[Any, ...]]]:
    """(fn(*args), a function from a cotangent of the result to cotangents of ``args``)."""
    numbers = tuple(range(len(args)))
    with lazy.enable_grad():
        given, variables, trees = _variables(args, numbers)
        result = fn(*given)
    outputs, structure = pytree.tensors(result)

    def back(cotangent: Any) -> tuple[Any, ...]:
        seeds, own = pytree.tensors(cotangent)
        if own != structure:
            raise ShapeError("vjp: expected a cotangent of the result's structure", caller())
        with lazy.enable_grad():
            total = sum((t * s).sum() for t, s in zip(outputs, seeds, strict=True))
            _check_value(total)
            grads, _ = _backward(total._cell, variables, None)  # type: ignore[union-attr]
        flat = iter(grads)
        return tuple(
            pytree.unflatten(tree, [Tensor._of(next(flat)) for _ in range(count)])
            for tree, count in trees
        )

    return pytree.map_tensors(Tensor.detach, result), back


def jacobian(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """d fn(x)[i..] / d x[j..], of shape [*result, *x]: one backward walk for each element."""

    def derived(x: Tensor) -> Tensor:
        with lazy.enable_grad():
            _, (variable,), _ = _variables((x,), (0,))
            out = fn(Tensor._of(variable))
            flat = out.reshape(-1)
            rows = [Tensor._of(_backward(flat[i]._cell, [variable], None)[0][0])
                    for i in range(len(flat))]  # fmt: skip
        shape = (*out.shape, *x.shape)
        return stack(rows).reshape(shape) if rows else zeros(shape, dtype=x.dtype)

    return derived


def _variables(
    args: tuple[Any, ...], numbers: tuple[int, ...]
) -> tuple[list[Any], list[Cell], list[tuple[pytree.Tree, int]]]:
    """(arguments with variables in the places ``numbers``, their cells, (tree, count) of each)."""
    given, variables, trees = list(args), [], []
    for n in numbers:
        if not 0 <= n < len(args):
            raise ShapeError(f"grad: argument {n} of {len(args)} positional arguments", caller())
        tensors, structure = pytree.tensors(args[n])
        for t in tensors:
            if not t.dtype.is_float:
                raise NotDifferentiable(
                    f"grad: expected float tensors in argument {n}, got {t.type}", caller()
                )
        cells = [autograd.passed_on(t._cell, tracks=True) for t in tensors]
        given[n] = pytree.unflatten(structure, [Tensor._of(c) for c in cells])
        variables += cells
        trees.append((structure, len(cells)))
    return given, variables, trees


def _check_value(value: Any) -> None:
    if not isinstance(value, Tensor):
        kind = type(value).__name__
        raise DTypeError(f"grad: expected a function to a scalar tensor, got {kind}", caller())
    if value.shape != ():
        raise ShapeError(f"grad: expected a function to a scalar, got {value.type}", caller())
    if not value.dtype.is_float:
        raise NotDifferentiable(
            f"grad: expected a function to a float scalar, got {value.type}", caller()
        )


def _backward(value: Cell, variables: list[Cell], seed: Cell | None) -> tuple[list[Cell], bool]:
    """(a gradient for each variable, whether they may be differentiated in turn)."""
    if not value.tracks:
        return [_zeros(c) for c in variables], False
    create_graph = autograd.reaches_others(value, variables)
    found = autograd.gradients(value, variables, seed, create_graph)
    return [
        g if g is not None else _zeros(c) for c, g in zip(variables, found, strict=True)
    ], create_graph


def _zeros(c: Cell) -> Cell:
    return emit.full(0, c.shape, c.dtype)
