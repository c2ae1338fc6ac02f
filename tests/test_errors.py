"""The corpus of broken programs: each raises the stated error and names the stated line."""

from __future__ import annotations

import re
import runpy
from collections import Counter
from pathlib import Path

import pytest

from nir import errors
from nir.ir.location import display_path

CORPUS = sorted(Path(__file__).with_name("errors").glob("*.py"))
# What the error says must come from a run or from a gradient, not from the line being recorded.
LATE = ("run_", "index_", "backward_", "stale_")
KINDS = (
    "axis", "backward", "capture", "control", "device", "dtype", "index", "run", "shape", "spec",
    "stale", "unsupported",
)  # fmt: skip


def expectation(path: Path) -> tuple[type[errors.NirError], int]:
    """The error that the program's first line asks for, and the line it names."""
    first = path.read_text().split("\n", 1)[0]
    match = re.fullmatch(r"# expect: (\w+) line (\d+)", first)
    assert match, f"{path} starts with {first!r}, not with '# expect: Kind line N'"
    return getattr(errors, match[1]), int(match[2])


@pytest.mark.parametrize("path", CORPUS, ids=lambda p: p.stem)
def test_broken_program(path: Path) -> None:
    kind, line = expectation(path)
    with pytest.raises(errors.NirError) as caught:
        runpy.run_path(str(path))
    error = caught.value
    assert type(error) is kind, f"{type(error).__name__}: {error}"
    assert str(error.location) == f"{display_path(str(path))}:{line}", str(error)
    assert error.message and str(error) == f"{error.message}\n  at {error.location}"


def test_corpus_is_broad_enough() -> None:
    count = Counter(path.stem.split("_")[0] for path in CORPUS)
    assert sorted(count) == sorted(KINDS)
    assert all(count[kind] >= 4 for kind in KINDS), count
    assert len(CORPUS) >= 60
    assert sum(path.stem.startswith(LATE) for path in CORPUS) >= 20
