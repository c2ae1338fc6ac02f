"""`Executable`: a Program bound to code, ready to run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from nir import flags
from nir.errors import CodegenError, DTypeError, IndexRangeError, NirError, UnsupportedError
from nir.frozen import replace
from nir.ir import interp
from nir.ir.bind import bind_shapes
from nir.ir.dim import Dim
from nir.ir.graph import Graph, location_text
from nir.ir.location import Location, Locations, caller
from nir.ir.needs import Needs, needs
from nir.ir.program import Program
from nir.ir.text import print_graph
from nir.ir.types import TensorType
from nir.runtime import _core
from nir.runtime._core import Storage
from nir.runtime.bind import bind_inputs
from nir.runtime.encode import encode
from nir.runtime.host import HOST_ERROR, HostKernel
from nir.runtime.package import write_package
from nir.runtime.profile import Profile, Roofs, profile_of

Codes = Mapping[str, Mapping[str, bytes]]
Emit = Callable[[str], Mapping[str, bytes]]

# NIR_INDEX_OUT_OF_RANGE and NIR_INDEX_NOT_BELOW of kernels/cpu/nir_kernel.h: the least index that
# they allow, in sizes of the axis.
_LEAST_INDEX = {1: -1, 4: 0}


def best_isa() -> str:
    """NIR_ISA, or the best ISA level that this machine's CPU runs."""
    return flags.isa() or _core.best_isa()


def as_storage(value: Any) -> Storage:
    """``value`` as a Storage; arrays and DLPack tensors are not copied where they are dense.

    Raises DTypeError for a dtype that nir does not have.
    """
    if isinstance(value, Storage):
        return value
    if isinstance(value, np.ndarray | np.generic) or not hasattr(value, "__dlpack__"):
        return Storage.from_numpy(np.asarray(value), copy=False)
    try:
        return Storage.from_dlpack(value.__dlpack__())
    except BufferError as error:
        raise DTypeError(f"cannot read a {type(value).__name__}: {error}", caller()) from None


