"""Graph -> passes -> Program -> Executable: the only place where the stages meet."""

from __future__ import annotations

import functools
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from nir import flags
from nir.blobs import Batch, blobs_of, loop_text
from nir.codegen import LoopKernel, lower_fused
from nir.errors import UnsupportedError, VerifyError
from nir.frozen import Frozen, replace
from nir.ir.compare import beyond_rounding, worst
from nir.ir.dim import Dim, symbols, value
from nir.ir.dump import Dumper
from nir.ir.graph import Graph, location_text
from nir.ir.interp import random_inputs, run
from nir.ir.location import Location
from nir.ir.op import OPS, Op, Value
from nir.ir.program import (
    Branch,
    Buffer,
    Call,
    Carry,
    Donation,
    Epilogue,
    Loop,
    Move,
    Program,
    Target,
)
from nir.ops import Cond, Constant, HostCall, Scan, WhileLoop
from nir.ops.fused import Fused
from nir.passes.blocks import block_of
from nir.passes.budget import check_budget
from nir.passes.memory import is_alias, live_bytes
from nir.passes.pipeline import PIPELINE, Pass, run_pipeline
from nir.runtime import (
    Entry,
    Executable,
    HostKernel,
    InterpExecutable,
    Storage,
    Stored,
    as_storage,
    entry_of,
    get_num_threads,
    object_cache,
)  # fmt: skip
from nir.targets import cpu
from nir.targets.kernel_call import KernelCall


def compile_graph(
    graph: Graph, target: str | Target = "cpu", memory: int | None = None
) -> Executable | InterpExecutable:
    """Compile ``graph`` for ``target``: "cpu", or "interp", the reference interpreter.

    A graph that has a memory plan is lowered already, and taken as it is. A program that was
    compiled before, in whichever process, comes from the cache on disk. Dumps and verification
    compile anew. Raises UnsupportedError, with the user's line, for an op that the target
    can neither run nor take apart, and MemoryBudgetError for a program that does not fit in
    ``memory`` bytes besides its inputs.
    """
    start = time.perf_counter()
    machine = resolve_target(target)
    if machine.name == "interp":
        return InterpExecutable(graph)
    if memory is not None:
        machine = replace(machine, memory=memory)
    parts = program_parts(graph, machine)
    if parts is None:
        return compile_with(graph, machine, start)
    locations, _ = locations_of(graph)
    cache = object_cache()
    stored = stored_program(cache.lookup(parts), locations, Later(lambda: graph, machine), start)
    if stored is not None:
        return stored
    executable = compile_with(graph, machine, start)
    cache.store(parts, entry_of(executable, machine.isa, locations).pack())
    return executable


def compile_with(
    graph: Graph, machine: Target, start: float, passes: Sequence[Pass] = PIPELINE
) -> Executable:
    dump = Dumper.from_flags(graph.name)
    # Host functions may have effects: they run once a run, never for a comparison.
    checked = flags.verify() and passes is PIPELINE and not calls_host(graph)
    inputs = random_inputs(graph) if checked else None
    planned = graph.plan is not None  # a dump of the last pass
    with Batch(machine.isa) as batch:
        # Loops are final once they are fused: LLVM has them while the other passes run.
        begin = {"fuse": functools.partial(_begin_loops, batch)}
        lowered = graph if planned else run_pipeline(graph, machine, dump, inputs, passes, begin)
        program, loops, hosts = lower(lowered, machine, batch.begin)
    check_budget(lowered, program, machine)
    if dump is not None:
        dump.write_program(program)
    executable = Executable(
        program,
        graph=lowered,
        compile_seconds=time.perf_counter() - start,
        emit=lambda isa: blobs_of(loops, isa),
        hosts=hosts,
        isa=machine.isa,
    )
    if inputs is not None:
        _check_outputs(graph, executable, inputs)
    return executable


def _begin_loops(batch: Batch, graph: Graph) -> None:
    for op in graph.nodes:
        if isinstance(op, Fused):
            batch.begin(loop_text(lower_fused(op), batch.isa))
        else:
            for _, region in op.regions():
                _begin_loops(batch, region)


# ---- programs on disk --------------------------------------------------------------------------


