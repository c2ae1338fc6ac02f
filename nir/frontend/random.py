"""Random tensors from counters: a Generator is a key and a counter, both ordinary state."""

from __future__ import annotations

import os
from typing import Any, Self

import numpy as np

from nir import ops
from nir.errors import ShapeError
from nir.frontend import emit, flush, lazy
from nir.frontend.functional import shape_of
from nir.frontend.tensor import Tensor, apply
from nir.frontend.tensor_shape import sizes
from nir.ir.dim import Dim, Shape
from nir.ir.location import caller
from nir.ir.op import Op
from nir.ir.types import f32, f64, i64
from nir.ops.random import blocks


class Generator:
    """A stream of Philox blocks: ``key`` names the stream, ``counter`` the next unused block.

    Every draw moves the counter on by what it uses, in eager code and in compiled functions alike
    (where the generator is state), so equal seeds give equal numbers everywhere.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.key = Tensor(
            np.asarray(
                int.from_bytes(os.urandom(8), "little") >> 1 if seed is None else seed, np.int64
            )
        )
        self.counter = Tensor(np.asarray(0, np.int64))

    def manual_seed(self, seed: int) -> Self:
        """Start the stream of ``seed`` from its beginning."""
        self.key.copy_(np.asarray(seed, np.int64))
        self.counter.copy_(np.asarray(0, np.int64))
        return self

    def take(self, count: Dim) -> Tensor:
        """The counter, which then moves on by ``count`` blocks."""
        start = self.counter.detach()
        if lazy.tracing() is None and isinstance(count, int):
            # The host knows the sum: no op is pending on behalf of a counter.
            value = flush.store(self.counter._cell, "counter").numpy()
            self.counter.copy_(np.asarray(int(value) + count, np.int64))
        else:
            self.counter.copy_(Tensor._of(emit.binary(ops.Add, start._cell, _number(count))))
        return start

    def state_dict(self) -> dict[str, Tensor]:
        return {"key": self.key.detach(), "counter": self.counter.detach()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.key.copy_(np.asarray(state["key"], np.int64))
        self.counter.copy_(np.asarray(state["counter"], np.int64))


def _number(count: Dim) -> Any:
    return count if isinstance(count, int) else emit.full(count, (), i64)


default_generator = Generator()


def manual_seed(seed: int) -> Generator:
    """Seed the generator that draws use unless they are given another."""
    return default_generator.manual_seed(seed)


def _draw(
    op: type[Op], shape: Shape, streams: int, generator: Generator | None, *more: Tensor, **kw: Any
) -> Tensor:
    """``streams``: how many words each element uses."""
    g = default_generator if generator is None else generator
    start = g.take(blocks(shape) * streams)
    out: Tensor = apply(op, g.key.detach(), start, *more, shape=shape, **kw)
    return out


def rand(*shape: Any, dtype: Any = f32, generator: Generator | None = None) -> Tensor:
    """Uniform in [0, 1): multiples of 2**-24. f32 or f64."""
    to = emit.dtype_of(dtype)
    return _draw(ops.RandomUniform, shape_of(sizes(shape)), 1, generator, dtype=to)


def randn(*shape: Any, dtype: Any = f32, generator: Generator | None = None) -> Tensor:
    """Standard normal. f32 or f64."""
    to = emit.dtype_of(dtype)
    return _draw(ops.RandomNormal, shape_of(sizes(shape)), 2, generator, dtype=to)


def rand_like(x: Tensor, generator: Generator | None = None) -> Tensor:
    return rand(x.shape, dtype=x.dtype, generator=generator)


def randn_like(x: Tensor, generator: Generator | None = None) -> Tensor:
    return randn(x.shape, dtype=x.dtype, generator=generator)


def bernoulli(shape: Any, p: Any, generator: Generator | None = None) -> Tensor:
    """bool: True with probability ``p``, a number or an f32 scalar."""
    chance = p if isinstance(p, Tensor) else Tensor._of(emit.full(float(p), (), f32, lift=True))
    return _draw(ops.RandomBernoulli, shape_of(shape), 1, generator, chance)


def randint(low: int, high: int, shape: Any, generator: Generator | None = None) -> Tensor:
    """i64, uniform in low .. high - 1, of at most 2**24 numbers."""
    if not 0 < high - low <= 1 << 24:
        raise ShapeError(f"randint: expected 1 to 2**24 numbers, got {low} to {high}", caller())
    unit = _draw(ops.RandomUniform, shape_of(shape), 1, generator, dtype=f64)
    return (unit * float(high - low)).floor().to(i64) + low


def randperm(n: int, generator: Generator | None = None) -> Tensor:
    """A permutation of 0 .. n - 1, made on the host."""
    g = default_generator if generator is None else generator
    start = g.take(1).item()
    key = np.array([g.key.item(), start], np.int64).view(np.uint64)
    return Tensor(np.random.Generator(np.random.Philox(key=key)).permutation(n))
