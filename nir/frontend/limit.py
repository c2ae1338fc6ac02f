"""Amounts of memory as users write them."""

from __future__ import annotations

import re

from nir.errors import NirError
from nir.ir.location import caller

_UNITS = {
    **{"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9},
    **{"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30},
}
_AMOUNT = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMG]i?B|B|)\s*")


def bytes_of(amount: int | str | None) -> int | None:
    """64 << 20 or "64MiB" in bytes; None stays None.

    >>> bytes_of("1.5KiB")
    1536
    """
    if amount is None or (isinstance(amount, int) and not isinstance(amount, bool) and amount > 0):
        return amount
    found = _AMOUNT.fullmatch(amount) if isinstance(amount, str) else None
    if found is None:
        raise NirError(
            f"memory: expected a number of bytes or a text such as '64MiB', got {amount!r}",
            caller(),
        )
    return int(float(found[1]) * _UNITS[found[2]])
