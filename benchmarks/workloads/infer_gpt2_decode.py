"""GPT-2 small decoding, a word at a time."""

from benchmarks import decoding
from benchmarks.workloads import Workload

WORKLOAD = Workload(
    title="GPT-2 small decoding, a word at a time behind 128 to 255 others",
    peers={
        "nir": lambda: decoding.step_of(decoding.nir_decode),
        "torch": lambda: decoding.step_of(decoding.torch_decode),
        "torch_compile": lambda: decoding.step_of(lambda: decoding.torch_decode(compiled=True)),
        "ort": lambda: decoding.step_of(decoding.ort_decode),
        "jax": lambda: decoding.step_of(decoding.jax_decode),
    },
    check_steps=4,
)
