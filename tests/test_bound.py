"""Programs with bound weights: the preparation runs once, and the rest reads what it made."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest

import nir
from nir import nn
from nir.bound import compile_bound
from nir.errors import DTypeError, ShapeError, StaleTensorError, TraceError
from nir.ir.interp import random_inputs, run
from nir.ir.text import parse_graph
from nir.ops import Pack, PackConv2d
from nir.passes.pipeline import LOWERING, run_pipeline
from nir.passes.prepare import prepare
from nir.runtime import memory_stats
from nir.targets import cpu

TEXT = """
graph @g(%x: f32[100,24], %w: f32[40,24], %b: f32[40], %unused: f32[3]) -> (f32[100,40], f32[40]) {
  %0 = transpose(%w) {perm=[1, 0]} : f32[24,40]   @ model.py:1
  %1 = exp(%0) : f32[24,40]   @ model.py:1
  %2 = matmul(%x, %1) : f32[100,40]   @ model.py:2
  %3 = broadcast(%b) {shape=[100, 40], axes=[1]} : f32[100,40]   @ model.py:3
  %4 = add(%2, %3) : f32[100,40]   @ model.py:3
  %5 = neg(%b) : f32[40]   @ model.py:4
  return %4, %5
}
"""


def _net() -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU6(),
        nn.Flatten(), nn.Linear(8 * 6 * 6, 20),
    )  # fmt: skip
    return net.eval()


def _lowered(text: str) -> object:
    return run_pipeline(parse_graph(text), cpu.target("avx2"), passes=LOWERING)


def test_cut_means_the_same() -> None:
    whole = _lowered(TEXT)
    cut = prepare(whole, 1)
    inputs = random_inputs(whole)
    made = run(cut.preparation, [inputs[i] for i in cut.needed])
    got = run(cut.rest, [*(inputs[i] for i in cut.kept), *made])
    for a, b in zip(run(whole, inputs), got, strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_is_prepared() -> None:
    cut = prepare(_lowered(TEXT), 1)
    assert [op.name for op in cut.preparation.nodes if op.name != "transpose"] == [
        "exp", "pack", "neg"
    ]  # fmt: skip
    assert [op.name for op in cut.rest.nodes] == ["matmul", "broadcast", "add"]
    assert cut.needed == (1, 2)
    assert cut.kept == (0, 2)  # the bias lies where it is, and what nobody reads is not kept


def test_nothing_to_prepare() -> None:
    graph = parse_graph(TEXT)
    made = compile_bound(graph, len(graph.inputs))
    assert made.preparation is None
    assert made.kept == (0, 1, 2, 3)


def test_run_does_not_pack() -> None:
    exe = nir.compile(_net(), "f32[B,3,6,6]").executable
    assert not [op for op in exe.graph.nodes if isinstance(op, (Pack, PackConv2d))]
    assert not [c for c in exe.program.calls if "pack_b" in c.kernel]


@pytest.mark.parametrize("batch", [1, 5])
def test_agrees_with_jit(batch: int) -> None:
    net = _net()
    x = np.random.default_rng(0).standard_normal((batch, 3, 6, 6)).astype(np.float32)
    jitted = nir.jit(net, state=[net])
    compiled = nir.compile(net, f"f32[{batch},3,6,6]")
    np.testing.assert_array_equal(compiled(x).numpy(), jitted(x).numpy())
    np.testing.assert_array_equal(compiled(nir.tensor(x)).numpy(), jitted(x).numpy())


def test_package_holds_the_packed_form(tmp_path: Path) -> None:
    net = _net()
    x = np.random.default_rng(0).standard_normal((2, 3, 6, 6)).astype(np.float32)
    compiled = nir.compile(net, "f32[2,3,6,6]")
    compiled.save(tmp_path / "net.nirp")
    loaded = nir.load(tmp_path / "net.nirp")
    assert [t.dtype.name for t in loaded.inputs] == ["f32"]
    assert not [c for c in loaded.program.calls if "pack_b" in c.kernel]
    np.testing.assert_array_equal(np.asarray(loaded(x)), compiled(x).numpy())


def test_cached_program_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIR_CACHE_DIR", str(tmp_path))
    net = _net()
    x = np.ones((2, 3, 6, 6), np.float32)
    first, second = (nir.compile(net, "f32[2,3,6,6]") for _ in range(2))
    assert type(second.executable).__name__ == "Stored"
    np.testing.assert_array_equal(first(x).numpy(), second(x).numpy())
    assert second.executable.graph == first.executable.graph


def test_originals_are_not_held() -> None:
    before = memory_stats()["live_bytes"]
    net = nn.Linear(512, 512)
    compiled = nir.compile(net, "f32[64,512]")
    del net
    gc.collect()
    held = memory_stats()["live_bytes"] - before
    assert held < 1.5 * 512 * 512 * 4, "the weights once, packed"
    assert compiled(np.zeros((64, 512), np.float32)).shape == (64, 512)


def test_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIR_VERIFY", "1")
    assert compile_bound(parse_graph(TEXT), 1).preparation is not None


def test_weights_handed_through() -> None:
    w = nir.tensor(np.arange(6.0, dtype=np.float32).reshape(2, 3))
    compiled = nir.compile(lambda x: (x @ w, w), "f32[4,2]", state=[w])
    y, same = compiled(np.ones((4, 2), np.float32))
    np.testing.assert_array_equal(same.numpy(), w.numpy())
    np.testing.assert_array_equal(y.numpy(), np.ones((4, 2), np.float32) @ w.numpy())


def test_errors_of_arguments_are_the_users() -> None:
    compiled = nir.compile(nn.Linear(4, 3), "f32[B,4]")
    with pytest.raises(ShapeError, match="expected"):
        compiled(np.ones((2, 5), np.float32))
    with pytest.raises(DTypeError, match="expected"):
        compiled(np.ones((2, 4)))
    with pytest.raises(TraceError, match="arguments"):
        compiled(np.ones((2, 4), np.float32), np.ones(3))


def test_arguments_that_are_no_plain_arrays() -> None:
    compiled = nir.compile(nn.Linear(4, 3), "f32[2,4]")
    x = np.arange(8.0, dtype=np.float32).reshape(2, 4)
    want = compiled(x).numpy()
    np.testing.assert_array_equal(compiled(x.T.copy().T).numpy(), want)  # not dense
    np.testing.assert_array_equal(compiled(nir.tensor(x) + 0).numpy(), want)  # pending


# ---- donated arguments -------------------------------------------------------------------------


def _cached_sum(cache: nir.Tensor, at: nir.Tensor, x: nir.Tensor) -> tuple[nir.Tensor, nir.Tensor]:
    new = cache.index_copy(1, at, x)
    return new.sum(1), new


def test_a_cache_is_written_where_it_lies() -> None:
    step = nir.compile(_cached_sum, "f32[2,8]", "i64[1]", "f32[2,1]", donate=["cache"])
    assert len(step.program.donations) == 1
    cache, want = nir.tensor(np.zeros((2, 8), np.float32)), np.zeros((2, 8), np.float32)
    for i in (3, 0, 7):
        x = np.full((2, 1), 1.0 + i, np.float32)
        want[:, i] = 1 + i
        total, cache = step(cache, np.array([i]), x)
        np.testing.assert_array_equal(total.numpy(), want.sum(1))
        np.testing.assert_array_equal(cache.numpy(), want)


def test_a_donated_argument_is_stale() -> None:
    step = nir.compile(_cached_sum, "f32[2,8]", "i64[1]", "f32[2,1]", donate=["cache"])
    cache = nir.tensor(np.zeros((2, 8), np.float32))
    step(cache, np.array([1]), np.ones((2, 1), np.float32))
    with pytest.raises(StaleTensorError):
        cache.numpy()


def test_what_others_hold_is_not_written_over() -> None:
    step = nir.compile(_cached_sum, "f32[2,8]", "i64[1]", "f32[2,1]", donate=["cache"])
    cache = nir.tensor(np.zeros((2, 8), np.float32))
    other = cache.detach()
    _, new = step(cache, np.array([1]), np.ones((2, 1), np.float32))
    assert new.numpy().sum() == 2
    assert other.numpy().sum() == 0
    array = np.zeros((2, 8), np.float32)
    _, new = step(array, np.array([1]), np.ones((2, 1), np.float32))
    assert new.numpy().sum() == 2
    assert array.sum() == 0


def test_donating_what_is_no_argument() -> None:
    with pytest.raises(TraceError, match="donate names y"):
        nir.compile(lambda x: x + 1, "f32[2]", donate=["y"])