def program_parts(graph: Graph, target: Target) -> dict[str, str] | None:
    """What a compiled program depends on; None where it has to be compiled in this process.

    "places" says which ops share lines, not which lines those are. `ObjectCache.why` says
    which of these differs from the programs that are there.
    """
    own_table = target.kernels is not cpu.KERNELS or target.epilogues is not cpu.EPILOGUES
    if own_table or flags.verify() or flags.dump_dir() is not None or _has_functions(graph):
        return None
    machine = f"{target.name} {target.isa} {target.threads} {target.numerics} {target.memory}"
    machine += "".join(f"\n{place}: {chosen}" for place, chosen in target.choices)
    names = "\n".join((graph.name, *graph.input_names))
    _, places = locations_of(graph)
    return {
        "graph": graph.key,
        "names": names,
        "places": places,
        "target": machine,
        "version": _version(),
    }


def _has_functions(graph: Graph) -> bool:
    """Whether an op holds a Python function: what it does is known to this process only."""
    for op in graph.nodes:
        if _may_hold_functions(op.name) and any(map(callable, op.attributes.values())):
            return True
        if any(_has_functions(region) for _, region in op.regions()):
            return True
    return False


@functools.cache
def _may_hold_functions(name: str) -> bool:
    types = [str(f.type) for f in OPS[name].frozen_fields.values()]
    return any("Callable" in t or "Any" in t for t in types)


def locations_of(graph: Graph) -> tuple[tuple[Location, ...], str]:
    """The lines of ``graph`` in the order of their first use, and which of them each op has."""
    number: dict[Location, int] = {}
    places: list[str] = []

    def visit(g: Graph) -> None:
        for op in g.nodes:
            for loc in sorted(op.locs) if len(op.locs) > 1 else op.locs:
                places.append(str(number.setdefault(loc, len(number))))
            places.append(";")
            for _, region in op.regions():
                visit(region)

    visit(graph)
    return tuple(number), " ".join(places)


@functools.cache
def _version() -> str:
    """Changes with every file of nir, and with numpy, which folds constants."""
    digest = hashlib.sha256(np.__version__.encode())
    root = os.path.dirname(__file__)
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(files):
            if name.endswith((".py", ".so")):
                path = os.path.join(folder, name)
                info = os.stat(path)
                digest.update(f"{path[len(root) :]} {info.st_size} {info.st_mtime_ns}\n".encode())
    return digest.hexdigest()


@dataclass
class Later:
    """The lowered graph and the loops of a program that was found on disk."""

    graph: Callable[[], Graph]
    machine: Target
    passes: Sequence[Pass] = PIPELINE

    @functools.cached_property
    def lowered(self) -> Graph:
        graph = self.graph()
        planned = graph.plan is not None
        return graph if planned else run_pipeline(graph, self.machine, passes=self.passes)

    @functools.cached_property
    def loops(self) -> dict[str, LoopKernel]:
        return lower(self.lowered, self.machine)[1]


def stored_program(
    found: bytes | None, locations: Sequence[Location], later: Later, start: float
) -> Stored | None:
    """The executable of a program on disk, which is there no more if ``found`` is None."""
    if found is None:
        return None
    entry = Entry.unpack(found).at(locations)
    stored = Stored(entry, lambda: later.lowered, lambda isa: blobs_of(later.loops, isa))
    stored.compile_seconds = time.perf_counter() - start
    return stored


# ---- checks ------------------------------------------------------------------------------------


def calls_host(graph: Graph) -> bool:
    return any(
        isinstance(op, HostCall) or any(calls_host(region) for _, region in op.regions())
        for op in graph.nodes
    )


def _check_outputs(graph: Graph, executable: Executable, inputs: Sequence[np.ndarray]) -> None:
    """Compare a run of the program with the reference interpreter."""
    compare_run(graph, inputs, executable.run([as_storage(x) for x in inputs]))


def compare_run(graph: Graph, inputs: Sequence[np.ndarray], stored: Sequence[Storage]) -> None:
    expected = run(graph, inputs)
    got = [out.numpy(y.dtype).reshape(y.shape) for out, y in zip(stored, expected, strict=True)]
    for k in beyond_rounding(graph, inputs, expected, got):
        index, ulp = worst(expected[k], got[k])
        op = graph.producer.get(graph.outputs[k])
        raise VerifyError(
            f"lowering changed output {k} ({op.name if op else 'input'}): at {index} expected "
            f"{expected[k][index]}, got {got[k][index]} ({ulp:.3g} ulp)",
            location_text(op.locs) if op else None,
        )


