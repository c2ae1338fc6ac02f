"""The safetensors file format: named arrays after a JSON header; read and written here.

    8 bytes     u64, little-endian: length n of the header
    n bytes     JSON {name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {}}
    the rest    the arrays, little-endian and row-major, without gaps

The format is specified at https://huggingface.co/docs/safetensors; no code is run by a load.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nir.errors import NirError
from nir.ir.types import DTYPES, dtype

_NAMES = {
    "f64": "F64", "f32": "F32", "f16": "F16", "bf16": "BF16", "i64": "I64", "i32": "I32",
    "i16": "I16", "i8": "I8", "u8": "U8", "bool": "BOOL",
}  # fmt: skip
_DTYPES = {name: DTYPES[ours].numpy for ours, name in _NAMES.items()}
_ALIGN = 8  # the header is padded with spaces, so that the arrays start aligned


def save_file(
    tensors: Mapping[str, np.ndarray], path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write ``tensors`` to ``path``: all of it or, if the write fails, nothing."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    chunks, offset = [], 0
    # Wide types first keeps every array aligned to its own type.
    for name in sorted(tensors, key=lambda n: (-tensors[n].dtype.itemsize, n)):
        array = tensors[name]
        data = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": _NAMES[dtype(array.dtype).name],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + len(data)],
        }
        chunks.append(data)
        offset += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGN)
    path = Path(path)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(len(text).to_bytes(8, "little"))
            file.write(text)
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def load_file(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays and the metadata in the file. Raises NirError if it is damaged or foreign."""
    data = Path(path).read_bytes()
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > len(data) - 8:
        raise NirError(f"{path}: expected a safetensors file, got {len(data)} bytes")
    try:
        header = json.loads(data[8 : 8 + size])
        metadata = header.pop("__metadata__", {})
        tensors = {name: _array(data, 8 + size, entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise NirError(f"{path}: damaged safetensors file: {error!r}") from None
    return tensors, metadata


def _array(data: bytes, start: int, entry: dict[str, Any]) -> np.ndarray:
    kind, shape = _DTYPES[entry["dtype"]], tuple(int(n) for n in entry["shape"])
    begin, end = entry["data_offsets"]
    count = math.prod(shape)
    if min(shape, default=0) < 0 or not 0 <= begin <= end <= len(data) - start:
        raise ValueError(f"range {begin}..{end} of {len(data) - start} bytes, shape {shape}")
    if end - begin != count * kind.itemsize:
        raise ValueError(f"{end - begin} bytes for {count} elements of {kind}")
    return np.frombuffer(data, kind, count, start + begin).reshape(shape).copy()
