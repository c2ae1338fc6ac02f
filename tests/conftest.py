"""Options and fixtures of the test run."""

from __future__ import annotations

import pytest
from golden import Golden


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update", action="store_true", help="rewrite the golden files of tests")
    parser.addoption(
        "--fuzz-graphs", type=int, default=2000, help="how many random graphs test_fuzz.py makes"
    )


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """Compare with a file in tests/golden (see golden.py)."""
    return Golden(request.config.getoption("--update"))