class Executable:
    """A compiled program.

    ``graph`` is the lowered graph. ``emit(isa)`` gives the code of every generated kernel for an
    ISA level: it is asked for this machine's level now, and for the others by `save`. ``hosts``
    are functions of this process that calls name as kernels. ``encoded`` is the program as the
    runtime reads it.
    """

    _program: Program | None
    _graph: Graph | None

    def __init__(
        self,
        program: Program,
        *,
        graph: Graph | None = None,
        compile_seconds: float = 0.0,
        emit: Emit | None = None,
        hosts: Mapping[str, HostKernel] | None = None,
        isa: str | None = None,
    ) -> None:
        start = time.perf_counter()
        level = isa or best_isa()
        if emit is not None and not all(level in c for c in program.codes.values() or [()]):
            program = replace(program, codes=_merged(program.codes, level, emit(level)))
        self.hosts = dict(hosts or {})
        self._emit = emit
        self.encoded = encode(program, self.hosts)
        self._core = _core.Executable(
            self.encoded,
            [constant_storage(c) for c in program.constants],
            {name: dict(levels) for name, levels in program.codes.items()},
            {name: host.address for name, host in self.hosts.items()},
            isa or "",
        )
        self._codes: Codes = program.codes
        self._program, self._graph = program, graph
        self.compile_seconds = compile_seconds + time.perf_counter() - start

    # ---- running -------------------------------------------------------------------------------

    def run(
        self, inputs: Sequence[Storage], donate: Sequence[int] = (), in_place: bool = False
    ) -> list[Storage]:
        """The outputs for ``inputs``; releases the interpreter's lock, and may run on many threads.

        Inputs numbered in ``donate`` are offered: where the program can use one, and nothing else
        holds its memory, an output takes it over and the input is stale afterwards (after a run
        that failed: only if a call up to the one that failed had that output as an argument).
        With ``in_place`` such an output is the input's own Storage, with its new value.
        Raises ShapeError or DTypeError for inputs that do not fit, StaleTensorError for one that
        was donated before, and IndexRangeError at the user's line.
        """
        try:
            return self._core.run(inputs, donate, None, in_place)
        except _core.KernelError as error:
            raise self._kernel_error(*error.args) from None
        except NirError as error:
            error.location = error.location or caller()
            raise

    def __call__(self, *inputs: Any) -> Any:
        """Run on Storages, numpy arrays or DLPack tensors: one Storage, or a tuple of them."""
        outputs = self.run([as_storage(x) for x in inputs])
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def profile(self, inputs: Sequence[Any], runs: int = 5, roofs: Roofs | None = None) -> Profile:
        """Time each call: the least of ``runs`` runs, after one that is not counted.

        A call in a loop has the time of all its steps together. Nothing is donated. With the
        machine's ``roofs`` the tables say how near each call comes to them.
        """
        if runs < 1:
            raise NirError(f"profile: expected 1 run or more, got {runs}", caller())
        given = [as_storage(x) for x in inputs]
        self.run(given)
        timelines = [self._timeline(given) for _ in range(runs)]
        fastest = min(timelines, key=lambda t: sum(ns for ns, _ in t["calls"]))
        calls = [
            (min(ns for ns, _ in times), times[0][1])
            for times in zip(*(t["calls"] for t in timelines), strict=True)
        ]
        p = self.program
        sizes = bind_shapes(p.inputs, [tuple(s.shape) for s in given], p.input_names)
        return profile_of(p, sizes, {**fastest, "calls": calls}, roofs)

    def _timeline(self, inputs: Sequence[Storage]) -> dict[str, Any]:
        noted: dict[str, Any] = {}
        try:
            self._core.run(inputs, (), noted)
        except _core.KernelError as error:
            raise self._kernel_error(*error.args) from None
        return noted

    # ---- what it is ----------------------------------------------------------------------------

    @property
    def program(self) -> Program:
        assert self._program is not None
        return self._program

    @property
    def graph(self) -> Graph | None:
        """The lowered graph, as far as it is known."""
        return self._graph

    @property
    def text(self) -> str:
        """The lowered graph as text."""
        return "" if self._graph is None else print_graph(self._graph)

    @property
    def isa(self) -> str:
        """The ISA level that runs."""
        return self._core.isa

    @property
    def inputs(self) -> tuple[TensorType, ...]:
        return self.program.inputs

    @property
    def outputs(self) -> tuple[TensorType, ...]:
        return self.program.outputs

    @property
    def peak_bytes(self) -> Dim:
        """Bytes that a run takes besides inputs and constants: arena, outputs, scratch of threads.

        Where sizes are symbolic, an expression of them that is no less; `needs` has the parts, and
        ``needs.total(threads, sizes)`` is exact for any sizes. Donated inputs make it less.
        """
        return self.needs.bound(_core.get_num_threads())

    @property
    def needs(self) -> Needs:
        """What a run takes, part by part."""
        return needs(self.program)

    @cached_property
    def sites(self) -> list[tuple[str, Locations]]:
        """The op and the user's lines of each call."""
        return [(op, frozenset(Location(*loc) for loc in locs)) for op, locs in self._core.sites()]

    def codes(self, levels: Sequence[str]) -> Codes:
        """Code of every generated kernel for all ``levels``; compiles what is missing.

        Raises UnsupportedError where code is missing and there is nothing to compile it from.
        """
        codes = self._codes
        for level in levels:
            if all(level in found for found in codes.values()):
                continue
            if self._emit is None:
                missing = sorted(n for n, found in codes.items() if level not in found)
                raise UnsupportedError(f"no code of {', '.join(missing)} for ISA level {level}")
            codes = _merged(codes, level, self._emit(level))
        self._codes = codes
        return codes

    def save(
        self,
        path: str | os.PathLike[str],
        bound: Mapping[int, Storage] | None = None,
        levels: Sequence[str] | None = None,
    ) -> None:
        """Write a package to ``path``, with code for ``levels`` (all that nir generates code for).

        Inputs numbered in ``bound`` become the package's weights. The file appears whole or not at
        all. Raises UnsupportedError for a program that calls functions of this process, naming the
        line, and for a level that there is no code for.
        """
        program = bind_inputs(self.program, bound or {})
        for call in program.calls:
            if call.kernel in self.hosts:
                raise UnsupportedError(
                    f"{call.op}: a package cannot call functions of this process",
                    location_text(call.locs) or None,
                )
        levels = flags.ISA_LEVELS if levels is None else levels
        codes = self.codes(levels)
        write_package(path, replace(program, codes=codes), self.graph, codes, levels)

    def __repr__(self) -> str:
        p = self.program
        types = ", ".join(map(str, p.inputs)), ", ".join(map(str, p.outputs))
        return (
            f"Executable({p.name}: ({types[0]}) -> ({types[1]}), {len(p.calls)} calls, {self.isa})"
        )

    def _kernel_error(self, status: int, call: int, *detail: int) -> BaseException:
        op, locs = self.sites[call]
        where = location_text(locs) or None
        if status in _LEAST_INDEX:
            index, size = detail
            least = size * _LEAST_INDEX[status]
            return IndexRangeError(
                f"{op}: expected an index from {least} to {size - 1}, got {index}", where
            )
        if status == HOST_ERROR:
            error = self.hosts[self.program.calls[call].kernel].take_error()
            if error is not None:
                return error
        return CodegenError(f"{op}: its kernel returned status {status}", where)


class InterpExecutable:
    """A graph run by the reference interpreter, with the face of an `Executable`."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.program = None
        self.compile_seconds = 0.0

    def run(
        self, inputs: Sequence[Storage], donate: Sequence[int] = (), in_place: bool = False
    ) -> list[Storage]:
        """The outputs for ``inputs``; nothing is ever donated."""
        arrays = interp.run(self.graph, [x.numpy() for x in inputs])
        return [Storage.from_numpy(np.asarray(a)) for a in arrays]

    def __call__(self, *inputs: Any) -> Any:
        """Run on Storages, numpy arrays or DLPack tensors: one Storage, or a tuple of them."""
        outputs = self.run([as_storage(x) for x in inputs])
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def __getattr__(self, name: str) -> Any:
        if name not in _COMPILED_ONLY:
            raise AttributeError(f"InterpExecutable has no attribute {name!r}")
        raise UnsupportedError(
            f"{name}: the reference interpreter runs the graph itself and compiles no program; "
            'compile for target "cpu"',
            caller(),
        )


# What only a compiled program has.
_COMPILED_ONLY = frozenset({"save", "profile", "peak_bytes", "codes", "needs", "sites"})


def constant_storage(data: bytes) -> Storage:
    """``data`` in aligned memory."""
    return Storage.from_numpy(np.frombuffer(data, np.uint8))


def _merged(codes: Codes, level: str, blobs: Mapping[str, bytes]) -> Codes:
    return {name: {**codes.get(name, {}), level: blob} for name, blob in blobs.items()}
