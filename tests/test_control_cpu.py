"""Scan, while_loop and cond as loops and branches of compiled programs, beside the interpreter."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runtime_harness as h
from backend_harness import ISAS, close, compiled, flushed, outputs, reference, same_bits

import nir
from nir.errors import DTypeError, IndexRangeError, NotDifferentiable, ShapeError
from nir.frontend import pytree
from nir.ir.graph import Graph
from nir.ir.interp import run
from nir.ir.program import Branch, Loop
from nir.ir.text import parse_graph, print_graph
from nir.ir.verify import verify
from nir.passes.pipeline import run_pipeline
from nir.runtime import get_num_threads, load, set_num_threads
from nir.targets import cpu


@dataclass(frozen=True)
class Case:
    """A function, the types of its arguments for a dtype F, and sizes to run it with."""

    fn: Callable[..., Any]
    types: tuple[str, ...]
    sizes: tuple[dict[str, int], ...] = ({},)

    def graph(self, dtype: str) -> Graph:
        return nir.trace(self.fn, *(nir.spec(t.replace("F", dtype)) for t in self.types))


def rnn(x, h, w):  # carries of two shapes, ys, a captured weight
    total = nir.zeros(h.shape[-1:], dtype=h.dtype)

    def step(carry, xt):
        h, total = carry
        h = (xt + h @ w).tanh()
        return (h, total + h.sum(0)), (h * 2, xt - h)

    return nir.scan(step, (h, total), x)


def backwards(x, h, w):
    def step(h, xt):
        h = (xt + h @ w).sigmoid()
        return h, h

    return nir.scan(step, h, x, reverse=True)


def counted(x):  # no xs: the carry counts
    def step(carry, _):
        x, n = carry
        return (x * 0.5 + n.to(x.dtype), n + 1), x.sum()

    return nir.scan(step, (x, nir.full((), 0, dtype="i64")), length=5)


def swapped(x, y):  # carries that only change places, a carry that stays, and one as it came
    def step(carry, t):
        a, b, c = carry
        return (b, a, c), (a, t)

    return nir.scan(step, (x[0], y[0], x[0] * 3), x)


def nested(x, h, w):  # scan in cond in scan, with captures from each level
    def row(h, xt):
        def inner(c, v):
            c = (c * w[0] + v).tanh()
            return c, c + h

        last, ys = nir.cond(
            (xt.sum() > 0),
            lambda: nir.scan(inner, h, nir.stack([xt, xt * 2, h])),
            lambda: (h - xt, nir.stack([h, h, xt])),
        )
        return last, ys.sum(0)

    return nir.scan(row, h, x)


def collatz(n, x):  # the number of steps is in the data
    def step(carry):
        n, steps, x = carry
        return nir.where(n % 2 == 0, n // 2, 3 * n + 1), steps + 1, x * 1.25

    return nir.while_loop(lambda c: c[0] > 1, step, (n, nir.full((), 0, dtype="i64"), x))


def newton(a):  # stops at max_trips, or before
    def step(x):
        return 0.5 * (x + a / x)

    return nir.while_loop(lambda x: ((x * x - a).abs() > 0.3).any(), step, a, max_trips=12)


def choose(p, x, w):
    big = nir.cond(p > 0, lambda v: (v @ w).exp(), lambda v: v * 2 - 1, x)
    return big + 1


def deep(x):  # four loops inside each other
    def loop(k, v):
        if k == 0:
            return v * 0.9 + 0.1
        return nir.scan(lambda c, _: (loop(k - 1, c), None), v, length=2)[0]

    return loop(4, x)


def in_loop(x, w):  # a scan in a while loop
    def step(carry):
        n, c = carry
        c, _ = nir.scan(lambda c, v: ((c + v) @ w * 0.5, None), c, x)
        return n + 1, c

    return nir.while_loop(lambda c: c[0] < 3, step, (nir.full((), 0, dtype="i64"), x[0]), 5)


LENGTHS = tuple({"T": t, "B": b} for t, b in ((0, 3), (1, 2), (2, 3), (7, 5)))
CASES = {
    "rnn": Case(rnn, ("F[T,B,6]", "F[B,6]", "F[6,6]"), LENGTHS),
    "rnn of fixed sizes": Case(rnn, ("F[35,4,20]", "F[4,20]", "F[20,20]")),
    "wide rnn": Case(rnn, ("F[5,80,64]", "F[80,64]", "F[64,64]")),
    "backwards": Case(backwards, ("F[T,B,6]", "F[B,6]", "F[6,6]"), LENGTHS),
    "counted": Case(counted, ("F[B,3]",), ({"B": 1}, {"B": 9})),
    "swapped": Case(swapped, ("F[T,3]", "F[T,3]"), ({"T": 1}, {"T": 4}, {"T": 5})),
    "nested": Case(nested, ("F[T,4]", "F[4]", "F[4,4]"), ({"T": 0}, {"T": 6})),
    "newton": Case(newton, ("F[B]",), ({"B": 1}, {"B": 70})),
    "choose": Case(choose, ("F[]", "F[B,5]", "F[5,5]"), ({"B": 2}, {"B": 80})),
    "deep": Case(deep, ("F[B]",), ({"B": 3},)),
    "in a loop": Case(in_loop, ("F[T,3,4]", "F[4,4]"), ({"T": 1}, {"T": 3})),
}


def derived(case: Case, order: int) -> Case:
    """The case of the gradients of a sum of what ``case`` gives."""
    if order == 0:
        return case

    def loss(*args):
        found, _ = pytree.tensors(case.fn(*args))
        return sum((y * y).sum() + y.sum() for y in found if y.dtype.is_float)

    slope = nir.grad(loss, argnums=tuple(range(len(case.types))))
    return derived(Case(slope, case.types, case.sizes), order - 1)


def arrays(graph: Graph, sizes: dict[str, int], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    out = []
    for t in graph.input_types:
        shape = tuple(sizes.get(str(d), d) for d in t.shape)
        # Weights that do not let rounding grow from step to step.
        scale = 0.8 * max(shape[0], 1) ** -0.5 if t.ndim == 2 else 1
        data = rng.standard_normal(shape) * scale + (t.ndim < 2)
        out.append(np.asarray(data).astype(t.dtype.numpy))
    return out


def agrees(graph: Graph, inputs: list[np.ndarray], isa: str = ISAS[-1]) -> list[np.ndarray]:
    got = outputs(compiled(graph, isa), inputs)
    wrong = close(graph, inputs, reference(graph, inputs), [flushed(y) for y in got])
    assert wrong is None, wrong
    return got


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = get_num_threads()
    yield
    set_num_threads(before)


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("name", CASES)
def test_a_program_computes_what_the_interpreter_does(name: str, dtype: str) -> None:
    graph = CASES[name].graph(dtype)
    for sizes in CASES[name].sizes:
        agrees(graph, arrays(graph, sizes))


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_gradients_of_loops_are_loops(name: str, order: int, dtype: str) -> None:
    graph = derived(CASES[name], order).graph(dtype)
    for sizes in {str(s): s for s in (CASES[name].sizes[0], CASES[name].sizes[-1])}.values():
        agrees(graph, arrays(graph, sizes))


@pytest.mark.parametrize("n", [1, 2, 27, 871])
def test_a_while_loop_takes_the_steps_that_its_data_asks_for(n: int) -> None:
    graph = nir.trace(collatz, nir.spec("i64[]"), nir.spec("f64[3]"))
    last, steps, x = agrees(graph, [np.array(n), np.ones(3)])
    expected, m = 0, n
    while m > 1:
        m, expected = (m // 2 if m % 2 == 0 else 3 * m + 1), expected + 1
    assert (last, steps) == (1, expected)
    np.testing.assert_allclose(x, 1.25**expected)


def test_a_while_loop_stops_at_max_trips() -> None:
    def double(x):
        return nir.while_loop(lambda v: v.sum() < 1000.0, lambda v: v * 2, x, max_trips=3)

    graph = nir.trace(double, nir.spec("f32[2]"))
    (got,) = agrees(graph, [np.array([1, 2], np.float32)])
    assert got.tolist() == [8, 16]
    (got,) = agrees(graph, [np.array([1000, 2], np.float32)])
    assert got.tolist() == [1000, 2]


def test_only_the_chosen_branch_runs() -> None:
    called: list[str] = []

    def note(name):
        def run_(x):
            called.append(name)
            return x

        return lambda x: nir.host_call(run_, "f32[2]", x)

    fn = nir.jit(lambda p, x: nir.cond(p, note("then"), note("else"), x))
    for p, name in ((True, "then"), (False, "else"), (True, "then")):
        called.clear()
        fn(nir.tensor(p), nir.ones(2))
        assert called == [name]


@pytest.mark.parametrize("name", CASES)
def test_threads_and_instruction_sets_give_the_same_bits(name: str) -> None:
    graph = CASES[name].graph("f32")
    inputs = arrays(graph, CASES[name].sizes[-1])
    found = []
    for isa in [isa for isa in ISAS if isa != "plain"]:
        for threads in (1, 2):
            set_num_threads(threads)
            found.append(outputs(compiled(graph, isa), inputs))
    for other in found[1:]:
        same_bits(found[0], other, name)


@pytest.mark.parametrize("name", CASES)
def test_the_plain_level_agrees_too(name: str) -> None:
    graph = CASES[name].graph("f32")
    agrees(graph, arrays(graph, CASES[name].sizes[-1]), "plain")


@pytest.mark.parametrize("name", CASES)
def test_every_pass_keeps_the_meaning_of_regions(name: str) -> None:
    graph = CASES[name].graph("f64")
    inputs = arrays(graph, CASES[name].sizes[-1])
    lowered = run_pipeline(graph, cpu.target(), verify=inputs)
    verify(lowered)
    again = parse_graph(print_graph(lowered))
    assert again == lowered
    for a, b in zip(run(again, inputs, arena=True), run(graph, inputs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def lstm_step(length: int) -> Graph:
    """Loss and gradients of an LSTM cell over ``length`` steps."""

    def loss(x, h, c, wx, wh, b):
        def cell(state, xt):
            h, c = state
            i, f, g, o = (xt @ wx + h @ wh + b).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            return (h, c), h

        (h, c), ys = nir.scan(cell, (h, c), x)
        return (ys * ys).sum() + h.sum()

    step = nir.value_and_grad(loss, argnums=(3, 4, 5))
    types = (
        f"f32[{length},128,8]",
        "f32[128,16]",
        "f32[128,16]",
        "f32[8,64]",
        "f32[16,64]",
        "f32[64]",
    )
    return nir.trace(step, *map(nir.spec, types))


def test_program_and_code_do_not_grow_with_the_number_of_steps() -> None:
    programs = []
    for length in (35, 512):
        graph = lstm_step(length)
        exe = compiled(graph)
        programs.append((len(exe.program.calls), len(exe.program.buffers), _code_bytes(exe)))
        agrees(graph, arrays(graph, {}))
    (*short, code), (*long, more_code) = programs
    assert short == long
    assert abs(more_code - code) < code // 50  # numbers in the code differ


def _code_bytes(exe: Any) -> int:
    return sum(len(blob) for levels in exe.program.codes.values() for blob in levels.values())


def test_carries_and_slices_are_not_copied() -> None:
    def fn(x, h, w):
        def step(h, xt):
            h = (xt + h @ w).tanh()
            return h, h * 2

        return nir.scan(step, h, x)

    exe = compiled(nir.trace(fn, *map(nir.spec, ("f32[T,4,16]", "f32[4,16]", "f32[16,16]"))))
    (loop,) = exe.program.controls
    assert isinstance(loop, Loop)
    (call,) = exe.program.calls[loop.first : loop.end]
    assert call.op.startswith("matmul+")


def test_a_bad_index_in_a_body_names_the_line() -> None:
    def fn(table, ids):
        return nir.scan(lambda c, i: (c + table[i], None), table[0], ids)[0]

    exe = compiled(nir.trace(fn, nir.spec("f32[5,3]"), nir.spec("i64[T]")))
    table = np.ones((5, 3), np.float32)
    with pytest.raises(IndexRangeError, match="from -5 to 4, got 9") as caught:
        exe(table, np.array([1, 4, 9, 2]))
    assert "test_control_cpu.py" in str(caught.value)
    # A run that failed in the middle of a loop leaves nothing behind.
    for _ in range(2):
        assert exe(table, np.array([1, 4, 3])).numpy().tolist() == [4, 4, 4]


def test_profiles_count_the_calls_in_a_loop() -> None:
    graph = CASES["backwards"].graph("f32")
    exe = compiled(graph)
    inputs = [nir.runtime.as_storage(x) for x in arrays(graph, {"T": 11, "B": 4})]
    profile = exe.profile(inputs, runs=2)
    (loop,) = exe.program.controls
    assert {c.count for c in profile.calls[loop.first : loop.end]} == {11}
    assert all(c.count == 1 for c in profile.calls[: loop.first])


def test_controls_nest_as_they_are_written() -> None:
    exe = compiled(CASES["nested"].graph("f32"))
    outer, branch, inner = exe.program.controls
    assert isinstance(outer, Loop) and isinstance(branch, Branch) and isinstance(inner, Loop)
    assert outer.first <= branch.first < branch.other < branch.end <= outer.end
    assert branch.first <= inner.first < inner.end <= branch.other


def test_a_package_runs_loops_in_another_process(tmp_path: Path) -> None:
    graph = CASES["nested"].graph("f32")
    inputs = arrays(graph, {"T": 6})
    expected = outputs(compiled(graph), inputs)
    compiled(graph).save(tmp_path / "nested.nirp")
    np.savez(tmp_path / "io.npz", *inputs, *expected)
    script = """
