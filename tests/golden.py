"""Golden files: text that a test expects, kept in tests/golden, rewritten by ``pytest --update``.

The fixture is in conftest.py:

    def test_something(golden: Golden) -> None:
        golden("simplify/double_neg", graph)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nir.ir.graph import Graph
from nir.ir.text import parse_graph, print_graph, write_graph

FOLDER = Path(__file__).parent / "golden"


class Golden:
    """Compares text, or graphs as text, with golden files."""

    def __init__(self, update: bool, folder: Path = FOLDER) -> None:
        self.update, self.folder = update, folder

    def __call__(self, name: str, what: Graph | str) -> None:
        """Check that ``what`` is the content of golden/<name>; graphs get the suffix .nir.

        With ``--update`` the file is written instead. Golden graphs must also parse.
        """
        path = self.folder / (f"{name}.nir" if isinstance(what, Graph) else name)
        arrays: dict[str, np.ndarray] = {}
        text = what if isinstance(what, str) else print_graph(what, arrays)
        if isinstance(what, Graph):
            assert print_graph(parse_graph(text, arrays)) == text, f"{name} prints otherwise again"
        if self.update:
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(what, Graph):
                write_graph(path, what)
            else:
                path.write_text(text, encoding="utf-8")
            return
        assert path.exists(), f"{path} is missing: run pytest --update and read what it wrote"
        expected = path.read_text(encoding="utf-8")
        assert text == expected, f"{name} differs from its golden file; pytest --update rewrites it"
