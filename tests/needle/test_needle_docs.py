"""The page for Needle users shows what its code prints."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

from nir.needle.store import IS_NUMPY

PAGE = Path(__file__).parents[2] / "docs" / "from-needle.md"


@pytest.mark.skipif(IS_NUMPY, reason="the page shows the nd personality")
def test_outputs_on_the_page_are_real() -> None:
    """Each block of code is followed by what it prints."""
    blocks = re.findall(r"```(python|text)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    start = next(i for i, (_, body) in enumerate(blocks) if body.startswith("import nir\n"))
    shown = blocks[start:]
    assert len(shown) == 6
    names: dict[str, Any] = {"__name__": "block"}
    for (kind, code), (_, expected) in zip(shown[::2], shown[1::2], strict=True):
        assert kind == "python"
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(code, "block.py", "exec"), names)
        lines = [line.rstrip() for line in out.getvalue().rstrip().splitlines()]
        assert lines == expected.rstrip().splitlines()