import sys, numpy as np
from nir.runtime import load
exe = load(sys.argv[1] + "/nested.nirp", verify=True)
io = [a for _, a in np.load(sys.argv[1] + "/io.npz").items()]
n = len(exe.inputs)
for y, z in zip(exe(*io[:n]), io[n:], strict=True):
    assert y.numpy().tobytes() == z.tobytes()
assert not any(m.startswith("llvmlite") for m in sys.modules)
print("same")
"""
    out = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, cwd=h.ROOT
    )
    assert out.stdout == "same\n", out.stderr
    again = load(tmp_path / "nested.nirp")
    assert again.program.controls == compiled(graph).program.controls
    assert again.program.carries == compiled(graph).program.carries


def test_fresh_parameters_get_gradients_through_loops() -> None:
    def twice(layer, x):
        return nir.while_loop(lambda v: (v * v).sum() < 10.0, lambda v: layer(v) + v, x, 5)

    def steps(layer, x):
        return nir.scan(lambda v, _: (layer(v), None), x, length=3)[0]

    def chosen(layer, x):
        return nir.cond(x.sum() > 0, layer, lambda v: v, x)

    for fn in (twice, steps, chosen):
        layer, x = nir.nn.Linear(3, 3), nir.ones(2, 3)
        fn(layer, x).sum().backward()
        eager = [p.grad.numpy() for p in layer.parameters()]
        again = nir.nn.Linear(3, 3)
        again.load_state_dict(layer.state_dict())

        @nir.jit(state=[again])
        def step(x, layer=again, fn=fn):
            fn(layer, x).sum().backward()

        step(x)
        for a, b in zip(eager, again.parameters(), strict=True):
            assert np.abs(a).max() > 0
            np.testing.assert_allclose(b.grad.numpy(), a, rtol=1e-5)


def test_bad_loops_are_refused_at_the_line() -> None:
    x = nir.ones(3)
    with pytest.raises(DTypeError, match="condition that returns bool"):
        nir.while_loop(lambda v: v.sum(), lambda v: v, x)
    with pytest.raises(ShapeError, match="the carry as it came"):
        nir.while_loop(lambda v: v.sum() > 0, lambda v: (v, v), x)
    with pytest.raises(ShapeError, match=r"carries .*f32\[2\].* expected .*f32\[3\]"):
        nir.while_loop(lambda v: v.sum() > 0, lambda v: v[:2], x)
    with pytest.raises(NotDifferentiable, match="give max_trips") as caught:
        nir.grad(lambda v: nir.while_loop(lambda u: u.sum() < 9, lambda u: u * 2, v).sum())(x)
    assert "test_control_cpu.py" in str(caught.value)
