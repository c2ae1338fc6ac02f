"""The errors that users meet. Every message says what was expected, what came, and where."""

from __future__ import annotations


class NirError(Exception):
    """Base of all errors raised by nir.

    ``location`` is the user's line ("model.py:16"), or None where no line is to blame.
    """

    def __init__(self, message: str, location: object = None) -> None:
        self.message = message
        self.location = location
        super().__init__(message)

    def __str__(self) -> str:
        return f"{self.message}\n  at {self.location}" if self.location else self.message


class ShapeError(NirError, ValueError):
    """Operand shapes, axes or sizes do not fit together."""


class DTypeError(NirError, TypeError):
    """An operand has a dtype that the op does not take."""


class DeviceError(NirError):
    """Operands lie on different devices, or the device is not there."""


class IndexRangeError(NirError, IndexError):
    """An index read at run time lies outside its axis."""


class TraceError(NirError, TypeError):
    """A traced function did something that a static graph cannot hold."""


class NotDifferentiable(NirError):
    """A gradient was asked of an op that has none."""


class UnsupportedError(NirError):
    """An op has neither kernel nor decomposition for the target."""


class StaleTensorError(NirError):
    """A tensor's buffer was donated or overwritten, and then read."""


class VerifyError(NirError):
    """A graph breaks an invariant, or a pass changed a graph's meaning."""


class ParseError(NirError, ValueError):
    """Text is not a graph."""


class PackageError(NirError):
    """A .nirp file is damaged, foreign or of another version."""


class CodegenError(NirError):
    """Code generation failed: a bug in nir, never in the user's model."""


class MemoryBudgetError(NirError, MemoryError):
    """A program needs more memory than allowed or available."""
