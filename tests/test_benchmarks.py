"""The benchmark harness: statistics, judgement, and workers in their own processes."""

from __future__ import annotations

import json
import math

import pytest

from benchmarks import harness, weights, workloads
from benchmarks.harness import Measurement


def measured(peer: str, times: list[float], values: list[float] | None = None) -> Measurement:
    return Measurement("resnet9", peer, values=values or [1.0], **harness.summary(times))


QUIET = [1.0, 1.01, 0.99, 1.0, 1.02, 0.98, 1.0, 1.01, 0.99, 1.0]


def test_summary_is_median_and_interquartile_range() -> None:
    s = harness.summary([5.0, 1.0, 2.0, 4.0, 3.0])
    assert s["median"] == 3.0 and s["spread"] == pytest.approx(1.0) and len(s["rounds"]) == 5
    assert harness.summary(QUIET)["spread"] < 0.03


def test_ratio_is_refused_where_it_would_be_noise() -> None:
    base = measured("nir", QUIET)
    assert harness.ratio(base, measured("torch", [2 * t for t in QUIET])) == "2.00x"
    noisy = [1.0, 1.5, 2.0, 1.0, 1.6, 2.2, 1.1, 1.9, 1.3, 2.0]
    assert harness.ratio(base, measured("torch", noisy)).startswith("too noisy")
    assert harness.ratio(measured("nir", noisy), base).startswith("too noisy")
    assert harness.ratio(base, Measurement("resnet9", "torch", error="no torch")) == "-"


def test_disagreement_names_step_and_peers() -> None:
    a = measured("nir", QUIET, [1.0, 2.0])
    assert harness.disagreement([a, measured("torch", QUIET, [1.0, 2.001])], 1e-3) == ""
    wrong = harness.disagreement([a, measured("torch", QUIET, [1.0, 2.1])], 1e-3)
    assert wrong == "step 2: nir gives 2, torch gives 2.1"
    nan = harness.disagreement([a, measured("torch", QUIET, [math.nan, 2.0])], 1e-3)
    assert nan.startswith("step 1")


def test_report() -> None:
    text = harness.report(
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
    document = json.loads(harness.to_json([m], threads=1))
    assert document["threads"] == 1 and document["measurements"][0]["peer"] == "nir"


def test_failing_peer_is_reported() -> None:
    (m,) = harness.measure("mlp_resnet", ["no_such_peer"], threads=1, rounds=10, seconds=0.01)
    assert "KeyError" in m.error
