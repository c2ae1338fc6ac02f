"""Inspection: structural diff, dumps, and the text of programs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden import Golden
from pass_harness import CPU, graph_of, resnet9_loss

from nir.ir import dump
from nir.ir.diff import diff
from nir.ir.dim import symbol
from nir.ir.dump import Dumper
from nir.ir.graph import Builder, Graph, MemoryPlan, Placement
from nir.ir.location import Location
from nir.ir.printer import array_digest
from nir.ir.program import Buffer, Call, Donation, Epilogue, Program
from nir.ir.text import parse_graph, print_program, read_graph
from nir.ir.types import TensorType, f32
from nir.ops import Neg
from nir.passes.pipeline import run_pipeline

B = symbol("B")


def mlp(act: Callable[[Any], Any] = lambda x: x.relu(), extra: bool = False) -> Graph:
    def forward(x: Any, w: Any, v: Any) -> Any:
        h = act(x.matmul(w))
        return (h.matmul(v) + 1.0).exp() if extra else h.matmul(v).exp()

    return graph_of(forward, "f32[B,4]", "f32[4,8]", "f32[8,2]")


def renamed(graph: Graph) -> Graph:
    """The same structure, with new values, names and locations."""
    b = Builder("other")
    b.locs = frozenset({Location("elsewhere.py", 99)})
    inputs = [b.input(t, f"renamed{i}") for i, t in enumerate(graph.input_types)]
    for _ in range(5):
        b.value(TensorType(f32))
    return b.build(b.inline(graph, inputs))


def test_equal_graphs_do_not_differ() -> None:
    assert diff(mlp(), mlp()) == []
    assert diff(mlp(), renamed(mlp())) == []


def test_another_op() -> None:
    assert diff(mlp(), mlp(lambda x: x.tanh())) == [
        "- %1 = relu(%0) : f32[B,8]",
        "~ %2 = matmul(%1, %x2) : f32[B,2]",
        "  %2 = matmul(%1, %x2) : f32[B,2]",
        "+ %1 = tanh(%0) : f32[B,8]",
    ]


def test_an_inserted_op_is_the_only_difference_reported() -> None:
    lines = diff(mlp(), mlp(extra=True))
    assert [line[:1] for line in lines] == ["~", " ", "+", "+"]
    assert "exp(" in lines[0] and "full(" in lines[2] and "add(" in lines[3]


def test_attributes_inputs_outputs_and_order() -> None:
    a = graph_of(lambda x: [x.sum((0,)), x.sum((1,))], "f32[4,4]")
    b = graph_of(lambda x: [x.sum((0,)), x.sum((0,))], "f32[4,4]")
    assert [line[0] for line in diff(a, b)] == ["-", "+", "-", "+"]
    swapped = a.with_(outputs=a.outputs[::-1])
    assert diff(a, swapped) == ["- return %0, %1", "+ return %1, %0"]
    reordered = a.with_(nodes=a.nodes[::-1])
    assert diff(a, reordered)[0] == "~ the same ops in another order, first:"
    wider = graph_of(lambda x: [x.sum((0,)), x.sum((1,))], "f32[4,5]")
    assert diff(a, wider)[:2] == ["- input %x0: f32[4,4]", "+ input %x0: f32[4,5]"]
    assert len(diff(a, wider, limit=3)) == 4


def test_plans_and_donations() -> None:
    a = graph_of(lambda x: x.exp().exp(), "f32[B]")
    places = {1: Placement("arena", 0), 2: Placement("output")}
    plan = a.with_(plan=MemoryPlan(64 * B, places))
    other = a.with_(plan=MemoryPlan(64 * B, {**places, 1: Placement("arena", 64)}), donate=[(0, 0)])
    assert diff(a, plan) == ["~ no memory plan in the first graph"]
    assert diff(plan, other) == [
        "~ donate [] and [(0, 0)]",
        "~ %0 in arena[0] and %0 in arena[64]",
    ]


@pytest.mark.parametrize("i", range(0, 250, 23))
def test_one_inserted_op_is_found_in_a_large_graph(i: int) -> None:
    graph = resnet9_loss()
    v = graph.nodes[i % len(graph.nodes)].results[0]

    floating = v.type.dtype.is_float and v not in graph.outputs
    reader = next(iter(graph.users[v]), None) if floating else None
    if reader is None:
        pytest.skip("nothing reads this value")
    b = Builder()
    b._next = 10_000
    b.locs = reader.locs
    (negated,) = b.emit(Neg(v))
    changed = reader.map_operands(lambda x: negated if x is v else x)
    at = graph.nodes.index(reader)
    nodes = [*graph.nodes[:at], *b.nodes, changed, *graph.nodes[at + 1 :]]
    lines = diff(graph, graph.with_(nodes=nodes))
    assert [line[0] for line in lines] == ["~", " ", "+"]
    assert reader.name + "(" in lines[0] and "neg(" in lines[2]


# ---- dumps -------------------------------------------------------------------------------------


def test_dumps_are_numbered_readable_and_deterministic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = []
    for run in ("first", "second", "first"):
        monkeypatch.setattr(dump, "_next_number", {})
        monkeypatch.setenv("NIR_DUMP", str(tmp_path / run))
        for graph in (mlp(), mlp(extra=True)):
            dumper = Dumper.from_flags(graph.name)
            assert dumper is not None
            lowered = run_pipeline(graph, CPU, dumper)
        folders = sorted((tmp_path / run).iterdir())
        assert [f.name for f in folders] == ["000-g", "001-g"]
        files = sorted(folders[1].glob("*.nir"))
        assert [f.name[:4] for f in files] == [f"{i:03d}-" for i in range(len(files))]
        assert files[0].name == "000-traced.nir" and files[-1].name.endswith("-plan_memory.nir")
        assert read_graph(files[-1]) == lowered
        assert files[0].read_text().startswith("# 6 ops: 1 add, 1 exp, 1 full, 2 matmul, 1 relu\n")
        contents.append({f.name: f.read_bytes() for f in files})
        timings = (folders[1] / "timings.tsv").read_text().splitlines()
        assert [line.split("\t")[0] for line in timings[1:]] == [f.name for f in files]
        assert all(float(line.split("\t")[2]) >= 0 for line in timings[1:])
    assert contents[0] == contents[1] == contents[2]


def test_large_constants_of_dumps(tmp_path: Path) -> None:
    data = np.arange(100, dtype=np.float32)
    graph = parse_graph(
        "graph @c() -> f32[100] {\n"
        "  %0 = constant() {data=array(f32[100], sha256:@)} : f32[100] @ a.py:1\n"
        "  return %0\n}\n".replace("@)", array_digest(data) + ")"),
        {array_digest(data): data},
    )
    path = Dumper(tmp_path, "odd name/with: things").write("traced", graph, seconds=0.5)
    assert path.parent.name == "000-odd_name_with__things"
    assert read_graph(path) == graph
    assert "000-traced.nir\t1\t500.000" in (path.parent / "timings.tsv").read_text()


def test_no_dump_without_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NIR_DUMP", raising=False)
    assert Dumper.from_flags("g") is None


# ---- programs ----------------------------------------------------------------------------------


def test_text_of_a_program(golden: Golden, tmp_path: Path) -> None:
    x, w = TensorType(f32, (B, 784)), TensorType(f32, (784, 10))
    call = Call(
        "nir_matmul_f32", (0, 1, 3), (B, 10, 784), B, 10, 14, 16, 1024, 7840 * B,
        Epilogue("nir_loop_1f", (2,), (10,)), "matmul", frozenset({Location("model.py", 14)}),
    )  # fmt: skip
    copy = Call("nir_copy", (3, 4), op="reshape")
    program = Program(
        "step",
        (x, w),
        (TensorType(f32, (B, 10)),),
        (
            Buffer("input", 0, 0, 3136 * B),
            Buffer("input", 1, 0, 31360),
            Buffer("const", 0, 64, 40),
            Buffer("arena", 0, 64 * B, 40 * B),
            Buffer("output", 0, 0, 40 * B),
        ),
        (call, copy),
        128 * B,
        (b"\0" * 104,),
        {"nir_loop_1f": {"avx512": b"abc", "avx2": b"ab"}},
        (Donation(0, 0),),
        ("x", "layers[0].weight"),
    )
    golden("text/program.txt", print_program(program))
    path = Dumper(tmp_path, "p").write_program(program)
    assert path.read_text() == print_program(program)
