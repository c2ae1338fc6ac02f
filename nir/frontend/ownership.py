"""Who else relies on a buffer: reference counts of cells and storages.

A buffer may be given to a run only if its Tensor alone holds it: no op recorded and not yet run,
no detached Tensor. (Views, of numpy or DLPack, are counted by the runtime.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nir.runtime import holdings

if TYPE_CHECKING:
    from nir.frontend.tensor import Tensor

__all__ = ["holdings", "is_shared"]


def is_shared(t: Tensor) -> bool:
    """Whether ops not yet run, or other Tensors, rely on the buffer of ``t``."""
    return not holdings([t])[2][0]
