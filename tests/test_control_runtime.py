"""Control records of programs: read with suspicion, run without allocation, shown as text."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runtime_harness as h
from backend_harness import compiled, outputs
from test_control_cpu import CASES, arrays, rnn
from test_runtime_system import mallocs

import nir
from nir.errors import NirError, PackageError, ShapeError
from nir.frozen import replace
from nir.ir.program import Branch, Loop, Move, Program
from nir.ir.program_text import print_program
from nir.ir.text import print_graph
from nir.passes.pipeline import run_pipeline
from nir.runtime import Executable, Storage, _core, as_storage
from nir.runtime.encode import VERSION, decode, encode
from nir.targets import cpu

DEEPEST = 64


def program_of(name: str) -> Program:
    return compiled(CASES[name].graph("f32")).program


def executable(program: Program) -> Any:
    constants = [Storage.from_numpy(np.frombuffer(c, np.uint8)) for c in program.constants]
    codes = {name: dict(levels) for name, levels in program.codes.items()}
    return _core.Executable(encode(program), constants, codes, {})


@pytest.mark.parametrize("name", CASES)
def test_the_encoding_keeps_controls(name: str) -> None:
    program = program_of(name)
    again = decode(encode(program), program.constants)
    assert again.controls == program.controls
    assert again.carries == program.carries
    assert again.buffers == program.buffers


def test_text_shows_loops_branches_and_carries() -> None:
    def fn(p, x, w):
        def step(c):
            return nir.scan(lambda a, v: ((a + v).tanh(), a), c, x)[0]

        return nir.cond(p, lambda: nir.while_loop(lambda c: c.sum() < 9, step, w, 3), lambda: w * 2)

    exe = compiled(nir.trace(fn, nir.spec("bool[]"), nir.spec("f32[T,4]"), nir.spec("f32[4]")))
    lines = [line.split(" {dims")[0].strip() for line in print_program(exe.program).splitlines()]
    shape = [line for line in lines if line.endswith("{") or line.startswith("}")][1:]
    assert shape[0].startswith("branch0 if b")
    assert shape[1] == "loop1 at most 3 times {"
    assert shape[2].startswith("} while b") and shape[2].endswith(" {")
    assert shape[3:] == ["loop2 T times {", "}", "}", "} else {", "}", "}"]
    carries = [line for line in lines if line.startswith("carry")]
    assert all(" in turn : 16 bytes" in line for line in carries) and len(carries) == 2
    assert any("+ loop2*16 : 16 bytes" in line for line in lines)


# ---- what the reader refuses -------------------------------------------------------------------


def damaged(**changes: Any) -> Program:
    return replace(program_of("nested"), **changes)


def with_control(i: int, **changes: Any) -> Program:
    controls = list(program_of("nested").controls)
    controls[i] = replace(controls[i], **changes)
    return damaged(controls=tuple(controls))


def with_buffer(kind: str, **changes: Any) -> Program:
    program = program_of("nested")
    buffers = list(program.buffers)
    at = next(i for i, b in enumerate(buffers) if b.kind == kind)
    buffers[at] = replace(buffers[at], **changes)
    return replace(program, buffers=tuple(buffers))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: with_control(0, end=999), "the calls of a control"),
        (lambda: with_control(0, end=0, first=0, body=0), "the calls of a control"),
        (lambda: with_control(0, body=1), "a control of one part has two"),
        (lambda: with_control(1, predicate=999), "buffer 999 of"),
        (lambda: with_control(2, first=0, body=0), "controls are not in order"),
        (lambda: with_control(2, end=program_of("nested").controls[1].end), "controls overlap"),
        (lambda: damaged(controls=()), "loop 0 of 0"),
        (lambda: with_buffer("before", index=999), "a carry that is not there"),
        (lambda: with_buffer("arena", moves=(Move(1, 4),)), "a buffer moves with no loop"),
        (lambda: with_buffer("output", moves=(Move(2, 4),)), "used outside its loop"),
        (lambda: with_buffer("before", moves=(Move(0, 4),)), "a carry moves"),
        (
            lambda: damaged(carries=(replace(program_of("nested").carries[0], loop=1),)),
            "a carry of what is no loop",
        ),
    ],
)
def test_damaged_controls_are_refused(make: Any, message: str) -> None:
    with pytest.raises(PackageError, match=f"damaged program: .*({message})"):
        executable(make())


def test_nesting_is_bounded() -> None:
    program = program_of("deep")
    (first, *_) = program.controls
    assert isinstance(first, Loop)
    around = [replace(first, first=0, body=0, end=len(program.calls), trips=1)]
    deep = (*(around * (DEEPEST + 1)),)
    with pytest.raises(PackageError, match="nested too deep"):
        executable(replace(program, controls=deep, carries=(), buffers=plain(program)))
    executable(replace(program, controls=deep[1:], carries=(), buffers=plain(program)))


def plain(program: Program) -> tuple[Any, ...]:
    return tuple(
        replace(b, kind="arena", index=0, moves=()) if b.kind in ("before", "after") else b
        for b in program.buffers
    )


def test_stacks_that_are_too_short_are_refused_when_sizes_are_known() -> None:
    program = program_of("backwards")
    buffers = [
        replace(b, moves=tuple(replace(m, stride=m.stride * 2) for m in b.moves))
        for b in program.buffers
    ]
    exe = Executable(replace(program, buffers=tuple(buffers)))
    inputs = arrays(CASES["backwards"].graph("f32"), {"T": 5, "B": 3})
    with pytest.raises(ShapeError, match=r"buffer \d+ ends at \d+ of \d+ bytes"):
        exe(*inputs)
    # With one element there is nothing to move to.
    exe(*arrays(CASES["backwards"].graph("f32"), {"T": 1, "B": 3}))


def test_carries_that_do_not_fit_are_refused() -> None:
    program = program_of("backwards")
    (carry,) = program.carries
    exe = Executable(replace(program, carries=(replace(carry, nbytes=carry.nbytes * 3),)))
    with pytest.raises(ShapeError, match="is too small for a carry"):
        exe(*arrays(CASES["backwards"].graph("f32"), {"T": 5, "B": 3}))


def test_random_damage_never_crashes_the_reader() -> None:
    outcomes = set()
    for name, seed in (("nested", 1), ("in a loop", 2), ("newton", 3)):
        graph = CASES[name].graph("f32")
        program = compiled(graph).program
        good = encode(program)
        constants = [Storage.from_numpy(np.frombuffer(c, np.uint8)) for c in program.constants]
        codes = {k: dict(v) for k, v in program.codes.items()}
        inputs = [as_storage(x) for x in arrays(graph, CASES[name].sizes[-1])]
        rng = random.Random(seed)
        # Half of the damage is done behind the calls, where the controls are.
        tail = len(good) - 24 - 200
        for i in range(5000):
            body = bytearray(good[24:])
            for _ in range(rng.choice((1, 1, 2, 5))):
                at = rng.randrange(tail if i % 2 else 0, len(body))
                body[at] = rng.choice((0, 1, 2, 255, body[at] ^ (1 << rng.randrange(8))))
            if rng.random() < 0.1:
                body = body[: rng.randrange(len(body))]
            data = (
                struct.pack("<8sIIQ", b"NIRPROG\0", VERSION, zlib.crc32(body), 24 + len(body))
                + body
            )
            try:
                exe = _core.Executable(data, constants, codes, {})
                outcomes.add("loaded")
                exe.bind(inputs)
                outcomes.add("bound")
            except NirError as error:
                outcomes.add(type(error).__name__)
    assert {"loaded", "bound", "PackageError", "ShapeError"} <= outcomes


# ---- running -----------------------------------------------------------------------------------


def test_loops_do_not_call_malloc(tmp_path: Path) -> None:
    script = """
