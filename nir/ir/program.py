"""Records that the stages share: the Target, and the Program that lowering ends in.

A Program is data: a flat list of kernel calls over one arena, with sizes as expressions that C++
evaluates once for each set of bound input shapes. Nothing here knows how it is made or run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from nir.ir.dim import Dim
from nir.ir.location import Location
from nir.ir.types import TensorType


@dataclass(frozen=True, slots=True)
class Target:
    """What passes may know of a machine.

    ``kernels`` maps the name of an op to the entry of the target's table that covers it, and
    ``epilogues`` names those whose kernels call a generated loop on each finished tile.
    """

    name: Literal["cpu", "cuda", "interp"]
    isa: str = "avx512"
    threads: int = 1
    numerics: Literal["strict", "fast"] = "strict"
    kernels: Mapping[str, Any] = field(default_factory=dict)
    epilogues: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Buffer:
    """Storage of a value during a run.

    kind "input"/"output"/"const": ``index`` says which one, ``offset`` is a byte offset in it;
    kind "arena": ``offset`` in bytes, rounded up to 64 when it is evaluated.
    """

    kind: Literal["input", "output", "const", "arena"]
    index: int
    offset: Dim
    nbytes: Dim


@dataclass(frozen=True, slots=True)
class Epilogue:
    """A generated loop that a kernel calls on each finished tile of its result."""

    kernel: str
    args: tuple[int, ...]
    dims: tuple[Dim, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """One kernel call. ``args`` index Program.buffers.

    The iteration space is ``rows`` x ``cols``; threads get ranges that are multiples of the grains
    (or end at the edge). ``work`` estimates the call's cost in bytes moved or flops / 8 and
    decides whether it is worth a second thread.
    """

    kernel: str
    args: tuple[int, ...]
    dims: tuple[Dim, ...] = ()
    rows: Dim = 1
    cols: Dim = 1
    row_grain: int = 1
    col_grain: int = 0  # 0: columns are not split
    scratch: Dim = 0  # bytes of scratch for each thread
    work: Dim = 0
    epilogue: Epilogue | None = None
    op: str = ""  # the op's name, for profiles and messages
    locs: frozenset[Location] = frozenset()


@dataclass(frozen=True, slots=True)
class Donation:
    """Output ``output`` may take over the storage of input ``input`` when the run owns it alone."""

    input: int
    output: int


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """A lowered graph, ready for the executor.

    ``codes`` maps a generated kernel's name to {ISA level: position-independent blob};
    other names are symbols of kernels/cpu, without their ISA suffix.
    ``constants`` are raw bytes, 64-byte aligned when loaded.
    """

    name: str
    inputs: tuple[TensorType, ...]
    outputs: tuple[TensorType, ...]
    buffers: tuple[Buffer, ...]
    calls: tuple[Call, ...]
    arena: Dim
    constants: tuple[bytes, ...] = ()
    codes: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)
    donations: tuple[Donation, ...] = ()
    input_names: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()
