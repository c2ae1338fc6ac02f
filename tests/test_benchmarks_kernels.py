"""The kernel tables: ratios, shares and reports, and a worker in a process of its own."""

from __future__ import annotations

import json

import pytest

from benchmarks import kernels
from benchmarks.kernels import Case, measure, report
from benchmarks.kernels.measure import Row, Time
from benchmarks.roof import Roof

CASE = Case("64 x 64", "square", {}, flops=1e6)
ROOF = Roof(threads=1, fma=100.0, triad=20.0, read=25.0)


def row(**milliseconds: float) -> Row:
    return Row(CASE, 1, {p: Time(t * 1e-3, 0.01, t * 1e-3) for p, t in milliseconds.items()})


def test_ratio_is_against_the_best_peer() -> None:
    r = row(nir=2.0, torch=1.0, numpy=3.0)
    assert r.best_peer == "torch" and r.ratio == pytest.approx(0.5)
    assert row(nir=2.0).ratio == 0.0 and row(torch=1.0).ratio == 0.0
    assert report.geometric_mean([r, row(nir=1.0, torch=2.0), row(nir=1.0)]) == pytest.approx(1.0)


def test_share_takes_the_roof_that_binds() -> None:
    assert report.share(row(nir=0.02), ROOF) == pytest.approx(0.5)  # 10 us of arithmetic
    streams = Case("stream", "s", {}, flops=1e3, bytes=2.5e6)  # 100 us of memory
    assert report.share(Row(streams, 1, row(nir=0.2).times), ROOF) == pytest.approx(0.5)


def test_report_names_what_is_slow_and_what_differs() -> None:
    slow = row(nir=2.0, torch=1.0)
    assert report.line(slow, ROOF, ["nir", "torch"]).endswith("<")
    assert "<" not in report.line(row(nir=1.0, torch=1.0), ROOF, ["nir", "torch"])
    failed = Row(CASE, 1, {}, {"nir": "TypeError: no"})
    assert "nir failed: TypeError: no" in report.line(failed, ROOF, ["nir"])
    assert "0.50x" in report.summary([slow]) and "1 under 0.85" in report.summary([slow])
    document = json.loads(report.to_json([slow], {1: ROOF}))
    assert document["rows"][0]["ratio"] == pytest.approx(0.5)


def test_results_that_differ_are_found() -> None:
    assert measure._differ([1.0, 2.0], [1.0, 2.0001], 1e-3) == ""
    assert measure._differ([1.0, 2.0], [1.0, 2.1], 1e-3)
    assert measure._differ([1.0, 2.0], [1.0, float("nan")], 1e-3)
    assert measure._differ([1.0], [1.0, 2.0], 1e-3) == "other shapes"


@pytest.mark.parametrize("table", kernels.names())
def test_tables_have_cases_of_different_names(table: str) -> None:
    title, cases = kernels.load(table)
    assert title and len({c.name for c in cases}) == len(cases)
    assert all("nir" in c.peers and (c.flops or c.bytes) for c in cases)


def test_a_worker_times_nir_beside_numpy() -> None:
    _, cases = kernels.load("matmul")
    number = next(i for i, c in enumerate(cases) if c.name == "NN 64 x 64 x 64")
    chosen = [(number, cases[number])]
    (done,) = measure.run("matmul", chosen, ["nir", "numpy"], threads=1, rounds=2, seconds=1e-4)
    assert not done.errors and set(done.times) == {"nir", "numpy"}
    assert all(t.best > 0 for t in done.times.values())
