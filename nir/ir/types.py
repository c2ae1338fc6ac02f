"""Types of values: dtype, shape and device, printed as ``f32[B,784]``."""

from __future__ import annotations

from typing import Any, Literal

import ml_dtypes
import numpy as np

from nir.frozen import Frozen, kept
from nir.ir.dim import Dim, Shape, prod


class DType(Frozen, eq=False):
    """An element type: its name in the IR, its kind, its size in bytes and its numpy dtype.

    There is one object of each, since passes compare them very often.
    """

    name: str
    kind: Literal["float", "int", "uint", "bool"]
    itemsize: int
    numpy: np.dtype

    @property
    def is_float(self) -> bool:
        return self.kind == "float"

    @property
    def is_integer(self) -> bool:
        return self.kind in ("int", "uint")

    def __str__(self) -> str:
        return self.name

    __repr__ = __str__

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return dtype, (self.name,)


f64 = DType("f64", "float", 8, np.dtype(np.float64))
f32 = DType("f32", "float", 4, np.dtype(np.float32))
f16 = DType("f16", "float", 2, np.dtype(np.float16))
bf16 = DType("bf16", "float", 2, np.dtype(ml_dtypes.bfloat16))
i64 = DType("i64", "int", 8, np.dtype(np.int64))
i32 = DType("i32", "int", 4, np.dtype(np.int32))
i16 = DType("i16", "int", 2, np.dtype(np.int16))
i8 = DType("i8", "int", 1, np.dtype(np.int8))
u8 = DType("u8", "uint", 1, np.dtype(np.uint8))
bool_ = DType("bool", "bool", 1, np.dtype(np.bool_))

DTYPES: dict[str, DType] = {d.name: d for d in (f64, f32, f16, bf16, i64, i32, i16, i8, u8, bool_)}
_ALIASES: dict[Any, DType] = {
    **DTYPES,
    **{d.numpy: d for d in DTYPES.values()},
    "float64": f64, "float32": f32, "float16": f16, "bfloat16": bf16,
    "int64": i64, "int32": i32, "int16": i16, "int8": i8, "uint8": u8,
    float: f32, int: i64, bool: bool_,
}  # fmt: skip


def dtype(spec: object) -> DType:
    """The DType that ``spec`` names: a DType, "f32", "float32", np.float32, float."""
    if isinstance(spec, DType):
        return spec
    key: Any = spec
    try:
        return _ALIASES[key] if key in _ALIASES else _ALIASES[np.dtype(key)]
    except (KeyError, TypeError):
        raise TypeError(f"no nir dtype for {spec!r}; there are {', '.join(DTYPES)}") from None


class TensorType(Frozen):
    """The type of a value: a dense tensor.

    ``layout`` is the physical order of the elements: "" is row-major, "panel16" a matrix of
    shape (..., K, N) packed for matmul into panels of 16 columns, k-major, zero-padded.
    """

    dtype: DType
    shape: Shape = ()
    layout: str = ""
    device: str = "cpu"

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> Dim:
        """Number of elements."""
        return prod(self.shape)

    @kept
    def nbytes(self) -> Dim:
        """Bytes of storage, the padding of the layout included."""
        if self.layout == "panel16":
            *batch, k, n = self.shape
            return prod(batch) * k * ((n + 15) // 16 * 16) * self.dtype.itemsize
        return self.size * self.dtype.itemsize

    @property
    def is_static(self) -> bool:
        return all(isinstance(d, int) for d in self.shape)

    def with_(self, **changes: object) -> TensorType:
        fields = {
            "dtype": self.dtype,
            "shape": self.shape,
            "layout": self.layout,
            "device": self.device,
        }
        return TensorType(**{**fields, **changes})  # type: ignore[arg-type]

    def __str__(self) -> str:
        layout = f"{{{self.layout}}}" if self.layout else ""
        device = f"@{self.device}" if self.device != "cpu" else ""
        return f"{self.dtype}[{','.join(map(str, self.shape))}]{layout}{device}"

    __repr__ = __str__
