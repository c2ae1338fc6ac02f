"""Bands: chains around depthwise convolutions run line by line, with the bits they had before."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nir
from nir import nn
from nir.errors import PackageError, ShapeError
from nir.frozen import replace
from nir.ir.interp import run
from nir.ir.program import Bands, Program
from nir.ir.program_text import print_program
from nir.ir.text import parse_graph, print_graph
from nir.ops.banded import Banded, chain, images, layout
from nir.passes import bands
from nir.runtime import Storage, _core
from nir.runtime.encode import decode, encode

BIG = 1 << 40


class Inverted(nn.Module):
    """Expand, depthwise, project; the image is added where its shape is the result's."""

    def __init__(
        self, c: int = 8, expand: int = 3, out: int = 8, kernel: int = 3, **window: Any
    ) -> None:
        super().__init__()
        wide = c * expand
        self.body = nn.Sequential(
            *([nn.Conv2d(c, wide, 1), nn.ReLU6()] if expand > 1 else []),
            nn.Conv2d(wide, wide, kernel, groups=wide, **window),
            nn.ReLU6(),
            nn.Conv2d(wide, out, 1),
        )

    def forward(self, x: nir.Tensor) -> nir.Tensor:
        y = self.body(x)
        return x + y if x.shape == y.shape else y


CASES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "same": ({"padding": 1}, (1, 8, 9, 7)),
    "stride 2": ({"padding": 1, "stride": 2}, (1, 8, 11, 8)),
    "stride 2, even": ({"padding": 1, "stride": 2}, (2, 8, 10, 9)),
    "no padding": ({}, (2, 8, 7, 6)),
    "much padding": ({"padding": 4}, (1, 8, 3, 4)),
    "dilated": ({"padding": 2, "dilation": 2}, (2, 8, 9, 9)),
    "wide window": ({"kernel": 5, "padding": 2}, (1, 8, 8, 8)),
    "stride beyond the window": ({"stride": 4}, (1, 8, 15, 9)),
    "no expansion": ({"c": 16, "expand": 1, "padding": 1}, (3, 16, 6, 5)),
    "odd channels": ({"c": 5, "out": 21, "padding": 1}, (2, 5, 6, 6)),
    "one line": ({"padding": 1}, (1, 8, 1, 9)),
    "many images": ({"padding": 1}, (7, 8, 4, 4)),
}


def built(
    module: nn.Module, spec: str, monkeypatch: pytest.MonkeyPatch, path: Path, **limits: int
) -> Any:
    """The module compiled anew, with these limits of the pass."""
    monkeypatch.setenv("NIR_CACHE_DIR", str(path / "-".join(map(str, limits.values()))))
    for name, limit in limits.items():
        monkeypatch.setattr(bands, name, limit)
    return nir.compile(module, spec)


def banded(compiled: Any) -> list[Banded]:
    return [op for op in compiled.executable.graph.nodes if isinstance(op, Banded)]


