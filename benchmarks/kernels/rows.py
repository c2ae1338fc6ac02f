"""Row kernels, reductions, copies and updates beside PyTorch and JAX: what memory bounds.

Sizes lie in L2 and, in the groups' last cases, beyond L3. ``bytes`` counts each operand and result
once: the share of the triad roof exceeds 1 where caches serve. Inputs are not donated, so Adam
writes new tensors everywhere; PyTorch's is the update op by op.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.kernels import Case
from benchmarks.kernels.peers import jax_step, nir_step, numbers, torch_step

TITLE = "Rows, reductions, copies and updates"

Function = Callable[..., Any]
Peers = dict[str, Callable[[], Function]]  # each imports its peer and gives the function
# An operand: its shape, and for indices their upper bound.
Spec = tuple[tuple[int, ...], int]


def _arrays(specs: Sequence[Spec]) -> list[np.ndarray]:
    rng = np.random.default_rng(9)
    return [
        rng.integers(0, high, shape) if high else numbers(*shape, seed=i)
        for i, (shape, high) in enumerate(specs)
    ]


def _case(group: str, name: str, specs: Sequence[Spec], written: int, peers: Peers) -> Case:
    """``written``: bytes of the results."""
    steps = {"nir": nir_step, "torch": torch_step, "jax": jax_step}
    read = sum((8 if high else 4) * int(np.prod(shape)) for shape, high in specs)
    return Case(
        name,
        group,
        {
            p: (lambda p=p, make=make: steps[p](make(), _arrays(specs)))  # type: ignore[misc]
            for p, make in peers.items()
        },
        bytes=float(read + written),
        tolerance=1e-3,
    )


def _nir_grad(fn: Function, count: int) -> Function:
    """The gradients of (fn(*xs) * ct).sum() in the first ``count`` operands."""
    import nir

    def step(*given: Any) -> Any:
        *xs, ct = given
        rest = xs[count:]
        return nir.grad(lambda *xs: (fn(*xs, *rest) * ct).sum(), argnums=tuple(range(count)))(
            *xs[:count]
        )

    return step


def _torch_grad(fn: Function, count: int) -> Function:
    import torch

    def step(*given: Any) -> Any:
        *xs, ct = given
        with torch.enable_grad():
            tracked = [x.detach().requires_grad_() for x in xs[:count]]
            return torch.autograd.grad(fn(*tracked, *xs[count:]), tracked, ct)

    return step


def _jax_grad(fn: Function, count: int) -> Function:
    import jax

    def step(*given: Any) -> Any:
        *xs, ct = given
        return jax.vjp(lambda *tracked: fn(*tracked, *xs[count:]), *xs[:count])[1](ct)

    return step


# ---- softmax, norms, losses --------------------------------------------------------------------


def _softmax(kind: str, rows: int, cols: int, backward: bool) -> Case:
    def nir() -> Function:
        from nir.nn import functional

        fn = getattr(functional, kind)
        return _nir_grad(lambda x: fn(x, -1), 1) if backward else lambda x: fn(x, -1)

    def torch() -> Function:
        import torch

        fn = getattr(torch, kind)
        return _torch_grad(lambda x: fn(x, -1), 1) if backward else lambda x: fn(x, -1)

    def jax() -> Function:
        import jax

        fn = getattr(jax.nn, kind)
        return _jax_grad(fn, 1) if backward else fn

    name = f"{kind} {rows} x {cols}{' forward+backward' if backward else ''}"
    specs = [((rows, cols), 0)] * (2 if backward else 1)
    return _case("softmax", name, specs, 4 * rows * cols, {"nir": nir, "torch": torch, "jax": jax})


def _norm(kind: str, rows: int, cols: int, backward: bool) -> Case:
    affine = 2 if kind == "layer_norm" else 1

    def nir() -> Function:
        from nir.nn import functional

        fn = getattr(functional, kind)
        forward = lambda x, *w: fn(x, (cols,), *w)  # noqa: E731
        return _nir_grad(forward, 1 + affine) if backward else forward

    def torch() -> Function:
        from torch.nn import functional

        fn = getattr(functional, kind)
        forward = lambda x, *w: fn(x, (cols,), *w)  # noqa: E731
        return _torch_grad(forward, 1 + affine) if backward else forward

    def jax() -> Function:
        import jax.numpy as jnp

        def forward(x: Any, w: Any, *b: Any) -> Any:
            if kind == "layer_norm":
                x = x - x.mean(-1, keepdims=True)
            # PyTorch's rms_norm adds the machine epsilon, its layer_norm 1e-5.
            eps = 1e-5 if kind == "layer_norm" else float(np.finfo(np.float32).eps)
            y = x / jnp.sqrt((x * x).mean(-1, keepdims=True) + eps) * w
            return y + b[0] if b else y

        return _jax_grad(forward, 1 + affine) if backward else forward

    specs: list[Spec] = [((rows, cols), 0), *([((cols,), 0)] * affine)]
    specs += [((rows, cols), 0)] if backward else []
    name = f"{kind} {rows} x {cols}{' forward+backward' if backward else ''}"
    return _case("norm", name, specs, 4 * rows * cols, {"nir": nir, "torch": torch, "jax": jax})


def _cross_entropy(rows: int, classes: int) -> Case:
    def nir() -> Function:
        import nir
        from nir.nn.functional import cross_entropy

        return lambda x, t: nir.grad(lambda x: cross_entropy(x, t))(x)

    def torch() -> Function:
        import torch
        from torch.nn.functional import cross_entropy

        def step(x: Any, t: Any) -> Any:
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                return torch.autograd.grad(cross_entropy(x, t), x)[0]

        return step

    def jax() -> Function:
        import jax
        import jax.numpy as jnp

        def loss(x: Any, t: Any) -> Any:
            picked = jnp.take_along_axis(jax.nn.log_softmax(x), t[:, None], 1)
            return -picked.mean()

        return jax.grad(loss)

    return _case(
        "loss", f"cross_entropy {rows} x {classes} forward+backward",
        [((rows, classes), 0), ((rows,), classes)], 4 * rows * classes,
        {"nir": nir, "torch": torch, "jax": jax},
    )  # fmt: skip


# ---- updates -----------------------------------------------------------------------------------


def _adam(n: int) -> Case:
    def update(sqrt: Function) -> Function:
        def step(p: Any, g: Any, m: Any, v: Any) -> Any:
            v = v * v  # a second moment is not negative
            m = 0.9 * m + 0.1 * g
            v = 0.999 * v + 0.001 * (g * g)
            return p - 1e-3 * m / (sqrt(v) + 1e-8), m, v

        return step

    def nir() -> Function:
        import nir

        return update(nir.sqrt)

    def jax() -> Function:
        import jax.numpy as jnp

        return update(jnp.sqrt)

    def torch() -> Function:
        import torch

        return update(torch.sqrt)

    return _case(
        "update", f"adam {n:,}", [((n,), 0)] * 4, 12 * n, {"nir": nir, "torch": torch, "jax": jax}
    )


def _embedding(words: int, width: int, tokens: int, backward: bool) -> Case:
    def nir() -> Function:
        import nir
        from nir.nn.functional import embedding

        if backward:
            return lambda w, i, ct: nir.grad(lambda w: (embedding(i, w) * ct).sum())(w)
        return lambda w, i: embedding(i, w)

    def torch() -> Function:
        from torch.nn.functional import embedding

        if backward:
            fn = _torch_grad(lambda w, i: embedding(i, w), 1)
            return lambda w, i, ct: fn(w, i, ct)[0]
        return lambda w, i: embedding(i, w)

    def jax() -> Function:
        if backward:
            fn = _jax_grad(lambda w, i: w[i], 1)
            return lambda w, i, ct: fn(w, i, ct)[0]
        return lambda w, i: w[i]

    specs: list[Spec] = [((words, width), 0), ((tokens,), words)]
    specs += [((tokens, width), 0)] if backward else []
    case = _case(
        "embedding",
        f"embedding {'gradient ' if backward else ''}{tokens} of {words} x {width}",
        specs, 0, {"nir": nir, "torch": torch, "jax": jax},
    )  # fmt: skip
    moved = 4 * width * (words + tokens if backward else 2 * tokens)
    return replace(case, bytes=float(moved))


# ---- copies and reductions ---------------------------------------------------------------------


def _transpose(shape: tuple[int, ...], perm: tuple[int, ...]) -> Case:
    n = int(np.prod(shape))
    return _case(
        "transpose", f"transpose {'x'.join(map(str, shape))} to {perm}", [(shape, 0)], 4 * n,
        {
            "nir": lambda: lambda x: x.permute(*perm),
            "torch": lambda: lambda x: x.permute(*perm).contiguous(),
            "jax": lambda: lambda x: x.transpose(perm),
        },
    )  # fmt: skip


def _reduce(kind: str, shape: tuple[int, ...], axes: tuple[int, ...]) -> Case:
    names = {"sum": "sum", "max": "amax", "mean": "mean", "argmax": "argmax"}
    every = len(axes) == len(shape)
    rest = int(np.prod([n for i, n in enumerate(shape) if i not in axes]))

    def nir() -> Function:
        if kind == "argmax":
            return lambda x: x.argmax(axes[0])
        fn = {"sum": "sum", "max": "amax", "mean": "mean"}[kind]
        return lambda x: getattr(x, fn)(axes)

    def torch() -> Function:
        if kind == "argmax":
            return lambda x: x.argmax(axes[0])
        return lambda x: getattr(x, names[kind])(axes)

    def jax() -> Function:
        if kind == "argmax":
            return lambda x: x.argmax(axes[0])
        return lambda x: getattr(x, kind)(axes)

    return _case(
        "reduce", f"{kind} {'x'.join(map(str, shape))} over {'all' if every else axes}",
        [(shape, 0)], 4 * rest, {"nir": nir, "torch": torch, "jax": jax},
    )  # fmt: skip


def _chain(n: int) -> Case:
    def chain(tanh: Function) -> Function:
        # GELU by tanh with a bias and a residual
        def step(x: Any, b: Any, r: Any) -> Any:
            y = x + b
            return r + 0.5 * y * (1.0 + tanh(0.7978845608 * (y + 0.044715 * y * y * y)))

        return step

    def nir() -> Function:
        import nir

        return chain(nir.tanh)

    def torch() -> Function:
        import torch

        return chain(torch.tanh)

    def jax() -> Function:
        import jax.numpy as jnp

        return chain(jnp.tanh)

    return _case("chain", f"gelu(x + b) + r of {n:,}", [((n,), 0)] * 3, 4 * n,
                 {"nir": nir, "torch": torch, "jax": jax})  # fmt: skip


def _triad(n: int) -> Case:
    peers: Peers = {p: lambda: lambda x, y: x + 0.5 * y for p in ("nir", "torch", "jax")}
    return _case("chain", f"x + y / 2 of {n:,}", [((n,), 0)] * 2, 4 * n, peers)


def _dropout(n: int) -> Case:
    def nir() -> Function:
        import nir
        from nir.nn.functional import dropout

        return lambda x: dropout(x, 0.1, True, nir.Generator(1))

    def torch() -> Function:
        from torch.nn.functional import dropout

        return lambda x: dropout(x, 0.1, True)

    case = _case("dropout", f"dropout {n:,}", [((n,), 0)], 4 * n, {"nir": nir, "torch": torch})
    return replace(case, tolerance=float("inf"))  # each has its own random numbers


_IMAGE = (16, 128, 1024)
_LARGE = (64, 256, 2048)
CASES: tuple[Case, ...] = (
    *(_softmax(k, *s, b) for k in ("softmax", "log_softmax") for b in (False, True)
      for s in ((128, 512), (1024, 1024), (64, 50257), (16384, 2048))),
    *(_norm(k, *s, b) for k in ("layer_norm", "rms_norm") for b in (False, True)
      for s in ((128, 384), (2048, 256), (4096, 768), (32768, 1024))),
    *(_cross_entropy(*s) for s in ((128, 10), (560, 10000), (2048, 10000))),
    *(_adam(n) for n in (100_000, 1_000_000, 10_000_000)),
    *(_embedding(*s, b) for b in (False, True) for s in ((10000, 128, 560), (10000, 256, 2048),
                                                         (50257, 768, 128))),
    *(_transpose(*s) for s in (
        ((512, 512), (1, 0)), ((4096, 4096), (1, 0)), ((16, 128, 8, 32), (0, 2, 1, 3)),
        ((32, 64, 56, 56), (0, 2, 3, 1)), ((32, 56, 56, 64), (0, 3, 1, 2)),
        ((1000, 1000), (1, 0)), ((64, 3, 224, 224), (0, 2, 3, 1)))),
    *(_reduce(k, shape, axes) for k in ("sum", "max", "mean") for shape in (_IMAGE, _LARGE)
      for axes in ((0,), (1,), (2,), (0, 1), (0, 1, 2))),
    *(_reduce("argmax", shape, (a,)) for shape in (_IMAGE, (2048, 10000)) for a in
      range(len(shape))),
    *(_chain(n) for n in (16_384, 262_144, 16_777_216)),
    *(_triad(n) for n in (16_384, 262_144, 16_777_216)),
    *(_dropout(n) for n in (524_288, 16_777_216)),
)  # fmt: skip
