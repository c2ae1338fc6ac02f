"""Where an op came from: the user's line, an importer's node, or a builder."""

from __future__ import annotations

import functools
import os
import sys
from types import FrameType

from nir.frozen import Frozen


class Location(Frozen):
    """A source line (``model.py:16``); ``line`` 0 names something that has no lines.

    ``backward`` marks ops that differentiation made for the line; messages do not show it.
    """

    file: str
    line: int
    backward: bool = False

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"

    __repr__ = __str__

    def __lt__(self, other: Location) -> bool:
        return (self.file, self.line, self.backward) < (other.file, other.line, other.backward)


Locations = frozenset[Location]


@functools.lru_cache(1 << 12)
def derived(locs: Locations) -> Locations:
    """``locs`` for the ops of a gradient."""
    return frozenset(Location(loc.file, loc.line, True) for loc in locs)


_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_DISPLAY: dict[str, str] = {}


def display_path(filename: str) -> str:
    """``filename`` relative to the working directory where it lies below it."""
    shown = _DISPLAY.get(filename)
    if shown is None:
        relative = os.path.relpath(filename) if os.path.isabs(filename) else filename
        shown = filename if relative.startswith("..") else relative
        _DISPLAY[filename] = shown
    return shown


_OWN: dict[str, bool] = {}  # whether a file is nir's own, or none of a user's


@functools.lru_cache(1 << 14)
def _at(filename: str, line: int) -> Location:
    return Location(display_path(filename), line)


def caller() -> Location:
    """The innermost line on the stack that is not nir's own: the line to name in messages."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        filename = frame.f_code.co_filename
        own = _OWN.get(filename)
        if own is None:
            own = _OWN[filename] = filename.startswith((_PACKAGE, "<frozen", "<string>"))
        if not own:
            return _at(filename, frame.f_lineno)
        frame = frame.f_back
    return Location("unknown", 0)
