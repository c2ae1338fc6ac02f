"""Random graphs through passes, code generation and kernels, against the interpreter.

python tests/fuzz_cpu.py 0:2000          check the graphs of these seeds on every ISA level
python tests/fuzz_cpu.py 17 --write      shrink a failure of seed 17 and write a test for it
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import backend_harness
import fuzz
import numpy as np
from backend_harness import ISAS

from nir.errors import UnsupportedError
from nir.ir.graph import Graph
from nir.ir.interp import run
from nir.ir.op import Op, Value
from nir.ops import Cast, Cos, Eq, Ne, Prod, Sin

# What the CPU refuses by name, and rightly: convolutions whose kernel has no fixed size.
UNSUPPORTED = re.compile(r"conv2d\w*\(.*B,")


def runnable(graph: Graph, inputs: fuzz.Arrays) -> tuple[Graph, fuzz.Arrays]:
    """``graph`` with inputs in place of what the CPU does not run, or not in the same order.

    Those are products that overflow on the way to 0 (0 * inf is nan in one order and 0
    in another), convolutions of infinities or nan, sines of numbers beyond the range of their
    bound, integers of floats that are almost integers, tests whether almost equal floats are equal,
    and attention to scores whose exponentials overflow. What a region computes is not seen: one
    that holds products or sines is cut out.
    """
    known: dict[Value, np.ndarray] = {}
    cut: list[Op] = []

    def see(op: Op, operands: Sequence[np.ndarray], results: Sequence[np.ndarray]) -> None:
        known.update(zip(op.results, results, strict=True))
        inside = [o for _, region in op.regions() for o in fuzz.walk(region)]
        unseen = any(isinstance(o, Prod | Sin | Cos) for o in inside)
        overflows = isinstance(op, Prod) and _huge(operands[0])
        turns = isinstance(op, Sin | Cos) and bool((np.abs(operands[0]) > 1e5).any())
        # Kernels multiply padding by weights, and 0 * nan is nan.
        padded = op.name.startswith("conv") and not all(map(_is_finite, operands))
        jumps = isinstance(op, Cast) and op.dtype.is_integer and _nearly_integer(operands[0])
        equals = isinstance(op, Eq | Ne) and _nearly_equal(*operands)
        bursts = op.name.startswith("attention") and any(_bursts(x) for x in operands)
        if equals or bursts or unseen or overflows or turns or padded or jumps:
            cut.append(op)

    run(graph, inputs, trace=see)
    return fuzz._cut(graph, inputs, cut, known) if cut else (graph, inputs)


def _is_finite(x: np.ndarray) -> bool:
    return x.dtype.kind != "f" or bool(np.isfinite(x).all())


def _nearly_integer(x: np.ndarray) -> bool:
    """Whether some element is an integer but for rounding, which may go to either side of it."""
    if x.dtype.kind != "f":
        return False
    with np.errstate(all="ignore"):
        off = np.abs(x - np.round(x))
        near = off <= 64 * np.finfo(x.dtype).eps * np.maximum(1, np.abs(x))
    return bool((near & (off > 0)).any())


def _nearly_equal(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether two floats are equal but for rounding."""
    if x.dtype.kind != "f":
        return False
    with np.errstate(all="ignore"):
        return bool((np.abs(x - y) <= 64 * np.finfo(x.dtype).eps * np.abs(x)).any())


def _bursts(x: np.ndarray | None) -> bool:
    """Whether a score made of ``x`` may be beyond the exponential's range."""
    return x is not None and x.dtype.kind == "f" and bool((np.abs(x) > 20).any())


def _huge(x: np.ndarray) -> bool:
    """Whether the magnitudes of some elements may overflow when they are multiplied."""
    if x.dtype.kind != "f":
        return False
    with np.errstate(all="ignore"):
        sizes = np.log2(np.abs(x.astype(np.float64)))
    sizes = sizes[np.isfinite(sizes)]
    low, high = np.finfo(x.dtype).minexp, np.finfo(x.dtype).maxexp
    return bool(sizes[sizes > 0].sum() >= high - 1 or sizes[sizes < 0].sum() <= low + 1)


def check(graph: Graph, inputs: fuzz.Arrays, isas: Sequence[str] = tuple(ISAS)) -> None:
    """Compile and run what is runnable of ``graph``; an exception is a finding."""
    try:
        backend_harness.check(*runnable(graph, inputs), isas)
    except UnsupportedError as error:
        if not UNSUPPORTED.match(str(error)):
            raise


def check_seeds(seeds: range) -> tuple[Counter[str], list[str]]:
    """How many graphs of these seeds held each op, and the failures on any ISA level."""
    seen: Counter[str] = Counter()
    failures = []
    for seed in seeds:
        case = fuzz.generate(seed)
        seen.update({op.name for op in fuzz.walk(case.graph)})
        try:
            check(case.graph, case.inputs)
        except Exception as error:
            failures.append(f"seed {seed}: {type(error).__name__}: {error}")
    return seen, failures


def main() -> int:
    fuzz.CHECKS.clear()
    fuzz.CHECKS["cpu"] = partial(check)
    status = fuzz.main()
    for path in Path(__file__).parent.glob("test_found_*.py"):
        path.write_text(
            path.read_text().replace("from fuzz import check", "from fuzz_cpu import check")
        )
    return status


if __name__ == "__main__":
    sys.exit(main())
