"""Each pass on one small graph, before and after as text: tests/golden/passes/*.nir.

The files `<pass>.before.nir` are written by hand (or taken from a dump); `pytest --update` writes
`<pass>.after.nir`, to be read before it is committed.
"""

from __future__ import annotations

import pytest
from golden import FOLDER, Golden
from pass_harness import CPU

from nir.frozen import replace
from nir.ir.compare import compare
from nir.ir.interp import random_inputs
from nir.ir.text import read_graph
from nir.ir.verify import verify
from nir.passes.pipeline import PASSES

# With a limit that nothing keeps to: values are computed again as far as that helps.
TIGHT = replace(CPU, memory=1)


@pytest.mark.parametrize("name", PASSES)
def test_golden(name: str, golden: Golden) -> None:
    before = read_graph(FOLDER / "passes" / f"{name}.before.nir")
    after = PASSES[name](before, TIGHT)
    assert after is not before
    verify(after)
    golden(f"passes/{name}.after", after)
    for rows in (1, 70):
        inputs = random_inputs(before, 0, {"B": rows})
        assert compare(before, after, inputs) is None
