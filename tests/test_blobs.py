"""Loops compiled on threads: the same code as one by one, errors in their place, nothing left."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from codegen_harness import fused

import nir.blobs
from nir.blobs import Batch, blobs_of, loop_text
from nir.codegen import Compiler, LoopKernel, compile_blob, compile_object, lower_fused
from nir.errors import CodegenError
from nir.runtime import object_cache

ISA = "avx2"


@pytest.fixture(autouse=True)
def nothing_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(nir.blobs, "_blobs", {})


def loops(count: int = 6) -> dict[str, LoopKernel]:
    def scaled(k: int) -> Callable[..., object]:
        return lambda x: (x * float(k + 2)).exp()

    return {f"loop{k}": lower_fused(fused("map", ["f32[B,40]"], scaled(k))) for k in range(count)}


def workers() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "nir-llvm"]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_objects_do_not_depend_on_threads(threads: int) -> None:
    texts = [loop_text(kernel, ISA) for kernel in loops().values()]
    with Compiler(ISA, threads) as compiler:
        jobs = [compiler.begin(text) for text in texts]
        assert 1 <= len(workers()) <= threads
        got = [job.object() for job in jobs]
    assert got == [compile_object(text, ISA) for text in texts]
    assert len(set(got)) == len(texts)
    assert workers() == []


def test_a_batch_leaves_its_blobs_in_the_process_and_on_disk() -> None:
    kernels = loops()
    with Batch(ISA) as batch:
        for kernel in kernels.values():
            batch.begin(loop_text(kernel, ISA))
            batch.begin(loop_text(kernel, ISA))
    stored = object_cache().stats.stored
    made = blobs_of(kernels, ISA)
    assert made == {n: compile_blob(loop_text(k, ISA), ISA) for n, k in kernels.items()}
    nir.blobs._blobs.clear()
    assert blobs_of(kernels, ISA) == made  # from disk
    assert object_cache().stats.stored == stored == len(kernels)


def test_a_wrong_text_is_an_error_and_ends_the_threads() -> None:
    good = loop_text(loops(1)["loop0"], ISA)
    with pytest.raises(CodegenError, match="LLVM refuses"), Batch(ISA) as batch:
        batch.begin(good)
        batch.begin("define i32 @k( {")
    assert workers() == []
    assert (good, ISA) not in nir.blobs._blobs
