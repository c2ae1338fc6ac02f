"""Records that the stages share: the Target, and the Program that lowering ends in.

A Program is data: a flat list of kernel calls over one arena, with sizes as expressions that C++
evaluates once for each set of bound input shapes. Loops, branches and bands are records beside the
list that say which calls run how often, and how addresses move. Nothing here knows how it is made
or run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any, Literal

from nir.frozen import Frozen
from nir.ir.dim import Dim
from nir.ir.location import Location
from nir.ir.types import TensorType


class Target(Frozen):
    """What passes may know of a machine.

    ``kernels`` maps the name of an op to the entry of the target's table that covers it, and
    ``epilogues`` names those whose kernels call a generated loop on each finished tile. A program
    may take ``memory`` bytes besides its inputs, None for as many as it needs. ``choices`` are
    (site, algorithm) pairs that were measured (`nir.tune`).
    """

    name: Literal["cpu", "cuda", "interp"]
    isa: str = "avx512"
    threads: int = 1
    numerics: Literal["strict", "fast"] = "fast"
    kernels: Mapping[str, Any] = field(default_factory=dict)
    epilogues: frozenset[str] = frozenset()
    memory: int | None = None
    choices: tuple[tuple[str, str], ...] = ()


class Move(Frozen):
    """A buffer lies ``stride`` bytes further on for each element that loop ``loop`` goes on."""

    loop: int  # index into Program.controls
    stride: Dim


class Buffer(Frozen):
    """Storage of a value during a run.

    kind "input"/"output"/"const": ``index`` says which one, ``offset`` is a byte offset in it;
    kind "arena": ``offset`` in bytes, rounded up to 64 when it is evaluated;
    kind "before"/"after": what a step of a loop reads and writes of carry ``index``;
    kind "lines": what call ``index`` in bands leaves for the next one, in a thread's scratch.
    A buffer that moves with a loop, or is a carry of it, is for calls in that loop only.
    """

    kind: Literal["input", "output", "const", "arena", "before", "after", "lines"]
    index: int
    offset: Dim
    nbytes: Dim
    moves: tuple[Move, ...] = ()


class Epilogue(Frozen):
    """A generated loop that a kernel calls on each finished tile of its result."""

    kernel: str
    args: tuple[int, ...]
    dims: tuple[Dim, ...]


class Call(Frozen):
    """One kernel call. ``args`` index Program.buffers.

    The iteration space is ``rows`` x ``cols``; threads get ranges that are multiples of the grains
    (or end at the edge). ``even`` calls repeat work in each piece: a thread gets one share, as long
    as nothing stops the others. ``work`` estimates the call's cost in bytes moved or flops / 8 and
    decides whether it is worth a second thread. ``flops`` and ``traffic`` are those of the op (see
    `nir.ir.op.Op`), ``live`` the bytes of intermediate results and outputs that are kept while it
    runs: what profiles are made from. ``shares`` says how much of the call belongs to each line, in
    thousandths; where there are none, all have the same.
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
    flops: Dim = 0
    traffic: Dim = 0
    live: Dim = 0
    shares: tuple[tuple[Location, int], ...] = ()
    even: bool = False


class Carry(Frozen):
    """A value that loop ``loop`` hands from step to step, in ``nbytes`` bytes.

    The first step reads buffer ``init``; steps write ``result`` and ``spare`` in turn, so that the
    next one reads what the last one wrote, and the last write lies in ``result`` afterwards.
    """

    loop: int
    init: int
    result: int
    spare: int
    nbytes: Dim


class Loop(Frozen):
    """Calls first .. end - 1 run again and again.

    ``trips`` is the number of steps, from the last element to the first where ``reverse`` is set.
    With a ``predicate`` (a buffer of one byte) it is the most steps there may be, None for no
    limit: each step calls first .. body - 1, and goes on with body .. end - 1 if the predicate is
    then not 0. Without one, body is first.
    """

    first: int
    body: int
    end: int
    trips: Dim | None
    predicate: int | None = None
    reverse: bool = False


class Branch(Frozen):
    """Calls first .. other - 1 run if buffer ``predicate`` is not 0, else other .. end - 1."""

    first: int
    other: int
    end: int
    predicate: int


class Stage(Frozen):
    """A call in bands: its rows are lines of ``width``, ``height`` of them an image.

    Line i reads ``extent`` lines of what the call before it leaves, from ``stride`` * i - ``above``
    on, as far as the image goes. ``kept`` lines of its result, of ``bytes`` each, are there at a
    time; the last call writes a buffer of the whole, and keeps none.
    """

    height: int
    width: int
    stride: int
    above: int
    extent: int
    kept: int
    bytes: int


class Bands(Frozen):
    """Calls first .. end - 1 take turns for ``lines`` lines of the last one, on each thread.

    A call computes those of its lines that the next one needs and that it has not left before.
    Their scratch begins with the buffers of kind "lines"; what kernels take lies behind those.
    """

    first: int
    end: int
    lines: int
    stages: tuple[Stage, ...]


class Donation(Frozen):
    """Output ``output`` may take over the storage of input ``input`` when the run owns it alone."""

    input: int
    output: int


class Program(Frozen, eq=False):
    """A lowered graph, ready for the executor.

    ``codes`` maps a generated kernel's name to {ISA level: position-independent blob};
    other names are symbols of kernels/cpu, without their ISA suffix.
    ``constants`` are raw bytes, 64-byte aligned when loaded.
    ``controls`` nest: each has at least one call, lies within one part of the one around it, and
    stands behind that one and before those that begin later.
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
    controls: tuple[Loop | Branch | Bands, ...] = ()
    carries: tuple[Carry, ...] = ()
