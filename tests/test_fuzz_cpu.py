"""Random graphs compiled for the CPU, each on every ISA level."""

from __future__ import annotations

import multiprocessing
from collections import Counter

import pytest
from fuzz_cpu import check_seeds
from fuzz_graphs import FUZZED

CHUNK = 50


def test_random_graphs(request: pytest.FixtureRequest) -> None:
    count = request.config.getoption("--fuzz-graphs")
    chunks = [range(i, min(i + CHUNK, count)) for i in range(0, count, CHUNK)]
    seen: Counter[str] = Counter()
    failures = []
    # Processes of their own: compiling holds the interpreter's lock.
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for counts, failed in pool.imap(check_seeds, chunks):
            failures += failed
            seen += counts
    assert not failures, "shrink with: python tests/fuzz_cpu.py SEED --write\n" + "\n".join(
        failures
    )
    if count < 2000:
        pytest.skip("ops are counted over 2000 graphs")
    rare = {name: seen[name] for name in FUZZED if seen[name] < 20}
    assert not rare, "ops in fewer than 20 graphs"
