"""Random regions: generated loops against the interpreter, on every ISA level and split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from codegen_harness import fused, reference, run_all

from nir.ir.dim import symbol
from nir.ir.types import DTYPES
from nir.ops.expr import Expr
from nir.ops.fused import Fused

B = symbol("B")
SIZES = (1, 2, 3, 5, 16, 17, 40, 70)
# Continuous ops only: a rounding error must not become a jump.
UNARY = ("neg", "abs", "tanh", "sigmoid", "relu", "erf", "sin")
BINARY = ("add", "sub", "mul", "maximum", "minimum")
COMPARE = ("lt", "ge", "ne")


class Source:
    """Draws expressions over a space, from inputs of its rank and of lower ones."""

    def __init__(self, seed: int, shape: tuple[object, ...]) -> None:
        self.rng = np.random.default_rng(seed)
        self.shape = shape

    def pick(self, of: Sequence[object]) -> object:
        return of[self.rng.integers(len(of))]

    def types(self) -> tuple[list[str], list[tuple[int, ...]]]:
        """Types of three inputs, and for each the axes of the space that it has."""
        axes = [tuple(range(len(self.shape)))]
        for _ in range(2):
            axes.append(tuple(a for a in axes[0] if self.rng.random() < 0.6))
        names = ["f32[" + ",".join(str(self.shape[a]) for a in a_) + "]" for a_ in axes]
        return names, axes

    def view(self, x: Expr, axes: tuple[int, ...]) -> Expr:
        """An input spread over the space, perhaps flipped on the way."""
        if axes and self.rng.random() < 0.3:
            x = x.flip((int(self.rng.integers(len(axes))),))
        return x if len(axes) == len(self.shape) else x.broadcast(self.shape, axes)

    def mix(self, pool: list[Expr], steps: int) -> Expr:
        """``steps`` operations on values of one shape."""
        pool = list(pool)
        for _ in range(steps):
            x, y = self.pick(pool), self.pick(pool)
            assert isinstance(x, Expr) and isinstance(y, Expr)
            match self.rng.integers(5):
                case 0:
                    pool.append(getattr(x, str(self.pick(UNARY)))())
                case 1:
                    pool.append(getattr(x, str(self.pick(COMPARE)))(y).where(x, y))
                case 2:
                    pool.append((x.cast(DTYPES["f64"]) * 3.0).cast(x.dtype))
                case _:
                    pool.append(getattr(x, str(self.pick(BINARY)))(y))
        return pool[-1] + pool[int(self.rng.integers(len(pool)))]


def operands_of(region: Fused, seed: int, b: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = [tuple(d if isinstance(d, int) else b for d in v.type.shape) for v in region.inputs]
    return [rng.uniform(-1.5, 1.5, s).astype(np.float32) for s in shapes]


def check(region: Fused, seed: int, tolerance: float) -> None:
    b = (0, 1, 4, 9)[seed % 4]
    operands = operands_of(region, seed, b)
    want = reference(region, operands, {"B": b})
    for isa, results in run_all(region, operands, {"B": b}, with_c=seed % 8 == 3).items():
        for got, w in zip(results, want, strict=True):
            np.testing.assert_allclose(got, w, tolerance, tolerance, err_msg=f"seed {seed}, {isa}")


@pytest.mark.parametrize("seed", range(40))
def test_random_maps(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (B, *(int(rng.choice(SIZES)) for _ in range(rng.integers(0, 3))))
    source = Source(seed, shape)
    types, axes = source.types()

    def make(*inputs: Expr) -> tuple[Expr, ...]:
        pool = [source.view(x, a) for x, a in zip(inputs, axes, strict=True)]
        return source.mix(pool, 6), source.mix(pool, 3)

    check(fused("map", types, make), seed, 2e-5)


@pytest.mark.parametrize("seed", range(60))
def test_random_rows(seed: int) -> None:
    """Chains of up to three reductions, with dear operations carried from stage to stage."""
    rng = np.random.default_rng(seed)
    shape = (B, *(int(rng.choice(SIZES)) for _ in range(rng.integers(1, 3))))
    level = int(rng.integers(1, len(shape)))
    kept, reduced = tuple(range(level)), tuple(range(level, len(shape)))
    source = Source(seed, shape)
    types, axes = source.types()

    def make(*inputs: Expr) -> tuple[Expr, ...]:
        pool = [source.view(x, a) for x, a in zip(inputs, axes, strict=True)]
        rows: list[Expr] = []
        for _ in range(rng.integers(1, 4)):
            value = source.mix(pool, 4)
            if rng.random() < 0.5:
                value = value.abs().neg().exp()
            name = ("max", "min", "sum")[rng.integers(3)]
            small = getattr(value, name)(reduced)
            rows.append(small.tanh() if name == "sum" else small)
            pool += [value.tanh(), rows[-1].broadcast(shape, kept)]
        results = [source.mix(pool, 4)] if rng.random() < 0.8 else []
        return *results, source.mix(rows, 2)

    check(fused("row", types, make), seed, 2e-4)


@pytest.mark.parametrize("seed", range(30))
def test_random_columns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (B, *(int(rng.choice(SIZES)) for _ in range(rng.integers(1, 3))))
    leading = int(rng.integers(1, len(shape)))
    source = Source(seed, shape)
    types, axes = source.types()

    def make(*inputs: Expr) -> tuple[Expr, ...]:
        pool = [source.view(x, a) for x, a in zip(inputs, axes, strict=True)]
        sums = [source.mix(pool, 3).sum(tuple(range(leading))) for _ in range(2)]
        return sums[0], source.mix([s.tanh() for s in sums], 3)

    check(fused("column", types, make), seed, 2e-4)
