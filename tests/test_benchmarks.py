"""The benchmark harness: statistics, judgement, and workers in their own processes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks import harness, report, roof, weights, worker, workloads
from benchmarks.harness import Measurement


def measured(peer: str, times: list[float], values: list[float] | None = None) -> Measurement:
    return Measurement(
        "resnet9", peer, values=[[v] for v in values or [1.0]], **harness.summary(times)
    )


QUIET = [1.0, 1.01, 0.99, 1.0, 1.02, 0.98, 1.0, 1.01, 0.99, 1.0]


def test_summary_is_median_and_interquartile_range() -> None:
    s = harness.summary([5.0, 1.0, 2.0, 4.0, 3.0])
    assert s["median"] == 3.0 and s["spread"] == pytest.approx(1.0) and len(s["rounds"]) == 5
    assert harness.summary(QUIET)["spread"] < 0.03


def test_ratio_is_refused_where_it_would_be_noise() -> None:
    base = measured("nir", QUIET)
    assert report.ratio(base, measured("torch", [2 * t for t in QUIET])) == "2.00x"
    slowed = [t * f for t, f in zip(QUIET, [1.0, 3.0] * 5, strict=True)]
    twice = [2 * t for t in slowed]  # what slows both alike is no noise
    assert report.ratio(measured("nir", slowed), measured("torch", twice)) == "2.00x"
    noisy = [1.0, 1.5, 2.0, 1.0, 1.6, 2.2, 1.1, 1.9, 1.3, 2.0]
    assert report.ratio(base, measured("torch", noisy)).startswith("too noisy")
    assert report.ratio(measured("nir", noisy), base).startswith("too noisy")
    assert report.ratio(base, Measurement("resnet9", "torch", error="no torch")) == "-"


def test_interval_of_a_median() -> None:
    # The ranks in tables of the sign test: 2 to 9 of 10, 6 to 15 of 20, 10 to 21 of 30.
    assert [harness._outside(n) for n in (10, 20, 30)] == [1, 5, 9]


def test_disagreement_names_step_and_peers() -> None:
    a = measured("nir", QUIET, [1.0, 2.0])
    assert harness.disagreement([a, measured("torch", QUIET, [1.0, 2.001])], 1e-3) == ""
    wrong = harness.disagreement([a, measured("torch", QUIET, [1.0, 2.1])], 1e-3)
    assert wrong == "step 2: nir gives 2, torch gives 2.1"
    nan = harness.disagreement([a, measured("torch", QUIET, [math.nan, 2.0])], 1e-3)
    assert nan.startswith("step 1")


def test_arrays_are_compared_at_the_scale_of_their_largest_element() -> None:
    array = np.linspace(-3, 3, 1000, dtype=np.float32).reshape(10, 100)
    sent = worker.numbers(array)
    assert len(sent) == 66 and sent[0] == -3 and sent[-1] == pytest.approx(1.5, abs=0.01)
    near, far = (
        Measurement("resnet9", "torch", values=[worker.numbers(array + d)]) for d in (1e-4, 1e-1)
    )
    base = Measurement("resnet9", "nir", values=[sent])
    assert harness.disagreement([base, near], 1e-3) == ""
    assert "step 1" in harness.disagreement([base, far], 1e-3)


def test_best_peer_and_geometric_mean() -> None:
    rows = {
        "resnet9": [measured(p, [t * f for t in QUIET]) for p, f in PEERS],
        "lstm": [measured("nir", QUIET), measured("torch", [8 * t for t in QUIET])],
        "mlp_resnet": [measured("nir", QUIET)],
    }
    best = harness.best_peer(rows["resnet9"])
    assert best is not None and best.peer == "jax" and harness.best_peer(rows["mlp_resnet"]) is None
    mean, count = report.geometric_mean(rows)
    assert count == 2 and mean == pytest.approx(4.0)  # of 2 and 8


PEERS = [("nir", 1.0), ("needle", 0.5), ("torch", 3.0), ("jax", 2.0)]


def test_report_is_written_and_read_again(tmp_path: Path) -> None:
    rows = {"resnet9": [measured(p, [t * f for t in QUIET]) for p, f in PEERS]}
    context = {"cpu": "a CPU", "threads": 2, "roofs": [
        {"threads": 2, "fma": 200.0, "triad": 40.0, "read": 30.0}
    ]}  # fmt: skip
    saved = tmp_path / "a.json"
    saved.write_text(report.to_json(rows["resnet9"], **context))
    again, found = report.from_json([saved])
    assert again == rows and found == context
    (tmp_path / "README.md").write_text("before\n<!-- benchmarks -->\n<!-- end of benchmarks -->\n")
    report.write(again, found, tmp_path / "docs")
    table = (tmp_path / "docs" / "benchmarks.md").read_text()
    assert "2.00x" in table and "a CPU" in table and "200 GFLOP/s" in table
    assert (tmp_path / "docs" / "benchmarks.png").stat().st_size > 1000
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith("before") and "(jax)" in readme and "2.00x" in readme


def test_roofs_are_measured() -> None:
    r = roof.measure(1)
    assert r.fma > 1 and r.triad > 0.1 and r.read > 0.1


def test_report() -> None:
    text = report.text(
        [measured("nir", QUIET), Measurement("resnet9", "torch", error="ImportError: torch")]
    )
    assert "ResNet-9" in text and "failed: ImportError: torch" in text
    assert "results agree" not in text  # there was nothing to compare with


def test_weights_are_the_same_everywhere() -> None:
    class Shape:
        def __init__(self, *shape: int) -> None:
            self.shape = shape

    state = {
        "a.weight": Shape(4, 9),
        "a.bias": Shape(4),
        "n.weight": Shape(4),
        "n.running_var": Shape(4),
        "n.running_mean": Shape(4),
        "n.num_batches_tracked": Shape(),
    }
    made = weights.make(state)
    assert abs(made["a.weight"]).max() <= 1 / 3
    assert made["n.weight"].tolist() == made["n.running_var"].tolist() == [1.0] * 4
    assert not made["a.bias"].any() and not made["n.running_mean"].any()
    again = weights.make(dict(reversed(state.items())))
    assert all((again[name] == value).all() for name, value in made.items())


def test_all_workloads_load() -> None:
    for name in workloads.names():
        assert "nir" in workloads.load(name).peers


def test_measure_runs_workers() -> None:
    (m,) = harness.measure("mlp_resnet", ["nir"], threads=1, rounds=10, seconds=0.01)
    assert m.error == "" and m.median > 0 and len(m.rounds) == 10
    assert len(m.values) == 3 and m.values[2] < m.values[0]
    assert m.first_call > 0 and m.peak_bytes > 1 << 20
    assert m.first_call_cached > 0 and 0 < m.step_bytes < m.peak_bytes
    document = json.loads(report.to_json([m], threads=1))
    assert document["threads"] == 1 and document["measurements"][0]["peer"] == "nir"


def test_failing_peer_is_reported() -> None:
    (m,) = harness.measure("mlp_resnet", ["no_such_peer"], threads=1, rounds=10, seconds=0.01)
    assert "ModuleNotFoundError" in m.error
