"""How a training step's time grows with batch and depth, what a second thread brings, and what a
busy neighbour costs.

python -m benchmarks.robustness            all four
python -m benchmarks.robustness threads neighbour

The step is forward, backward and Adam of a network of convolutions (64 channels on 16x16 images)
or of a multilayer perceptron. The neighbour is a process that spins on one of the cores.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

import nir
from nir import nn

_ROUNDS = 11
_BATCHES = (16, 32, 64, 128)
_DEPTHS = (2, 4, 8, 16)
Step = Callable[[], None]


def convolutions(batch: int, depth: int) -> Step:
    """A step of ``depth`` layers of 3x3 convolution, batch norm and ReLU."""
    blocks = [
        nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU())
        for _ in range(depth)
    ]
    return _step(nn.Sequential(*blocks), (batch, 64, 16, 16))


def perceptron(batch: int, depth: int) -> Step:
    """A step of ``depth`` layers of 1024 units."""
    layers = [nn.Sequential(nn.Linear(1024, 1024), nn.ReLU()) for _ in range(depth)]
    return _step(nn.Sequential(*layers), (batch, 1024))


def _step(model: nn.Module, shape: Sequence[int]) -> Step:
    opt = nir.optim.Adam(model.parameters(), 1e-3)

    @nir.jit(state=[model, opt])
    def step(x: nir.Tensor) -> nir.Tensor:
        opt.zero_grad()
        loss = (model(x) ** 2).mean()
        loss.backward()
        opt.step()
        return loss

    x = nir.tensor(np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    return lambda: step(x).item()


def seconds(steps: Sequence[Step]) -> list[float]:
    """The median time of each of ``steps``, which take turns."""
    for step in steps:
        step(), step()
    times: list[list[float]] = [[] for _ in steps]
    for _ in range(_ROUNDS):
        for own, step in zip(times, steps, strict=True):
            start = time.perf_counter()
            step()
            own.append(time.perf_counter() - start)
    return [statistics.median(own) for own in times]


def exponent(sizes: Sequence[int], times: Sequence[float]) -> float:
    """e of the power ``sizes ** e`` that fits ``times`` best.

    >>> round(exponent((1, 2, 4), (3.0, 6.0, 12.0)), 6)
    1.0
    """
    x, y = np.log(sizes), np.log(times)
    return float(np.polyfit(x, y, 1)[0])


def growth() -> None:
    """Batch and depth: a second of work for twice as much of either should be two."""
    for name, sizes, steps in (
        ("batch, 4 convolutions", _BATCHES, [convolutions(b, 4) for b in _BATCHES]),
        ("depth, batch 32", _DEPTHS, [convolutions(32, d) for d in _DEPTHS]),
    ):
        found = seconds(steps)
        shown = ", ".join(f"{n}: {1e3 * t:.2f} ms" for n, t in zip(sizes, found, strict=True))
        print(f"{name}: {shown}; exponent {exponent(sizes, found):.2f}", flush=True)


def threads() -> None:
    """The same step on one thread and on two."""
    for name, make in (
        ("8 convolutions, batch 64", lambda: convolutions(64, 8)),
        ("perceptron of 4 layers, batch 512", lambda: perceptron(512, 4)),
    ):
        step = make()
        found = []
        for count in (1, 2):
            nir.set_num_threads(count)
            found += seconds([step])
        one, two = found
        print(
            f"{name}: {1e3 * one:.2f} ms on one thread, {1e3 * two:.2f} on two: {one / two:.2f}x",
            flush=True,
        )


def neighbour() -> None:
    """Alone and beside a process that spins on one core."""
    step = convolutions(64, 8)
    (alone,) = seconds([step])
    with _spinning():
        (beside,) = seconds([step])
    nir.set_num_threads(1)
    (one,) = seconds([step])
    print(
        f"8 convolutions, batch 64: {1e3 * alone:.2f} ms alone, {1e3 * beside:.2f} beside a busy "
        f"neighbour ({beside / alone:.2f} times as long), {1e3 * one:.2f} on one thread alone",
        flush=True,
    )


@contextlib.contextmanager
def _spinning() -> Iterator[None]:
    cpu = max(os.sched_getaffinity(0))
    code = f"import os\nos.sched_setaffinity(0, {{{cpu}}})\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        time.sleep(0.3)
        yield
    finally:
        process.kill()
        process.wait()


_PARTS: dict[str, Callable[[], None]] = {
    "growth": growth,
    "threads": threads,
    "neighbour": neighbour,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(_PARTS)}; default: all")
    names = parser.parse_args().parts or list(_PARTS)
    for name in names:
        _PARTS[name]()


if __name__ == "__main__":
    main()
