"""Checkpoints: the state of a training run in one safetensors file.

    nir.save_checkpoint("run.safetensors", model=model, optimizer=opt, loader=loader)
    nir.load_checkpoint("run.safetensors", model=model, optimizer=opt, loader=loader)

Anything with ``state_dict`` and ``load_state_dict`` takes part: modules, optimisers, schedulers,
generators, loaders. Arrays are stored under their path (``model.conv.weight``), all else as JSON
in the metadata, so other readers of safetensors see the weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nir.errors import NirError
from nir.frontend import safetensors
from nir.frontend.tensor import Tensor

_FORMAT = "nir checkpoint 1"


def save_checkpoint(path: str | Path, **objects: Any) -> None:
    """Write the state of each object under its keyword; the file is replaced as a whole."""
    tensors: dict[str, np.ndarray] = {}
    tree = {name: _encode(_state(name, o), name, tensors) for name, o in objects.items()}
    metadata = {"format": _FORMAT, "state": json.dumps(tree)}
    safetensors.save_file(tensors, path, metadata)


def load_checkpoint(path: str | Path, **objects: Any) -> None:
    """Give each object the state saved under its keyword.

    Raises NirError if the file is no checkpoint or holds other objects than those named.
    """
    tensors, metadata = safetensors.load_file(path)
    if metadata.get("format") != _FORMAT:
        raise NirError(f"{path}: expected a {_FORMAT!r}, got format {metadata.get('format')!r}")
    tree = json.loads(metadata["state"])
    if set(tree) != set(objects):
        raise NirError(f"{path}: holds {sorted(tree)}, asked for {sorted(objects)}")
    for name, target in objects.items():
        target.load_state_dict(_decode(tree[name], tensors))


def _state(name: str, target: Any) -> Any:
    if not hasattr(target, "state_dict") or not hasattr(target, "load_state_dict"):
        raise NirError(
            f"save_checkpoint: {name}: expected an object with state_dict and load_state_dict, "
            f"got {type(target).__name__}"
        )
    return target.state_dict()


def _encode(value: Any, path: str, tensors: dict[str, np.ndarray]) -> Any:
    """``value`` as JSON; arrays go to ``tensors`` and leave their path behind."""
    match value:
        case Tensor() | np.ndarray() | np.generic():
            tensors[path] = value.numpy() if isinstance(value, Tensor) else np.asarray(value)
            return {"tensor": path}
        case Mapping():
            # Pairs, since JSON knows string keys only.
            return {"map": [[k, _encode(v, f"{path}.{k}", tensors)] for k, v in value.items()]}
        case list() | tuple():
            return {"list": [_encode(v, f"{path}.{i}", tensors) for i, v in enumerate(value)]}
        case None | bool() | int() | float() | str():
            return value
    raise NirError(f"save_checkpoint: {path}: cannot store a {type(value).__name__}")


def _decode(value: Any, tensors: dict[str, np.ndarray]) -> Any:
    match value:
        case {"tensor": path}:
            return tensors[path]
        case {"map": pairs}:
            return {k: _decode(v, tensors) for k, v in pairs}
        case {"list": items}:
            return [_decode(v, tensors) for v in items]
    return value
