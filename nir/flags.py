"""The environment variables that nir reads: all of them, in one table.

They are read when they are needed, never at import, so a test or a program may set them late.
"""

from __future__ import annotations

import os
from pathlib import Path

from nir.errors import NirError
from nir.frozen import Frozen

ISA_LEVELS = ("avx512", "avx2", "plain")


class Flag(Frozen):
    """An environment variable: its name, what its value looks like, and what it does."""

    name: str
    value: str
    doc: str


FLAGS: tuple[Flag, ...] = (
    Flag(
        "NIR_DUMP",
        "a directory",
        "Write the graph after each pass that changed it, one folder for each compiled graph.",
    ),
    Flag(
        "NIR_VERIFY",
        "0 or 1",
        "Run the reference interpreter before and after each pass; stop where they differ.",
    ),
    Flag(
        "NIR_ISA",
        " | ".join(ISA_LEVELS),
        "Use kernels of this instruction set; the default is the best that the processor has.",
    ),
    Flag(
        "NIR_NUM_THREADS",
        "a positive integer",
        "Threads that run kernels; the default is the number of processors this process may use.",
    ),
    Flag(
        "NIR_CACHE_DIR",
        "a directory",
        "Where compiled kernels are kept; the default is nir in XDG_CACHE_HOME or ~/.cache.",
    ),
)


def dump_dir() -> Path | None:
    """NIR_DUMP, or None."""
    text = os.environ.get("NIR_DUMP", "")
    return Path(text) if text else None


def verify() -> bool:
    """NIR_VERIFY."""
    text = os.environ.get("NIR_VERIFY", "") or "0"
    if text not in ("0", "1"):
        raise NirError(f"NIR_VERIFY: expected 0 or 1, got {text!r}")
    return text == "1"


def isa() -> str | None:
    """NIR_ISA, or None for the best that the processor has."""
    text = os.environ.get("NIR_ISA", "")
    if text and text not in ISA_LEVELS:
        raise NirError(f"NIR_ISA: expected {', '.join(ISA_LEVELS)}, got {text!r}")
    return text or None


def num_threads() -> int | None:
    """NIR_NUM_THREADS, or None for as many as this process may use."""
    text = os.environ.get("NIR_NUM_THREADS", "")
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise NirError(f"NIR_NUM_THREADS: expected a positive integer, got {text!r}")
    return int(text)


def cache_dir() -> Path:
    """NIR_CACHE_DIR, or the user's cache directory."""
    text = os.environ.get("NIR_CACHE_DIR", "")
    if text:
        return Path(text)
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "nir"