from test_control_cpu import CASES, arrays
from backend_harness import compiled
from nir.runtime import as_storage, set_num_threads
set_num_threads(2)
for name in ("wide rnn", "nested", "newton", "in a loop"):
    graph = CASES[name].graph("f32")
    core = compiled(graph)._core
    inputs = [as_storage(x) for x in arrays(graph, CASES[name].sizes[-1])]
    show(core, inputs, 200)
"""
    found = mallocs(tmp_path, script)
    assert len(found) == 4
    for one, many in found:
        assert one == many and one < 50


def test_threads_run_one_loop_at_the_same_time() -> None:
    graph = CASES["nested"].graph("f32")
    exe = compiled(graph)
    inputs = [arrays(graph, {"T": 6}, seed) for seed in range(8)]
    alone = [outputs(exe, x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda x: outputs(exe, x), inputs * 20))
    for k, got in enumerate(together):
        for a, b in zip(alone[k % 8], got, strict=True):
            assert a.tobytes() == b.tobytes()


def test_dumps_with_loops_run_from_the_command_line(tmp_path: Path) -> None:
    graph = nir.trace(rnn, *map(nir.spec, ("f32[T,B,4]", "f32[B,4]", "f32[4,4]")))
    inputs = arrays(graph, {"T": 5, "B": 3})
    lowered = run_pipeline(graph, cpu.target())
    for name, g in (("traced", graph), ("lowered", lowered)):
        (tmp_path / f"{name}.nir").write_text(print_graph(g))
    np.savez(tmp_path / "x.npz", **dict(zip(graph.input_names, inputs, strict=True)))
    found = []
    for name in ("traced", "lowered"):
        out = tmp_path / f"{name}.npz"
        command = ["run", tmp_path / f"{name}.nir", "--inputs", tmp_path / "x.npz", "--output", out]
        done = subprocess.run(
            [sys.executable, "-m", "nir", *map(str, command)],
            capture_output=True, text=True, cwd=h.ROOT,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found.append(list(np.load(out).values()))
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_branch_is_a_branch() -> None:
    (branch,) = program_of("choose").controls
    assert isinstance(branch, Branch)
    assert branch.first < branch.other < branch.end
