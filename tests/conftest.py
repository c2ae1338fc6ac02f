"""Options and fixtures of the test run."""

from __future__ import annotations

import pytest
from golden import Golden


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update", action="store_true", help="rewrite the golden files of tests")
    parser.addoption(
        "--fuzz-graphs", type=int, default=2000, help="how many random graphs test_fuzz.py makes"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # It takes minutes, with processes of its own: last, it would be waited for.
    items.sort(key=lambda item: item.path.name != "test_fuzz_cpu.py")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """Compare with a file in tests/golden (see golden.py)."""
    return Golden(request.config.getoption("--update"))
