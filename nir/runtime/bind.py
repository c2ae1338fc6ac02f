"""Binding inputs of a program: weights that a caller would pass become constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from nir.errors import ShapeError
from nir.frozen import replace
from nir.ir.program import Buffer, Program
from nir.runtime._core import Storage

T = TypeVar("T")


def bind_inputs(program: Program, bound: Mapping[int, Storage]) -> Program:
    """``program`` with the inputs numbered in ``bound`` as constants; the others move up.

    Raises ShapeError for a value that is not of its input's type.
    """
    constants = list(program.constants)
    constant_of: dict[int, int] = {}
    for i, value in sorted(bound.items()):
        want = program.inputs[i]
        if (value.dtype, value.shape, value.layout) != (want.dtype.name, want.shape, want.layout):
            raise ShapeError(
                f"{program.name}: input {i} (%{program.input_names[i]}): expected {want} to bind, "
                f"got {value!r}"
            )
        constant_of[i] = len(constants)
        size = want.nbytes
        assert isinstance(size, int)  # the type is that of a stored value
        constants.append(value.raw_bytes(size))
    left = [i for i in range(len(program.inputs)) if i not in bound]
    number = {old: new for new, old in enumerate(left)}

    def move(b: Buffer) -> Buffer:
        match b.kind:
            case "input" if b.index in bound:
                return replace(b, kind="const", index=constant_of[b.index])
            case "input":
                return replace(b, index=number[b.index])
            case _:
                return b

    def keep(items: Sequence[T]) -> tuple[T, ...]:
        return tuple(items[i] for i in left) if items else ()

    return replace(
        program,
        inputs=keep(program.inputs),
        input_names=keep(program.input_names),
        buffers=tuple(map(move, program.buffers)),
        constants=tuple(constants),
        donations=tuple(
            replace(d, input=number[d.input]) for d in program.donations if d.input in number
        ),
    )
