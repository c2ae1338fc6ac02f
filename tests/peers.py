"""PyTorch for the tests that compare with it."""

from __future__ import annotations

import importlib
import os
from typing import Any

import pytest


def torch_or_skip() -> Any:
    """The torch module; without it the module's tests are skipped, or fail under NIR_REQUIRE_TORCH.

    Continuous integration sets that variable, so that it cannot skip them unnoticed.
    """
    if os.environ.get("NIR_REQUIRE_TORCH"):
        return importlib.import_module("torch")
    return pytest.importorskip("torch")