def image(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name", CASES)
def test_values_stay_what_they_were(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options, shape = CASES[name]
    nir.manual_seed(0)
    module, x = Inverted(**options), image(shape)
    spec = f"f32[{','.join(map(str, shape))}]"
    plain = built(module, spec, monkeypatch, tmp_path, _WORTH=BIG)
    assert not banded(plain)
    expected = plain(x).numpy()
    reference = nir.compile(module, spec, target="interp")(x).numpy()
    np.testing.assert_allclose(expected, reference, rtol=1e-4, atol=1e-5)
    for kept in (1, 4000, BIG):
        compiled = built(module, spec, monkeypatch, tmp_path, _WORTH=0, _KEPT=kept)
        (op,) = banded(compiled)
        assert len(chain(op.body)) == (2 if options.get("expand") == 1 else 3)
        np.testing.assert_array_equal(compiled(x).numpy(), expected)
        for threads in (1, 3):
            before = nir.get_num_threads()
            nir.set_num_threads(threads)
            try:
                np.testing.assert_array_equal(compiled(x).numpy(), expected)
            finally:
                nir.set_num_threads(before)


def test_the_batch_may_be_symbolic(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = Inverted(padding=1)
    compiled = built(module, "f32[B,8,9,7]", monkeypatch, tmp_path, _WORTH=0, _KEPT=4000)
    assert len(banded(compiled)) == 1
    for n in (0, 1, 5):
        x = image((n, 8, 9, 7))
        reference = nir.compile(module, f"f32[{n},8,9,7]", target="interp")(x).numpy()
        np.testing.assert_allclose(compiled(x).numpy(), reference, rtol=1e-4, atol=1e-5)


def test_small_images_and_shared_results_stay(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Shared(nn.Module):
        """Somebody else reads the depthwise result."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, groups=8, padding=1)
            self.last = nn.Conv2d(8, 4, 1)

        def forward(self, x: nir.Tensor) -> tuple[nir.Tensor, nir.Tensor]:
            y = self.conv(x)
            return self.last(y), y

    assert not banded(built(Inverted(padding=1), "f32[1,8,16,16]", monkeypatch, tmp_path))
    assert not banded(built(Shared(), "f32[1,8,9,9]", monkeypatch, tmp_path, _WORTH=0))
    heavy = Inverted(c=64, expand=8, out=64, padding=1)
    assert not banded(built(heavy, "f32[1,64,9,9]", monkeypatch, tmp_path, _WORTH=0))
    long_lines = Inverted(expand=6, padding=1)
    assert not banded(built(long_lines, "f32[1,8,4,2000]", monkeypatch, tmp_path, _WORTH=1))


def test_results_between_take_no_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = Inverted(expand=6, padding=1)
    plain = built(module, "f32[1,8,128,128]", monkeypatch, tmp_path, _WORTH=BIG)
    compiled = built(module, "f32[1,8,128,128]", monkeypatch, tmp_path, _WORTH=0)
    between = 4 * 48 * 128 * 128
    assert compiled.executable.peak_bytes < plain.executable.peak_bytes - between


def test_the_lines_of_each_stage() -> None:
    body = chain_of(CASES["stride 2"])
    assert [tuple(shape) for shape in images(body)] == [
        (1, 11, 8, 24),
        (1, 6, 4, 24),
        (1, 6, 4, 8),
    ]
    plan = layout(body, 2)
    first, second, last = plan.stages
    # Two lines of the last one take two of the second, and those five of the first.
    assert (first.kept, second.kept, last.kept) == (5, 2, 0)
    assert (second.stride, second.above, second.extent) == (2, 1, 3)
    assert (first.bytes, second.bytes) == (4 * 8 * 24, 4 * 4 * 24)
    assert all(a < b for a, b in pairwise((*plan.offsets, plan.memory)))


def chain_of(case: tuple[dict[str, Any], tuple[int, ...]]) -> Any:
    options, shape = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bands, "_WORTH", 0)
        patch.setenv("NIR_CACHE_DIR", "")
        patch.setenv("NIR_VERIFY", "1")  # compiled anew
        compiled = nir.compile(Inverted(**options), f"f32[{','.join(map(str, shape))}]")
    (op,) = banded(compiled)
    return op.body


def test_text_parses_back_and_runs() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bands, "_WORTH", 0)
        patch.setenv("NIR_VERIFY", "1")
        graph = nir.compile(Inverted(padding=1), "f32[2,8,6,6]").executable.graph
    assert graph is not None
    text = print_graph(graph)
    again = parse_graph(text)
    assert print_graph(again) == text
    inputs = [image(tuple(v.type.shape)) for v in graph.inputs]
    np.testing.assert_array_equal(run(again, inputs)[0], run(graph, inputs)[0])


# ---- the record in a program -------------------------------------------------------------------


@pytest.fixture(scope="module")
def compiled() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bands, "_WORTH", 0)
        patch.setattr(bands, "_KEPT", 4000)
        patch.setenv("NIR_VERIFY", "1")
        return nir.compile(Inverted(padding=1), "f32[1,8,9,7]")


@pytest.fixture
def program(compiled: Any) -> Program:
    return compiled.executable.program


def executable(program: Program) -> Any:
    constants = [Storage.from_numpy(np.frombuffer(c, np.uint8)) for c in program.constants]
    codes = {name: dict(levels) for name, levels in program.codes.items()}
    return _core.Executable(encode(program), constants, codes, {})


def test_the_encoding_keeps_bands(program: Program) -> None:
    again = decode(encode(program), program.constants)
    assert again.controls == program.controls and again.buffers == program.buffers
    executable(program)


def test_text_shows_bands(program: Program) -> None:
    text = print_program(program)
    (record,) = program.controls
    assert isinstance(record, Bands)
    assert f"bands0 of {record.lines} lines, (9x7 keeps" in text
    assert "(9x7 reads 3 from 1*i-1 keeps" in text
    assert "= lines[call " in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lines": 0}, "the lines of bands"),
        ({"lines": 9}, "keeps too few lines"),
        ({"stages": 2}, "the calls of bands"),
        ({"end": -1}, "the calls of bands"),
        ({"height": 0}, "the height of a stage"),
        ({"width": 1 << 40}, "the width of a stage"),
        ({"stride": 0}, "the stride of a stage"),
        ({"above": -1}, "the padding of a stage"),
        ({"extent": 0}, "the extent of a stage"),
        ({"kept": 1}, "keeps too few lines"),
    ],
)
def test_damaged_bands_are_refused(program: Program, change: dict[str, int], message: str) -> None:
    (record,) = program.controls
    assert isinstance(record, Bands)
    ((name, value),) = change.items()
    match name:
        case "lines":
            new = replace(record, lines=value)
        case "stages":
            new = replace(record, stages=record.stages[:value])
        case "end":
            new = replace(record, end=record.end + value)
        case _:
            first, *rest = record.stages
            new = replace(record, stages=(replace(first, **change), *rest))
    with pytest.raises(PackageError, match=f"damaged program: .*({message})"):
        executable(replace(program, controls=(new,)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": 999}, "lines of no call"),
        ({"index": 0}, "lines are used outside their bands"),
    ],
)
def test_lines_stay_in_their_bands(program: Program, change: Any, message: str) -> None:
    buffers = list(program.buffers)
    at = next(i for i, b in enumerate(buffers) if b.kind == "lines")
    calls = program.calls
    if change["index"] == 0:
        # A call behind the bands reads what was left in them.
        args = (at, *calls[-1].args[1:])
        calls = (*calls[:-1], replace(calls[-1], args=args))
    else:
        buffers[at] = replace(buffers[at], **change)
    with pytest.raises(PackageError, match=f"damaged program: .*({message})"):
        executable(replace(program, buffers=tuple(buffers), calls=calls))


@pytest.mark.parametrize("field", ["height", "bytes", "scratch", "offset"])
def test_sizes_that_do_not_fit_are_refused(compiled: Any, program: Program, field: str) -> None:
    (record,) = program.controls
    assert isinstance(record, Bands)
    buffers, calls = list(program.buffers), list(program.calls)
    at = next(i for i, b in enumerate(buffers) if b.kind == "lines")
    stages = list(record.stages)
    match field:
        case "height":
            stages[0] = replace(stages[0], height=8)
        case "bytes":
            stages[0] = replace(stages[0], bytes=stages[0].bytes * 64)
        case "scratch":
            calls[record.first] = replace(calls[record.first], scratch=64)
        case "offset":
            buffers[at] = replace(buffers[at], offset=1 << 40)
    damaged = replace(
        program,
        controls=(replace(record, stages=tuple(stages)),),
        buffers=tuple(buffers),
        calls=tuple(calls),
    )
    exe = executable(damaged)
    inputs = [nir.runtime.as_storage(image((1, 8, 9, 7))), *compiled._bound]
    with pytest.raises(ShapeError, match=r"bands|buffer"):
        exe.run(inputs, (), None)
