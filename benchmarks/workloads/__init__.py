"""One file per workload; `Workload` is what a file must offer, as ``WORKLOAD``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

# A step does one unit of work, to its end, and returns what peers are compared by: a number (the
# loss, say), or the output as a numpy array.
Step = Callable[[], Any]


@dataclass(frozen=True)
class Workload:
    """The same work on several peers.

    ``peers`` maps a peer's name to a function that imports it, builds the model from the
    workload's own weights and data, and returns its step. After ``check_steps`` steps the results
    must agree within ``tolerance``, relatively: numbers to each other, elements of arrays to the
    largest of their array.

    ``flops`` is the arithmetic of a step and ``moved`` the bytes that it must read or write in
    memory at least, where either says how far from the machine's limit the step is.
    ``parameters`` counts what is trained; a peer's memory for parameters and optimiser state is
    that many f32, three times for a training step with Adam.
    """

    title: str
    peers: Mapping[str, Callable[[], Step]]
    check_steps: int = 3
    tolerance: float = 1e-3
    kind: Literal["training", "inference"] = "inference"
    flops: float = 0.0
    moved: float = 0.0
    parameters: int = 0

    @property
    def state_bytes(self) -> int:
        """Bytes of parameters, and of Adam's two moments if they are trained."""
        return 4 * self.parameters * (3 if self.kind == "training" else 1)


_PACKAGES = {"needle": "nir", "ort": "onnxruntime"}


def package(peer: str) -> str:
    """The package behind ``peer``: torch of "torch_compile", nir of code in Needle's words."""
    name = peer.split("_")[0]
    return _PACKAGES.get(name, name)


def names() -> list[str]:
    """All workloads, by file name."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def load(name: str) -> Workload:
    """The workload in ``name``.py."""
    workload: Workload = importlib.import_module(f"{__name__}.{name}").WORKLOAD
    return workload
