"""Compile time, calls and code of an LSTM's training step, by the length of its sequence.

python -m benchmarks.recurrent                     lengths 35 and 512
python -m benchmarks.recurrent --lengths 35,4096 --rounds 9
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence

import nir
from nir import nn
from nir.nn import functional as F

_WORDS, _WIDTH, _BATCH = 1000, 128, 16


class Model(nn.Module):
    """Words (T, B) to logits (T B, words), by two layers of LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_WORDS, _WIDTH)
        self.lstm = nn.LSTM(_WIDTH, _WIDTH, 2)
        self.linear = nn.Linear(_WIDTH, _WORDS)

    def forward(self, x: nir.Tensor) -> nir.Tensor:
        out, _ = self.lstm(self.embedding(x))
        return self.linear(out.reshape(-1, _WIDTH))


def compile_step(length: int) -> tuple[float, int, int]:
    """(seconds, calls, bytes of code) of a step traced and compiled with an empty cache."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NIR_CACHE_DIR"] = folder
        sys.modules["nir.compile"]._blobs.clear()  # what this process has compiled already
        model = Model()

        def step(x: nir.Tensor, y: nir.Tensor) -> tuple[nir.Tensor, ...]:
            loss = F.cross_entropy(model(x), y.reshape(-1))
            loss.backward()
            grads = tuple(p.grad for p in model.parameters())
            model.zero_grad()
            return loss.detach(), *grads

        start = time.perf_counter()
        graph = nir.trace(step, *(f"i64[{length},{_BATCH}]",) * 2, state=[model])
        exe = nir.compile(graph)
        seconds = time.perf_counter() - start
        code = exe.executable.codes([exe.executable.isa])
        size = sum(len(blob) for by_isa in code.values() for blob in by_isa.values())
        return seconds, len(exe.program.calls), size


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recurrent")
    parser.add_argument("--lengths", default="35,512")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args(arguments)
    lengths = [int(n) for n in args.lengths.split(",")]
    times: dict[int, list[float]] = {n: [] for n in lengths}
    facts: dict[int, tuple[int, int]] = {}
    compile_step(lengths[0])  # loads LLVM
    for _ in range(args.rounds):
        for n in lengths:
            seconds, *rest = compile_step(n)
            times[n].append(seconds)
            facts[n] = (rest[0], rest[1])
    print(f"{'length':>8} {'ms':>8} {'low':>8} {'high':>8} {'ratio':>7} {'calls':>6} {'code':>8}")
    first = statistics.median(times[lengths[0]])
    for n in lengths:
        middle = statistics.median(times[n])
        print(
            f"{n:>8} {1e3 * middle:8.1f} {1e3 * min(times[n]):8.1f} {1e3 * max(times[n]):8.1f} "
            f"{middle / first:7.2f} {facts[n][0]:>6} {facts[n][1]:>8}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
