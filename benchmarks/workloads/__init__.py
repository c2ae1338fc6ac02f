"""One file per workload; `Workload` is what a file must offer, as ``WORKLOAD``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass

# A step does one unit of work and returns a number by which peers are compared (the loss, say).
Step = Callable[[], float]


@dataclass(frozen=True)
class Workload:
    """The same work on several peers.

    ``peers`` maps a peer's name to a function that imports it, builds the model from the
    workload's own weights and data, and returns its step. After ``check_steps`` steps the numbers
    returned must agree within ``tolerance``, relatively.
    """

    title: str
    peers: Mapping[str, Callable[[], Step]]
    check_steps: int = 3
    tolerance: float = 1e-3


def package(peer: str) -> str:
    """The package behind ``peer``: torch of "torch_compile", nir of code in Needle's words."""
    name = peer.split("_")[0]
    return "nir" if name == "needle" else name


def names() -> list[str]:
    """All workloads, by file name."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def load(name: str) -> Workload:
    """The workload in ``name``.py."""
    workload: Workload = importlib.import_module(f"{__name__}.{name}").WORKLOAD
    return workload
