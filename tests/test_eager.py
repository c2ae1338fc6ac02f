"""Eager code: what is run when, how often it is compiled, and what memory it holds."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import numpy as np
import pytest

import nir
from nir import nn
from nir.errors import StaleTensorError, TraceError
from nir.frontend import flush, lazy
from nir.nn import functional as F
from nir.runtime import memory_stats


@pytest.fixture(params=["interp", "cpu"])
def target(request: pytest.FixtureRequest) -> Iterator[str]:
    nir.set_default_target(request.param)
    yield request.param
    nir.set_default_target("cpu")


def compiles(fn: object) -> int:
    before = nir.compile_count()
    fn()  # type: ignore[operator]
    return nir.compile_count() - before


def test_nothing_runs_until_somebody_looks(target: str) -> None:
    x = nir.arange(4)
    y = (x * 3 + 1).sum()
    assert x._cell.is_pending and y._cell.is_pending
    assert y.item() == 22
    assert not y._cell.is_pending
    assert x._cell.is_pending  # only what was looked at is stored


def test_one_program_for_one_look(target: str) -> None:
    def look() -> None:
        x = nir.tensor(np.ones((3, 5), np.float32))
        ((x.exp() + 1).log() * 7).sum(1).numpy()

    look()
    assert compiles(look) == 0


def test_a_changing_rate_never_compiles_again(target: str) -> None:
    w = nir.tensor(np.ones(7, np.float32))

    def step(rate: float) -> float:
        return (w - rate * (w * w)).sum().item()

    step(0.1)
    assert compiles(lambda: [step(r) for r in (0.2, 0.05, 1e-9, 123.0)]) == 0
    assert step(0.5) == 3.5
    # Two rates that happen to be equal are no other structure than two that differ.
    two = lambda a, b: (w * a + b).sum().item()  # noqa: E731
    two(0.3, 0.4)
    assert compiles(lambda: two(0.3, 0.3)) == 0


def test_exponents_axes_and_integers_are_structure(target: str) -> None:
    x = nir.tensor(np.full(5, 3.0, np.float32))
    assert (x**2.5).sum().item() == pytest.approx(5 * 3**2.5)
    assert compiles(lambda: (x**2.25).sum().item()) == 1
    i = nir.tensor(np.arange(6))
    assert (i * 3).sum().item() == 45
    assert compiles(lambda: (i * 4).sum().item()) == 1


def test_which_names_are_alive_does_not_matter(target: str) -> None:
    x = nir.tensor(np.ones(6, np.float32))
    kept = []

    def run(keep: bool) -> None:
        a = x.exp()
        b = a + 1
        if keep:
            kept.extend([a, b])
        (b * 2).sum().item()

    run(False)
    assert compiles(lambda: run(True)) == 0


def training() -> tuple[nn.Module, nir.optim.Optimizer, nir.Tensor, nir.Tensor]:
    nir.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = nir.optim.Adam(model.parameters(), lr=0.01)
    rng = np.random.default_rng(0)
    x = nir.tensor(rng.standard_normal((6, 4)).astype(np.float32))
    return model, optimizer, x, nir.tensor(rng.integers(0, 2, 6))


def test_a_training_step_is_one_program(target: str) -> None:
    model, optimizer, x, y = training()
    losses = []

    def step() -> None:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    step()  # the initial weights are made in this one
    step()
    before = nir.compile_count()
    runs = count_runs(step)
    # The loss was computed along with the step, and so were batch norm's statistics.
    assert runs == 1
    assert nir.compile_count() == before
    assert not model[1].running_mean._cell.is_pending
    for _ in range(20):
        step()
    assert losses[-1] < losses[0]


def count_runs(fn: object) -> int:
    runs = 0
    original = flush.Compiled.run

    def counted(*args: object) -> object:
        nonlocal runs
        runs += 1
        return original(*args)  # type: ignore[arg-type]

    flush.Compiled.run = counted  # type: ignore[method-assign,assignment]
    try:
        fn()  # type: ignore[operator]
    finally:
        flush.Compiled.run = original  # type: ignore[method-assign]
    return runs


def test_a_loop_that_never_looks_stays_bounded() -> None:
    x = nir.tensor(np.zeros(1000, np.float32))
    for _ in range(3500):
        x = x + 1
        assert x._cell.record is None or x._cell.record.depth <= flush._DEPTH_LIMIT
    assert (x.numpy() == 3500).all()


def test_a_training_loop_holds_no_memory(target: str) -> None:
    model, optimizer, x, y = training()

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    for _ in range(3):
        step()
    gc.collect()
    gc.disable()  # nothing may wait for the cycle collector
    try:
        cells = count_cells()
        live = memory_stats()["live_bytes"]
        for _ in range(10):
            step()
        assert count_cells() <= cells + 2
        assert memory_stats()["live_bytes"] <= live + 4096
    finally:
        gc.enable()


def count_cells() -> int:
    return sum(type(o) is lazy.Record for o in gc.get_objects())


def test_metrics_added_up_hold_no_history(target: str) -> None:
    model, optimizer, x, y = training()
    total = nir.zeros(())
    watched = []
    for _ in range(4):
        optimizer.zero_grad()
        batch = x + 0
        watched.append(weakref.ref(batch._cell))
        loss = F.cross_entropy(model(batch), y)
        loss.backward()
        optimizer.step()
        total = total + loss.detach()
        del batch, loss
    total.item()
    assert [r() for r in watched[:-1]] == [None] * 3


def test_in_place_is_rebinding(target: str) -> None:
    x = nir.ones(3)
    old = x.detach()
    y = x * 2
    x.add_(1).mul_(4)
    x -= 2
    assert (x.tolist(), old.tolist(), y.tolist()) == ([6, 6, 6], [1, 1, 1], [2, 2, 2])
    x.copy_(np.arange(3))
    assert x.dtype == nir.float32 and x.tolist() == [0, 1, 2]
    assert x.zero_().tolist() == [0, 0, 0]
    assert x.fill_(2.5).clamp_(max=2).tolist() == [2, 2, 2]


def test_in_place_keeps_shape_and_dtype() -> None:
    x = nir.ones(3)
    with pytest.raises(nir.errors.ShapeError, match=r"a f32\[3\] cannot become a f32\[2,3\]"):
        x.add_(nir.ones(2, 3))
    with pytest.raises(nir.errors.DTypeError, match=r"a i64\[3\] cannot become a f32\[3\]"):
        nir.arange(3).mul_(0.5)
    with pytest.raises(nir.NirError, match="not assigned to by index"):
        x[0] = 1


def test_threads_record_apart() -> None:
    from concurrent.futures import ThreadPoolExecutor

    def work(n: int) -> float:
        x = nir.tensor(np.full(100, n, np.float32))
        for _ in range(30):
            x = x * 1.0 + n
        with nir.no_grad():
            return x.sum().item()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(12))) == [31.0 * n * 100 for n in range(12)]


def test_a_tensor_of_an_ended_trace_says_so() -> None:
    kept: list[nir.Tensor] = []
    nir.trace(lambda x: kept.append(x * 2) or x, "f32[3]")
    assert repr(kept[0]) == "tensor(<traced f32[3]>)"
    with pytest.raises(TraceError, match="an input of a function whose trace has ended"):
        kept[0].numpy()


def test_errors_of_the_past_surface_at_the_look(target: str) -> None:
    x = nir.ones(1000) + 1
    reader = x * 2
    double = nir.jit(lambda x: x * 2, donate=("x",))
    double(x)
    # Recorded before the donation: it holds the buffer, which was therefore not taken.
    assert reader.sum().item() == 4000
    with pytest.raises(StaleTensorError, match="whose buffer was donated at"):
        x.sum()
