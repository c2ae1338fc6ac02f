"""Inference of one model on nir and its peers: equal weights, equal inputs, the outputs compared.

A step is one call on the next of four inputs, from an array to an array. Building a peer makes the
model; what compiles it (nir, a session of ONNX Runtime) belongs to the first call.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

import numpy as np

from benchmarks import weights
from benchmarks.workloads import Step

Build = Callable[[Any], Any]
Run = Callable[[np.ndarray], np.ndarray]
_INPUTS = 4


def images(batch: int, size: int, seed: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((batch, 3, size, size), np.float32) for _ in range(_INPUTS)]


def words(batch: int, length: int, count: int, seed: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, count, (batch, length)) for _ in range(_INPUTS)]


def peers(
    build: Build, inputs: Callable[[], Sequence[np.ndarray]], images: bool = False
) -> dict[str, Callable[[], Step]]:
    """The steps of a workload, by peer; networks of images also run channels last."""
    made = {name: run for name, run in RUNS.items() if images or name != "torch_channels_last"}

    def step_of(run: Callable[[Build, np.ndarray], Run]) -> Step:
        turn = cycle(inputs())
        call = run(build, next(turn))
        return lambda: call(next(turn))

    return {name: lambda run=run: step_of(run) for name, run in made.items()}  # type: ignore[misc]


def lazily(make: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
    """The function that ``make`` makes when it is first called."""
    made: list[Callable[..., Any]] = []

    def call(*args: Any) -> Any:
        if not made:
            made.append(make())
        return made[0](*args)

    return call


def threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS", "2"))


# ---- nir ---------------------------------------------------------------------------------------


def nir_model(build: Build) -> Any:
    import nir

    model = build(nir.nn).eval()
    model.load_state_dict(weights.inference(model.state_dict()))
    return model


def nir_spec(x: np.ndarray) -> str:
    kind = "f32" if x.dtype == np.float32 else "i64"
    return f"{kind}[{','.join(map(str, x.shape))}]"


def nir_run(build: Build, x: np.ndarray) -> Run:
    """The module compiled for one shape, its weights bound."""
    import nir

    model = nir_model(build)

    def make() -> Run:
        compiled = nir.compile(model, nir_spec(x))
        return lambda x: np.from_dlpack(compiled(x))

    return lazily(make)


# ---- PyTorch -----------------------------------------------------------------------------------


def torch_model(build: Build) -> Any:
    import torch

    torch.set_num_threads(threads())
    model = build(torch.nn).eval()
    made = weights.inference(model.state_dict())
    model.load_state_dict({path: torch.from_numpy(a) for path, a in made.items()})
    return model


def torch_run(build: Build, x: np.ndarray, form: str = "eager") -> Run:
    import torch

    model = torch_model(build)
    last = torch.channels_last if form == "channels_last" else torch.contiguous_format
    if form == "channels_last":
        model = model.to(memory_format=last)
    call = torch.compile(model) if form == "compile" else model

    def run(x: np.ndarray) -> np.ndarray:
        given = torch.from_numpy(x)
        with torch.inference_mode():
            out: np.ndarray = call(given.contiguous(memory_format=last)).numpy()
        return out

    return run


# ---- ONNX Runtime and TVM ----------------------------------------------------------------------


def onnx_model(model: Any, inputs: Any, **names: Any) -> bytes:
    """The PyTorch ``model`` in ONNX, traced on ``inputs``; ``names`` as of `torch.onnx.export`."""
    import torch

    file = io.BytesIO()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, inputs, file, dynamo=False, opset_version=17, **names)
    return file.getvalue()


def ort_session(model: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def ort_run(build: Build, x: np.ndarray) -> Run:
    import torch

    model = onnx_model(torch_model(build), (torch.from_numpy(x),), input_names=["x"])

    def make() -> Run:
        session = ort_session(model)
        return lambda x: session.run(None, {"x": x})[0]  # type: ignore[no-any-return]

    return lazily(make)


def tvm_run(build: Build, x: np.ndarray) -> Run:
    """Relax from ONNX, with the standard pipeline and no tuning."""
    import llvmlite.binding as llvm
    import onnx
    import torch
    import tvm
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    model = onnx_model(torch_model(build), (torch.from_numpy(x),), input_names=["x"])
    module = from_onnx(onnx.load_model_from_string(model), keep_params_in_input=False)

    def make() -> Run:
        target = tvm.target.Target({"kind": "llvm", "mcpu": llvm.get_host_cpu_name()})
        machine = relax.VirtualMachine(tvm.compile(module, target=target), tvm.cpu())

        def run(x: np.ndarray) -> np.ndarray:
            out = machine["main"](tvm.runtime.tensor(x))
            out = out[0] if not hasattr(out, "numpy") else out
            return out.numpy()  # type: ignore[no-any-return]

        return run

    return lazily(make)


# ---- JAX ---------------------------------------------------------------------------------------


def jax_run(build: Build, x: np.ndarray) -> Run:
    import jax

    from benchmarks import jax_layers

    jax.config.update("jax_enable_x64", False)
    model = build(jax_layers)
    made = {k: jax.numpy.asarray(a) for k, a in weights.inference(model.state_dict()).items()}
    # Weights are arguments: as constants they would be folded for minutes.
    call = jax.jit(jax_layers.functional_call(model, model))
    return lambda x: np.asarray(call(made, x))


RUNS: dict[str, Callable[[Build, np.ndarray], Run]] = {
    "nir": nir_run,
    "torch": torch_run,
    "torch_channels_last": lambda build, x: torch_run(build, x, "channels_last"),
    "torch_compile": lambda build, x: torch_run(build, x, "compile"),
    "ort": ort_run,
    "jax": jax_run,
    "tvm": tvm_run,
}


def agreement(build: Build, x: np.ndarray, others: Sequence[str]) -> dict[str, float]:
    """The largest difference of each peer's whole output from nir's, over nir's largest number."""
    own = nir_run(build, x)(x)
    scale = float(np.abs(own).max())
    return {name: float(np.abs(RUNS[name](build, x)(x) - own).max()) / scale for name in others}
