"""Planned graph -> Program: every op a call, every value a buffer, regions as control records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from nir.blobs import loop_text
from nir.codegen import LoopKernel, lower_fused
from nir.errors import UnsupportedError
from nir.frozen import Frozen, replace
from nir.ir.dim import Dim, symbols, value
from nir.ir.graph import Graph, location_text
from nir.ir.location import Location
from nir.ir.op import Op, Value
from nir.ir.program import (
    Bands,
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
from nir.ops import Banded, Cond, Constant, HostCall, Scan, WhileLoop
from nir.ops.banded import layout
from nir.ops.fused import Fused
from nir.passes.blocks import block_of
from nir.passes.memory import is_alias, live_bytes
from nir.runtime import HostKernel
from nir.targets.kernel_call import KernelCall


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
    controls: list[Loop | Branch | Bands] = field(default_factory=list)
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
                case Banded():
                    self.bands(op)
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

    def bands(self, op: Banded) -> None:
        """The calls of a chain, and the record that says how they take turns."""
        plan, first = layout(op.body, op.lines), len(self.calls)
        self.at.update(
            (v, self.at[outer]) for v, outer in zip(op.body.inputs, op.inputs, strict=True)
        )
        last = op.body.outputs[0]
        for inner in op.body.nodes:
            number = len(self.calls)
            if is_alias(inner):
                self.at[inner.result] = self.at[inner.operands[0]]
                continue
            if inner.result is last:
                self.at[last] = self.at[op.result]
            else:
                stage, offset = plan.stages[number - first], plan.offsets[number - first]
                lines = Buffer("lines", number, offset, stage.kept * stage.bytes)
                self.place(inner.result, lines)
            self.call(inner)
            call = self.calls[-1]
            self.calls[-1] = replace(call, scratch=plan.memory + call.scratch)
        self.controls.append(Bands(first, len(self.calls), op.lines, plan.stages))

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
            self.live, (), k.even,
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