def resolve_target(target: str | Target) -> Target:
    """The Target called ``target``."""
    if isinstance(target, Target):
        return target
    match target:
        case "cpu":
            return cpu.target(threads=get_num_threads())
        case "interp":
            return Target("interp")
        case _:
            raise UnsupportedError(f"expected target 'cpu' or 'interp', got {target!r}")


def lower(
    graph: Graph, target: Target, begin: Callable[[str], None] = lambda text: None
) -> tuple[Program, dict[str, LoopKernel], dict[str, HostKernel]]:
    """The Program of a planned graph, and its generated kernels and host functions by name.

    ``begin`` is called with the text of each of these kernels, as soon as it is known.
    """
    return _Lowering(graph, target, begin).run()


class _Scope(Frozen):
    """A graph while it is lowered: where its arena begins, and the buffers of its outputs.

    ``live`` is what is kept while each op runs, results of the graphs around it included.
    """

    graph: Graph
    arena: Dim
    outputs: Sequence[int]
    live: Sequence[Dim]

    def block(self, position: int) -> Dim:
        assert self.graph.plan is not None
        return self.arena + self.graph.plan.blocks[position][0]


@dataclass
class _Lowering:
    graph: Graph
    target: Target
    begin: Callable[[str], None]
    buffers: list[Buffer] = field(default_factory=list)
    at: dict[Value, int] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    constants: list[bytes] = field(default_factory=list)
    loops: dict[str, LoopKernel] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    hosts: dict[str, HostKernel] = field(default_factory=dict)
    controls: list[Loop | Branch] = field(default_factory=list)
    carries: list[Carry] = field(default_factory=list)
    live: Dim = 0  # at the op that is being lowered

    def run(self) -> tuple[Program, dict[str, LoopKernel], dict[str, HostKernel]]:
        graph = self.graph
        assert graph.plan is not None
        for k, v in enumerate(graph.inputs):
            self.place(v, Buffer("input", k, 0, v.type.nbytes))
        outputs = [
            self.buffer(Buffer("output", k, 0, v.type.nbytes)) for k, v in enumerate(graph.outputs)
        ]
        self.lower_graph(_Scope(graph, 0, outputs, live_bytes(graph)))
        program = Program(
            graph.name,
            graph.input_types,
            graph.output_types,
            tuple(self.buffers),
            tuple(self.calls),
            graph.plan.arena,
            tuple(self.constants),
            {},
            tuple(Donation(i, o) for i, o in graph.plan.donations),
            graph.input_names,
            tuple(f"out{k}" for k in range(len(graph.outputs))),
            tuple(self.controls),
            tuple(self.carries),
        )
        return program, self.loops, self.hosts

    # ---- buffers -------------------------------------------------------------------------------

    def buffer(self, buffer: Buffer) -> int:
        self.buffers.append(buffer)
        return len(self.buffers) - 1

    def place(self, v: Value, buffer: Buffer) -> None:
        self.at[v] = self.buffer(buffer)

    def lower_graph(self, scope: _Scope) -> None:
        for i, op in enumerate(scope.graph.nodes):
            self.place_results(op, scope)
            self.live = scope.live[i]
            match op:
                case Scan() | WhileLoop() | Cond():
                    self.control(op, scope.block(i))
                case Constant():
                    pass
                case _ if not is_alias(op):
                    self.call(op)

    def place_results(self, op: Op, scope: _Scope) -> None:
        if isinstance(op, Constant):
            data = np.ascontiguousarray(op.data)
            self.place(op.result, Buffer("const", len(self.constants), 0, data.nbytes))
            self.constants.append(data.tobytes())
            return
        assert scope.graph.plan is not None
        for v in op.results:
            p = scope.graph.plan.placements[scope.graph.number[v]]
            match p.kind:
                case "arena":
                    self.place(v, Buffer("arena", 0, scope.arena + p.offset, v.type.nbytes))
                case "output":
                    self.at[v] = scope.outputs[p.of]
                case "alias":
                    self.at[v] = self.at[scope.graph.values[p.of]]

    def element(self, buffer: int, loop: int, nbytes: Dim) -> int:
        """The element of a stack of them that loop ``loop`` has come to."""
        b = self.buffers[buffer]
        return self.buffer(replace(b, nbytes=nbytes, moves=(*b.moves, Move(loop, nbytes))))

    # ---- loops and branches --------------------------------------------------------------------

    def control(self, op: Scan | WhileLoop | Cond, base: Dim) -> None:
        """Calls of the regions of ``op``, and the record that says when they run."""
        number, first = len(self.controls), len(self.calls)
        self.controls.append(Loop(first, first, first, 0))  # its place; the record is known last
        match op:
            case Cond():
                record: Loop | Branch = self.branch(op, base, first)
            case Scan():
                record = self.scan(op, base, first, number)
            case WhileLoop():
                record = self.while_loop(op, base, first, number)
        self.controls[number] = record
        if len(self.calls) == first:  # there is nothing to do, and nothing in it has a record
            self.controls.pop()

    def branch(self, op: Cond, base: Dim, first: int) -> Branch:
        block = block_of(op)
        assert block is not None
        given = [self.at[v] for v in op.captures]
        results = [self.at[v] for v in op.results]
        self.region(op.then_body, base + block.arena, given, results)
        other = len(self.calls)
        self.region(op.else_body, base + block.arena, given, results)
        return Branch(first, other, len(self.calls), self.at[op.predicate])

    def scan(self, op: Scan, base: Dim, first: int, number: int) -> Loop:
        block = block_of(op)
        assert block is not None
        n = len(op.init)
        before, after = self.carry(op, block.spares, base, number)
        xs = [self.element(self.at[v], number, slice_.type.nbytes)
              for v, slice_ in zip(op.xs, op.body.inputs[n:], strict=False)]  # fmt: skip
        ys = [self.element(self.at[v], number, slice_.type.nbytes)
              for v, slice_ in zip(op.results[n:], op.body.outputs[n:], strict=True)]  # fmt: skip
        given = [*before, *xs, *(self.at[v] for v in op.captures)]
        self.region(op.body, base + block.arena, given, [*after, *ys])
        return Loop(first, first, len(self.calls), op.length, None, op.reverse)

    def while_loop(self, op: WhileLoop, base: Dim, first: int, number: int) -> Loop:
        block = block_of(op)
        assert block is not None
        before, after = self.carry(op, block.spares, base, number)
        given = [*before, *(self.at[v] for v in op.captures)]
        predicate = self.buffer(Buffer("arena", 0, base + block.predicate, 1))
        self.region(op.condition, base + block.arena, given, [predicate])
        body = len(self.calls)
        self.region(op.body, base + block.arena, given, after)
        return Loop(first, body, len(self.calls), op.max_trips, predicate)

    def carry(
        self, op: Scan | WhileLoop, spares: Sequence[Dim], base: Dim, number: int
    ) -> tuple[list[int], list[int]]:
        """What a step of the loop reads and writes of each carry."""
        before, after = [], []
        for init, result, spare in zip(op.init, op.results, spares, strict=False):
            nbytes = init.type.nbytes
            k = len(self.carries)
            own = self.buffer(Buffer("arena", 0, base + spare, nbytes))
            self.live = self.live + nbytes
            self.carries.append(Carry(number, self.at[init], self.at[result], own, nbytes))
            before.append(self.buffer(Buffer("before", k, 0, nbytes)))
            after.append(self.buffer(Buffer("after", k, 0, nbytes)))
        return before, after

    def region(
        self, graph: Graph, arena: Dim, inputs: Sequence[int], outputs: Sequence[int]
    ) -> None:
        self.at.update(zip(graph.inputs, inputs, strict=True))
        outer = self.live
        live = [outer + own for own in live_bytes(graph, outputs=False)]
        self.lower_graph(_Scope(graph, arena, outputs, live))
        self.live = outer

    # ---- calls ---------------------------------------------------------------------------------

    def call(self, op: Op) -> None:
        match op:
            case Fused(form="epilogue"):
                self.call_epilogue(op)
            case Fused():
                self.call_loop(op)
            case HostCall():
                self.call_host(op)
            case _:
                args = [self.at[v] for v in (*op.operands, *op.results)]
                self.calls.append(self.kernel_call(op, args, op.locs))

    def kernel_call(self, op: Op, args: Sequence[int], locs: frozenset[Location]) -> Call:
        """The call of the hand-written kernel that covers ``op``."""
        entry = self.target.kernels.get(op.name)
        k: KernelCall | None = entry(op) if entry is not None else None
        if k is None or k.pack is not None:
            operands = ", ".join(str(v.type) for v in op.operands)
            raise UnsupportedError(
                f"{op.name}({operands}): target {self.target.name} has no kernel for it",
                location_text(op.locs),
            )
        return Call(
            k.kernel, tuple(args), k.dims, k.rows, k.cols, k.row_grain, k.col_grain,
            k.scratch, k.work, None, op.name, locs, op.flops(), op.traffic(),
            self.live,
        )  # fmt: skip

    def call_loop(self, op: Fused) -> None:
        kernel = lower_fused(op)
        inside = "+".join(dict.fromkeys(o.name for o in op.body.nodes if o.kind != "source"))
        self.calls.append(
            Call(
                self.name_of(kernel, op.form),
                self.loop_args(op, kernel),
                kernel.dims,
                kernel.rows,
                kernel.cols,
                kernel.row_grain,
                kernel.col_grain,
                kernel.scratch,
                kernel.work,
                None,
                inside,
                op.locs,
                op.flops(),
                op.traffic(),
                self.live,
                _shares(op),
            )
        )

    def call_epilogue(self, op: Fused) -> None:
        heavy = op.body.nodes[0]
        outer = dict(zip(op.body.inputs, op.inputs, strict=True))
        kernel = lower_fused(op)
        assert kernel.accumulator is not None
        into = self.at[op.results[kernel.accumulator]]
        call = self.kernel_call(
            heavy, [*(self.at[outer[v]] for v in heavy.operands), into], op.locs
        )
        epilogue = Epilogue(self.name_of(kernel, op.form), self.loop_args(op, kernel), kernel.dims)
        rest = "+".join(dict.fromkeys(o.name for o in op.body.nodes[1:] if o.kind != "source"))
        self.calls.append(
            replace(
                call,
                epilogue=epilogue,
                op=f"{heavy.name}+{rest}",
                flops=op.flops(),
                traffic=op.traffic(),
                shares=_shares(op),
            )
        )

    def call_host(self, op: HostCall) -> None:
        kernel = HostKernel(op.ref, [v.type for v in op.operands], [v.type for v in op.results])
        name = f"host{len(self.hosts)}"
        self.hosts[name] = kernel
        args = tuple(self.at[v] for v in (*op.operands, *op.results))
        call = Call(name, args, kernel.dims, op=op.name, locs=op.locs)
        self.calls.append(replace(call, traffic=op.traffic(), live=self.live))

    def loop_args(self, op: Fused, kernel: LoopKernel) -> tuple[int, ...]:
        return tuple(
            self.at[op.inputs[b.index] if b.kind == "operand" else op.results[b.index]]
            for b in kernel.buffers
        )

    def name_of(self, kernel: LoopKernel, form: str) -> str:
        """A name for a generated kernel: equal loops, whatever their sizes, share one."""
        code = loop_text(kernel, self.target.isa)
        name = self.names.get(code)
        if name is None:
            name = self.names[code] = f"loop{len(self.names)}_{form}"
            self.loops[name] = kernel
            self.begin(code)
        return name


# Symbols take this value where work is shared out among lines.
_TYPICAL = 64


def _shares(op: Fused) -> tuple[tuple[Location, int], ...]:
    """How much of the region each source line made: by arithmetic, and a little for each op."""
    if len(op.locs) < 2:
        return ()
    weight: dict[Location, float] = dict.fromkeys(op.locs, 0.0)
    for inner in op.body.nodes:
        flops = inner.flops()
        work = 1 + value(flops, dict.fromkeys(symbols(flops), _TYPICAL))
        own = inner.locs & op.locs or op.locs
        for loc in own:
            weight[loc] += work / len(own)
    total = sum(weight.values()) or 1.0
    return tuple((loc, round(1000 * weight[loc] / total)) for loc in sorted(weight))
