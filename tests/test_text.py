"""Text: what is printed parses to an equal graph and prints again alike; errors point."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden import Golden
from hypothesis import given
from hypothesis import strategies as st
from op_cases import CASES, Case, make_graph
from pass_harness import CPU, resnet9_step

from nir.errors import ParseError, UnsupportedError
from nir.ir.dim import Dim, evaluate, floordiv, symbol
from nir.ir.graph import Builder, Graph, MemoryPlan, Placement
from nir.ir.interp import run
from nir.ir.lexer import tokenize
from nir.ir.location import Location
from nir.ir.parser import _Parser
from nir.ir.printer import dim_text, type_text
from nir.ir.text import MissingFunction, parse_graph, print_graph, read_graph, write_graph
from nir.ir.types import DTYPES, TensorType, bf16, f16, f32, f64, i64
from nir.ops import (
    Add,
    Concat,
    Constant,
    Full,
    HostCall,
    LayerNorm,
    Matmul,
    Pad,
    Relu,
    Reshape,
    Scan,
    Sum,
)  # fmt: skip
from nir.passes.pipeline import run_pipeline

B, S = symbol("B"), symbol("S")


def round_trip(graph: Graph) -> str:
    """Print, parse, compare, print again."""
    arrays: dict[str, np.ndarray] = {}
    text = print_graph(graph, arrays)
    again = parse_graph(text, arrays)
    assert again == graph
    assert [op.locs for op in again.nodes] == [op.locs for op in graph.nodes]
    assert print_graph(again) == text
    return text


def same_text(graph: Graph) -> None:
    """Graphs that hold a Python function print the same again, but are not equal."""
    arrays: dict[str, np.ndarray] = {}
    text = print_graph(graph, arrays)
    assert print_graph(parse_graph(text, arrays)) == text


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_every_sample_of_every_op_round_trips(case: Case) -> None:
    (same_text if case.op is HostCall else round_trip)(make_graph(case))


def small(attribute: Any = 0.5, locations: frozenset[Location] | None = None) -> Graph:
    b = Builder("small")
    (y,) = b.emit(Full(attribute, (2,), f32), locations or frozenset({Location("a.py", 1)}))
    return b.build([y])


def test_the_text_of_the_design() -> None:
    b = Builder("mlp")
    x, w = b.input(TensorType(f32, (B, 784)), "x"), b.input(TensorType(f32, (784, 100)), "w1")
    at = frozenset({Location("model.py", 14), Location("lib/my file.py", 3)})
    (h,) = b.emit(Matmul(x, w), at)
    (y,) = b.emit(Relu(h), frozenset({Location("model.py", 15)}))
    assert round_trip(b.build([y], donate=[(0, 0)])) == (
        "graph @mlp(%x: f32[B,784], %w1: f32[784,100]) -> f32[B,100] donate[0->0] {\n"
        '  %0 = matmul(%x, %w1) : f32[B,100]   @ "lib/my file.py":3, model.py:14\n'
        "  %1 = relu(%0) : f32[B,100]          @ model.py:15\n"
        "  return %1\n"
        "}\n"
    )


def test_a_planned_training_step_round_trips() -> None:
    step = resnet9_step()
    round_trip(step)
    text = round_trip(run_pipeline(step, CPU))
    assert " in arena[" in text and " in output[" in text


def test_golden_text(golden: Golden) -> None:
    # One graph with every piece of the grammar in it; see the file to learn the text.
    golden("text/everything", everything())


def everything() -> Graph:
    b = Builder("every thing")
    b.locs = frozenset({Location("model.py", 7)})
    x = b.input(TensorType(f32, (B, 4)), "x")
    odd = b.input(TensorType(f32, (B, 4)), "layers[0].weight")
    (big,) = b.emit(Constant(np.arange(20, dtype=np.float32).reshape(5, 4)))
    (tiny,) = b.emit(Constant(np.array([[0.1, -0.0, np.inf, np.nan]], np.float32)))
    (size,) = b.emit(Full(B * 2 + 1, (), f32))
    (both,) = b.emit(Concat((x, odd), 0))
    (pad,) = b.emit(Pad(both, (1, 0), (0, 2), -float("inf")))
    (flat,) = b.emit(Reshape(both, (8 * B,)))
    called = b.emit(HostCall((flat,), np.sort, (flat.type, TensorType(i64, ()))))
    body = Builder("body")
    carry, step = (body.input(TensorType(f32, (4,)), n) for n in ("carry", "step"))
    body.locs = b.locs
    (total,) = body.emit(Add(carry, step))
    (start,) = b.emit(Sum(x, (0,)))
    last, steps = b.emit(Scan((start,), (big,), (), body.build([total, total]), 5, True))
    (normal,) = b.emit(LayerNorm(x, None, None, 1e-5))
    outputs = [tiny, size, pad, *called[:1], last, steps, normal]
    graph = b.build(outputs, donate=[(0, 6)])
    number = graph.number
    plan = MemoryPlan(
        64 * B + 128,
        {
            number[both]: Placement("arena", 64 * B),
            number[flat]: Placement("alias", 0, number[both]),
            number[pad]: Placement("output", 0, 2),
            number[last]: Placement("arena", 0),
            number[normal]: Placement("alias", 16, number[x]),
        },
        ((0, 6),),
    )
    return graph.with_(plan=plan)


def test_host_functions_keep_their_names_and_refuse_to_run() -> None:
    b = Builder()
    (y,) = b.emit(HostCall((b.input(TensorType(f32, (2,))),), np.sort, (TensorType(f32, (2,)),)))
    graph = b.build([y])
    same_text(graph)
    again = parse_graph(print_graph(graph))
    fn = again.nodes[0].attributes["fn"]
    assert isinstance(fn, MissingFunction)
    with pytest.raises(UnsupportedError, match=r"numpy\.sort is not part of a graph's text"):
        run(again, [np.zeros(2, np.float32)])


# ---- attributes, sizes, names --------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [0, -3, 1 << 40, 0.0, -0.0, 1.0, -2.5, 0.1, 1e300, 5e-324, -1e-7, float("inf"), -float("inf"),
     float("nan"), True, False, B, 4 * B - 3, -B],
)  # fmt: skip
def test_scalars_are_exact(value: Any) -> None:
    text = round_trip(small(value))
    again = parse_graph(text).nodes[0].attributes["value"]
    assert type(again) is type(value)
    assert repr(again) == repr(value)


@given(st.floats(allow_nan=True))
def test_floats_are_exact(value: float) -> None:
    round_trip(small(value))


@pytest.mark.parametrize("kind", DTYPES.values(), ids=str)
def test_inline_arrays_are_exact(kind: Any) -> None:
    rng = np.random.default_rng(0)
    for shape in ((), (0, 3), (4, 4)):
        count = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        data = np.frombuffer(rng.bytes(count), kind.numpy).reshape(shape)
        if kind.kind == "bool":
            data = rng.random(shape) < 0.5
        b = Builder()
        b.locs = frozenset({Location("a.py", 1)})
        (c,) = b.emit(Constant(np.asarray(data)))
        graph = b.build([c])
        text = round_trip(graph)
        assert "sha256" not in text
        assert parse_graph(text).nodes[0].attributes["data"].tobytes() == data.tobytes()


def test_special_floats_of_arrays() -> None:
    bits = [0x7FC00000, 0xFFC00000, 0x7F800001, 0x7F800000, 0xFF800000, 0x80000000, 1, 0x7F7FFFFF]
    data = np.array(bits, np.uint32).view(np.float32)
    b = Builder()
    (c,) = b.emit(Constant(data))
    text = round_trip(b.build([c]))
    shown = "[nan, 0xffc00000, 0x7f800001, inf, -inf, -0.0, 1e-45, 3.4028235e+38]"
    assert f"array(f32[8], {shown})" in text


@pytest.mark.parametrize("kind", [f32, f64, f16, bf16, i64], ids=str)
def test_large_arrays_live_in_a_side_file(kind: Any, tmp_path: Path) -> None:
    data = np.arange(300).reshape(3, 100).astype(kind.numpy)
    b = Builder()
    (c,) = b.emit(Constant(data))
    graph = b.build([c])
    round_trip(graph)
    path = tmp_path / "g.nir"
    write_graph(path, graph, header="two\nlines")
    assert path.read_text().startswith("# two\n# lines\ngraph @graph(")
    assert read_graph(path) == graph
    first = (tmp_path / "g.nir.npz").read_bytes()
    write_graph(path, graph)
    assert (tmp_path / "g.nir.npz").read_bytes() == first
    with pytest.raises(ParseError, match="expected a hash that the side file has"):
        parse_graph(path.read_text())


def test_a_side_file_of_another_graph_is_refused(tmp_path: Path) -> None:
    data = np.arange(100, dtype=np.float32)
    b = Builder()
    (c,) = b.emit(Constant(data))
    path = tmp_path / "g.nir"
    write_graph(path, b.build([c]))
    with np.load(tmp_path / "g.nir.npz") as arrays:
        (digest,) = arrays.files
    np.savez(tmp_path / "g.nir.npz", **{digest: data + 1})
    with pytest.raises(ParseError, match="expected the hash of the float32"):
        read_graph(path)
    write_graph(path, small())
    assert not (tmp_path / "g.nir.npz").exists()


_NAMES = st.sampled_from(["B", "S", "f32", "nan", "true", "_x", "größe", "a1"])


def dims() -> st.SearchStrategy[Dim]:
    def grow(inner: st.SearchStrategy[Dim]) -> st.SearchStrategy[Dim]:
        return st.one_of(
            st.tuples(inner, inner).map(lambda p: p[0] + p[1]),
            st.tuples(inner, inner).map(lambda p: p[0] * p[1]),
            st.tuples(inner, st.integers(1, 9)).map(lambda p: floordiv(p[0], p[1])),
            inner.map(lambda d: -d),
        )

    return st.recursive(st.one_of(st.integers(-9, 9), _NAMES.map(symbol)), grow, max_leaves=6)


@given(dims())
def test_sizes_parse_to_equal_sizes(d: Dim) -> None:
    parser = _Parser(dim_text(d), {}, "")
    assert parser.dim() == d
    assert parser.token.kind == "end"


@given(dims(), st.integers(0, 9))
def test_sizes_evaluate_as_python_does(d: Dim, n: int) -> None:
    names = ["B", "S", "f32", "nan", "true", "_x", "größe", "a1"]
    text = dim_text(d).replace("^", "**")
    for name in names[2:]:
        text = text.replace(f'$"{name}"', f"_{names.index(name)}")
    text = text.replace('$"gr\\u00f6\\u00dfe"', "_6").replace("_x", "_5").replace("a1", "_7")
    env = {name: n + i for i, name in enumerate(names)}
    places = {"B": env["B"], "S": env["S"], **{f"_{i}": env[x] for i, x in enumerate(names)}}
    assert evaluate(d, env) == eval(text, places)


@pytest.mark.parametrize(
    "t",
    [
        TensorType(f32, ()),
        TensorType(f32, (B, floordiv(S + 3, 4)), "panel16"),
        TensorType(bf16, (3,), "", "cuda"),
        TensorType(i64, (symbol("inf"),), "panel16", "cuda:1"),
    ],
)
def test_types(t: TensorType) -> None:
    parser = _Parser(type_text(t) + " @ a.py:1", {}, "")
    assert parser.type() == t
    assert parser.next().kind == "at"


def test_names_are_unique_and_may_be_odd() -> None:
    b = Builder("a graph, <lambda>")
    names = ["x", "x", "0", "", "layers[0].weight", 'say "hi"\n', "x'", "π"]
    values = [b.input(TensorType(f32, (2,)), n) for n in names]
    b.input_names = names
    (y,) = b.emit(Concat(tuple(values), 0))
    text = round_trip(b.build([y]))
    assert 'graph @"a graph, <lambda>"(' in text
    assert "%x: f32[2], %x'" in text and "%0': f32[2]" in text
    assert list(parse_graph(text).input_names[4:6]) == names[4:6]


@given(st.text(min_size=1, max_size=12), st.integers(0, 10**9))
def test_any_file_name_is_a_location(file: str, line: int) -> None:
    graph = small(locations=frozenset({Location(file, line), Location("b.py", 2)}))
    round_trip(graph)


def test_ops_without_locations_get_their_line_of_the_file() -> None:
    text = "graph @g(%x: f32[2]) -> f32[2] {\n  %y = relu(%x) : f32[2]\n  return %y\n}\n"
    assert parse_graph(text).nodes[0].locs == frozenset()
    assert parse_graph(text, file="g.nir").nodes[0].locs == {Location("g.nir", 2)}


# ---- errors ------------------------------------------------------------------------------------

_GOOD = """graph @g(%x: f32[B,2]) -> f32[B,2] {
  %0 = relu(%x) : f32[B,2]                     @ a.py:1
  %1 = concat(%0, %x) {axis=0} : f32[2*B,2]    @ a.py:2
  %2 = add(%0, %x) : f32[B,2]                  @ a.py:3
  return %2
}
"""

_BAD: list[tuple[str, str, int, int, str]] = [
    ("graph @g", "grph @g", 1, 1, "expected 'graph', got 'grph'"),
    ("@g(", "g(", 1, 7, "expected a name such as @main, got 'g'"),
    ("(%x:", "(x:", 1, 10, "expected an input such as %x, got 'x'"),
    ("(%x: f32[B,2])", "(%x: f32)", 1, 17, "expected '[' of a type's shape, got ')'"),
    ("(%x: f32", "(%x: float", 1, 14, "expected a dtype: f64, f32, f16, bf16"),
    ("[B,2])", "[B,])", 1, 20, "expected a size such as 4*B+1, got ']'"),
    ("[B,2])", "[B 2])", 1, 20, "expected ',' or ']', got '2'"),
    ("-> f32[B,2]", "-> f32[B,3]", 1, 27, "expected the types that return gives, f32[B,2], got"),
    ("relu(", "rleu(", 2, 8, "expected the name of an op, got 'rleu'"),
    ("relu(%x)", "relu(%q)", 2, 13, "expected a value defined above, got '%q'"),
    ("relu(%x)", "relu(%x, %x)", 2, 15, "expected ')', got ','"),
    ("%0 = relu", "%x = relu", 2, 3, "expected a new name, got '%x'"),
    ("a.py:1", "", 2, 49, "expected a location such as model.py:16, got the end of the line"),
    ("{axis=0}", "{axis=}", 3, 29, "expected a size such as 4*B+1, got '}'"),
    ("{axis=0}", "{ax=0}", 3, 24, "expected an attribute of concat (axis), each once, got 'ax'"),
    ("{axis=0}", "{axis=0, axis=1}", 3, 32, "expected an attribute of concat (axis), each once"),
    ("{axis=0}", "", 3, 8, "expected attributes axis of concat, got 'concat'"),
    (" : f32[2*B,2]", " : (f32[2], f32[2])", 3, 34, "expected 1 types, one for each result, not 2"),
    (" : f32[2*B,2]", " : f32[B//0]", 3, 39, "expected a positive divisor, got '//'"),
    ("add(%0, %x) :", "add(%0, %x)", 4, 20, "expected ':', got 'f32'"),
    ("return %2", "", 6, 1, "expected an op, or return, got '}'"),
    ("return %2\n}", "return %2", 6, 1, "expected ',', got the end"),
    ("}\n", "}\n;", 7, 1, "expected a token, got ';'"),
    ("}\n", "}\ngraph", 7, 1, "expected the end, got 'graph'"),
    (") : f32[B,2]                  @ a.py:3", ") : f32[B,2] in arena[0]", 4, 34,
     "expected arena[...] in the head"),
]  # fmt: skip


@pytest.mark.parametrize("old, new, line, column, message", _BAD, ids=[m[4] for m in _BAD])
def test_parse_errors_point_at_the_place(
    old: str, new: str, line: int, column: int, message: str
) -> None:
    assert parse_graph(_GOOD)
    assert old in _GOOD
    with pytest.raises(ParseError) as caught:
        parse_graph(_GOOD.replace(old, new, 1))
    shown = str(caught.value)
    assert message in shown
    head, _, pointer = shown.split("\n")
    assert head.startswith(f"line {line}, column {column}: ")
    assert len(pointer) == len("  ") + column and pointer.endswith("^")


@given(st.data())
def test_damaged_text_gives_parse_errors_only(data: st.DataObject) -> None:
    text = print_graph(everything())
    at = data.draw(st.integers(0, len(text) - 1))
    length = data.draw(st.integers(0, 9))
    junk = data.draw(st.text(alphabet='%@{}[]():=,"+-*/^ \nax0_.#$', max_size=6))
    with contextlib.suppress(ParseError):
        parse_graph(text[:at] + junk + text[at + length :])


# ---- determinism -------------------------------------------------------------------------------

_SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from pass_harness import CPU, resnet9_step
from nir.ir.text import print_graph
from nir.passes.pipeline import run_pipeline
step = resnet9_step()
print(print_graph(step) + print_graph(run_pipeline(step, CPU)), step.key)
"""


def test_text_is_the_same_for_every_run_and_hash_seed() -> None:
    script = _SCRIPT.format(tests=str(Path(__file__).parent))
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            cwd=Path(__file__).parent.parent,
        ).stdout
        for seed in ("0", "1", "77")
    }
    assert len(outputs) == 1


def test_tokens_cover_the_text() -> None:
    tokens = tokenize(_GOOD)
    spans = [_GOOD[t.start : t.end] for t in tokens[:-1]]
    assert [t.text for t in tokens[:-1]] == spans
