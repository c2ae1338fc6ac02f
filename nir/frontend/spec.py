"""Specs: the types of arguments without their values, f32[B,3,32,32]."""

from __future__ import annotations

import re
from typing import Any

from nir.errors import ParseError
from nir.frontend import pytree
from nir.frontend.tensor import Tensor
from nir.frozen import Frozen
from nir.ir.dim import Dim, symbol
from nir.ir.location import caller
from nir.ir.types import DTYPES, TensorType

_FORM = re.compile(r"\s*(\w+)\s*\[([^\]]*)\]\s*(?:@\s*(\w+))?\s*")


_BEGIN = re.compile(r"\s*\w+\s*\[")


class Spec(Frozen):
    """The type of a tensor argument."""

    type: TensorType

    def __str__(self) -> str:
        return str(self.type)


def spec(text: str | TensorType | Spec) -> Spec:
    """The spec that ``text`` writes: a dtype and sizes, f32[B,3,32,32]; names are symbolic sizes.

    Raises ParseError.
    """
    if isinstance(text, Spec):
        return text
    if isinstance(text, TensorType):
        return Spec(text)
    match = _FORM.fullmatch(text)
    if match is None or match[1] not in DTYPES:
        raise ParseError(
            f"spec: expected a dtype ({', '.join(DTYPES)}) and sizes, like 'f32[B,784]', "
            f"got {text!r}",
            caller(),
        )
    sizes = [s.strip() for s in match[2].split(",")] if match[2].strip() else []
    shape = tuple(_size(s, text) for s in sizes)
    return Spec(TensorType(DTYPES[match[1]], shape, device=match[3] or "cpu"))


def _size(text: str, whole: str) -> Dim:
    if text.isdecimal():
        return int(text)
    # "4*B", "B+1": a coefficient and an offset, what a run can solve for B.
    match = re.fullmatch(r"(?:(\d+)\s*\*\s*)?([A-Za-z_]\w*)(?:\s*([+-])\s*(\d+))?", text)
    if match is None:
        raise ParseError(
            f"spec: expected sizes to be numbers or names, got {text!r} in {whole!r}", caller()
        )
    scale, name, sign, offset = match.groups()
    return symbol(name) * int(scale or 1) + int(f"{sign or '+'}{offset or 0}")


def is_spec(x: Any) -> bool:
    """Whether ``x`` writes a spec, or a string that begins as one and must be meant as one."""
    return isinstance(x, Spec | TensorType) or (isinstance(x, str) and bool(_BEGIN.match(x)))


def argument_types(tree: Any) -> tuple[list[TensorType], pytree.Tree]:
    """(types, structure) of arguments that are specs, Tensors, arrays or static values."""
    leaves, structure = pytree.flatten(tree, lambda x: is_spec(x) or pytree.is_leaf(x))
    return [spec(x).type if is_spec(x) else type_of(x) for x in leaves], structure


def type_of(x: Any) -> TensorType:
    """The type of a Tensor or an array."""
    return x.type if isinstance(x, Tensor) else Tensor(x).type
