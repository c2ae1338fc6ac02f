"""The CPU target: the ISA levels, and which kernel of kernels/cpu covers which op.

`KERNELS` maps an op's name to a function from the op to its `KernelCall`, or to None where no
kernel fits (dtype, rank). Elementwise ops, plain reductions and sources are not here: the code
generator makes loops of them.
"""

from __future__ import annotations

import functools
import pathlib
import platform
from collections.abc import Callable, Mapping
from typing import Any, Literal

from nir import flags
from nir.ir.program import Target
from nir.targets.cpu_attention import ATTENTION
from nir.targets.cpu_contractions import CONTRACTIONS
from nir.targets.cpu_movement import MOVEMENT
from nir.targets.kernel_call import KernelCall

# Words of /proc/cpuinfo that a level needs.
_NEEDS = {
    "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx2", "fma", "f16c"},
    "avx2": {"avx2", "fma", "f16c"},
    "plain": set[str](),
}

KERNELS: Mapping[str, Callable[[Any], KernelCall | None]] = {
    **ATTENTION,
    **CONTRACTIONS,
    **MOVEMENT,
}

# Ops whose kernels call an epilogue on each finished tile of their result, in the space of all its
# axes but the last x the last.
EPILOGUES = frozenset(
    {"matmul", "conv2d", "conv2d_input_grad", "max_pool2d", "avg_pool2d", "avg_pool2d_grad"}
)


@functools.cache
def host_isa() -> str:
    """The best of `flags.ISA_LEVELS` that this machine's CPU runs."""
    have: set[str] = set()
    info = pathlib.Path("/proc/cpuinfo")
    if platform.machine() in ("x86_64", "AMD64") and info.exists():
        lines = info.read_text().splitlines()
        have = set(next((line for line in lines if line.startswith("flags")), "").split())
    return next(level for level in flags.ISA_LEVELS if have >= _NEEDS[level])


def target(
    isa: str | None = None, threads: int = 1, numerics: Literal["strict", "fast"] = "fast"
) -> Target:
    """The Target for ``isa``; without one, for NIR_ISA or else this machine's best level.

    ``numerics`` "strict" excludes what rounds otherwise than the definition of an op
    (docs/numerics.md).
    """
    return Target("cpu", isa or flags.isa() or host_isa(), threads, numerics, KERNELS, EPILOGUES)
