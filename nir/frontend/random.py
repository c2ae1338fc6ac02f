"""Random tensors from counters: a Generator is a key and a counter, both ordinary state."""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np

from nir import ops
from nir.frontend.functional import _shape
from nir.frontend.methods.base import flat
from nir.frontend.tensor import Tensor, apply, source
from nir.ir.dim import Dim
from nir.ir.types import dtype, f32, i64
from nir.ops.random import blocks


class Generator:
    """A stream of Philox blocks: ``key`` names the stream, ``counter`` the next unused block.

    Every draw moves the counter on by what it used, in eager code and in compiled functions alike
    (where the generator is state), so equal seeds give equal numbers everywhere.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.key = Tensor(np.asarray(secrets.randbits(63) if seed is None else seed, np.int64))
        self.counter = Tensor(np.asarray(0, np.int64))

    def manual_seed(self, seed: int) -> Generator:
        """Start the stream of ``seed`` from its beginning."""
        self.key.copy_(Tensor(np.asarray(seed, np.int64)))
        self.counter.copy_(Tensor(np.asarray(0, np.int64)))
        return self

    def take(self, count: Dim) -> Tensor:
        """The counter, which then moves on by ``count`` blocks."""
        start = self.counter.detach()
        self.counter.copy_(start + source(ops.Full, value=count, shape=(), dtype=i64))
        return start

    def state_dict(self) -> dict[str, Tensor]:
        return {"key": self.key.detach(), "counter": self.counter.detach()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.key.copy_(Tensor(np.asarray(state["key"], np.int64)))
        self.counter.copy_(Tensor(np.asarray(state["counter"], np.int64)))


default_generator = Generator()


def manual_seed(seed: int) -> Generator:
    """Seed the generator that draws use unless they are given another."""
    return default_generator.manual_seed(seed)


def _draw(
    op: Any, shape: tuple[Dim, ...], times: int, g: Generator | None, *more: Any, **kw: Any
) -> Tensor:
    g = g or default_generator
    start = g.take(blocks(shape) * times)
    drawn: Tensor = apply(op, g.key.detach(), start, *more, shape=shape, **kw)
    return drawn


def rand(*shape: Any, dtype: Any = f32, generator: Generator | None = None) -> Tensor:
    """Uniform in [0, 1)."""
    return _draw(ops.RandomUniform, _shape(flat(shape)), 1, generator, dtype=_dtype(dtype))


def randn(*shape: Any, dtype: Any = f32, generator: Generator | None = None) -> Tensor:
    """Standard normal."""
    return _draw(ops.RandomNormal, _shape(flat(shape)), 2, generator, dtype=_dtype(dtype))


def bernoulli(shape: Any, p: Any, generator: Generator | None = None) -> Tensor:
    """bool: True with probability ``p``."""
    chance = p if isinstance(p, Tensor) else source(ops.Full, value=float(p), shape=(), dtype=f32)
    return _draw(ops.RandomBernoulli, _shape(shape), 1, generator, chance)


def randint(low: int, high: int, shape: Any, generator: Generator | None = None) -> Tensor:
    """i64, uniform in low .. high - 1."""
    unit = rand(*_shape(shape), dtype="f64", generator=generator)
    return (unit * float(high - low)).floor().to(i64) + low


def randperm(n: int, generator: Generator | None = None) -> Tensor:
    """A permutation of 0 .. n - 1, made on the host."""
    g = generator or default_generator
    start = int(g.take(1).item())
    rng = np.random.Generator(np.random.Philox(key=[int(g.key.item()) & 2**63 - 1, start]))
    return Tensor(rng.permutation(n))


_dtype = dtype
