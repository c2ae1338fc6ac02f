"""What the tests of passes share: graphs from expressions, and models as front ends write them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from nir.ir.dim import symbol
from nir.ir.graph import Builder, Graph
from nir.ir.program import Target
from nir.ir.types import DTYPES, TensorType
from nir.ops.expr import Expr
from nir.ops.vjp import gradient
from nir.targets import cpu

CPU = cpu.target("avx512")


def spec(text: str) -> TensorType:
    """ "f32[B,4]" as a type."""
    name, sizes = re.fullmatch(r"(\w+)\[(.*)\]", text).groups()  # type: ignore[union-attr]
    shape = tuple(int(d) if d.isdigit() else symbol(d) for d in sizes.split(",") if d)
    return TensorType(DTYPES[name], shape)


def graph_of(fn: Callable[..., Any], *specs: str, name: str = "g") -> Graph:
    """The graph of ``fn`` on one Expr for each spec; ``fn`` returns an Expr or several."""
    b = Builder(name)
    inputs = [Expr(b, b.input(spec(s), f"x{i}")) for i, s in enumerate(specs)]
    out = fn(*inputs)
    outputs = (out,) if isinstance(out, Expr) else out
    return b.build([e.value for e in outputs])


def random_inputs(graph: Graph, seed: int = 0, sizes: Mapping[str, int] | None = None) -> list[Any]:
    """Arrays of the graph's input types; integers are small enough to index with."""
    rng = np.random.default_rng(seed)
    env = {name: 3 + i for i, name in enumerate(graph.symbols)} | dict(sizes or {})
    arrays = []
    for v in graph.inputs:
        t = v.type
        shape = tuple(d if isinstance(d, int) else env[str(d)] for d in t.shape)
        if t.dtype.kind == "bool":
            a = rng.random(shape) < 0.5
        elif t.dtype.is_integer:
            a = rng.integers(0, 3, shape)
        else:
            a = rng.standard_normal(shape)
        arrays.append(np.asarray(a).astype(t.dtype.numpy))
    return arrays


# ---- a model in NCHW, written as a front end traces it ------------------------------------------

NHWC, NCHW = (0, 2, 3, 1), (0, 3, 1, 2)


def conv_nchw(x: Expr, w: Expr, stride: int = 1, padding: int = 0) -> Expr:
    pads = ((padding, padding),) * 2
    y = x.transpose(NHWC).conv2d(w.transpose((2, 3, 1, 0)), stride=(stride, stride), padding=pads)
    return y.transpose(NCHW)


def bias_nchw(x: Expr, b: Expr) -> Expr:
    return x + b.broadcast(x.shape, (1,))


def batch_norm_nchw(x: Expr, weight: Expr, bias: Expr) -> Expr:
    y, _, _ = x.transpose(NHWC).batch_norm(weight, bias, eps=1e-5)
    return y.transpose(NCHW)


# (channels in, channels out, kernel, stride), None for the start and end of a residual block.
_RESNET9: Sequence[tuple[int, int, int, int] | None] = (
    (3, 16, 7, 4), (16, 32, 3, 2), None, (32, 32, 3, 1), (32, 32, 3, 1), None, (32, 64, 3, 2),
    (64, 128, 3, 2), None, (128, 128, 3, 1), (128, 128, 3, 1), None,
)  # fmt: skip


def resnet9_specs() -> list[str]:
    specs = []
    for layer in _RESNET9:
        if layer is not None:
            ci, co, k, _ = layer
            specs += [f"f32[{co},{ci},{k},{k}]", f"f32[{co}]", f"f32[{co}]", f"f32[{co}]"]
    return [*specs, "f32[128,128]", "f32[128]", "f32[10,128]", "f32[10]"]


def resnet9(x: Expr, params: Sequence[Expr]) -> Expr:
    """Logits of ResNet-9 for images in NCHW; parameters as PyTorch shapes them."""
    given = iter(params)
    held: list[Expr] = []
    for layer in _RESNET9:
        if layer is None:
            if held:
                x = x + held.pop()
            else:
                held.append(x)
            continue
        _, _, k, stride = layer
        x = bias_nchw(conv_nchw(x, next(given), stride, k // 2), next(given))
        x = batch_norm_nchw(x, next(given), next(given)).relu()
    x = x.reshape((x.shape[0], 128))
    x = linear(x, next(given), next(given)).relu()
    return linear(x, next(given), next(given))


def linear(x: Expr, w: Expr, b: Expr) -> Expr:
    y = x.matmul(w.transpose((1, 0)))
    return y + b.broadcast(y.shape, (1,))


def resnet9_loss() -> Graph:
    """(images, labels, *parameters) -> mean cross-entropy."""

    def loss(x: Expr, target: Expr, *params: Expr) -> Expr:
        return resnet9(x, params).cross_entropy(target).mean((0,))

    return graph_of(loss, "f32[B,3,32,32]", "i64[B]", *resnet9_specs(), name="resnet9")


def resnet9_step() -> Graph:
    """A training step: loss, then each parameter and Adam's moments, updated."""
    forward = resnet9_loss()
    count = len(forward.inputs) - 2
    with_grads = gradient(forward, wrt=range(2, 2 + count))

    def step(x: Expr, target: Expr, *rest: Expr) -> list[Expr]:
        params, m, v = rest[:count], rest[count : 2 * count], rest[2 * count : 3 * count]
        b = x.builder
        out = b.inline(with_grads, [e.value for e in (x, target, *params)])
        loss, *grads = (Expr(b, o) for o in out)
        new: list[list[Expr]] = [[], [], []]
        for p, mi, vi, g in zip(params, m, v, grads, strict=True):
            g = g + p * 1e-3
            mi = mi * 0.9 + g * 0.1
            vi = vi * 0.999 + g * g * 0.001
            for group, e in zip(new, (p - mi / (vi.sqrt() + 1e-8) * 5e-4, mi, vi), strict=True):
                group.append(e)
        return [loss, *new[0], *new[1], *new[2]]

    specs = resnet9_specs()
    return graph_of(step, "f32[B,3,32,32]", "i64[B]", *specs, *specs, *specs, name="step")


# ---- before and expected -----------------------------------------------------------------------


def canonical(graph: Graph) -> Graph:
    """``graph`` in depth-first order from its outputs, where only the order may differ."""
    order: list[Any] = []
    done: set[Any] = set()
    stack = [(graph.producer.get(v), False) for v in reversed(graph.outputs)]
    while stack:
        op, ready = stack.pop()
        if op is None or op in done:
            continue
        if ready:
            done.add(op)
            order.append(op)
        else:
            stack.append((op, True))
            stack.extend((graph.producer.get(v), False) for v in reversed(op.operands))
    return graph.with_(nodes=order)


def check_pass(
    run_pass: Callable[[Graph, Target], Graph],
    before: Graph,
    expected: Graph | None,
    target: Target = CPU,
) -> Graph:
    """Run a pass; it gives ``expected`` (None: the same object), keeps types and locations."""
    after = run_pass(before, target)
    if expected is None:
        assert after is before
        return after
    assert after.output_types == before.output_types
    assert canonical(after) == canonical(expected), f"\n{shown(after)}\nexpected\n{shown(expected)}"
    assert all(op.locs for op in after.nodes)
    again = run_pass(after, target)
    assert canonical(again) == canonical(after), "the pass is not idempotent"
    return after


def shown(graph: Graph) -> str:
    """One line for each op, for messages."""
    lines = []
    for op in canonical(graph).nodes:
        operands = ", ".join(f"%{v.id}" for v in op.operands)
        results = ", ".join(map(str, op.results))
        lines.append(f"{results} = {op.name}({operands}) {op.attributes or ''}")
    return "\n".join(lines)


EDGES = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-3, -7.5, 3e38], np.float32)


def edge_inputs(graph: Graph, seed: int = 0) -> list[Any]:
    """Inputs full of nan, inf, -0 and extremes."""
    rng = np.random.default_rng(seed)
    arrays = []
    for a in random_inputs(graph, seed):
        match a.dtype.kind:
            case "f":
                a = rng.choice(EDGES, a.shape).astype(a.dtype)
            case "i" | "u":
                info = np.iinfo(a.dtype)
                a = rng.choice([info.min, info.max, 0, 1, 2, info.max // 3], a.shape).astype(
                    a.dtype
                )
        arrays.append(a)
    return arrays


def assert_same(a: np.ndarray, b: np.ndarray, rtol: float = 0) -> None:
    """Equal values: any nan equals any nan, 0 differs from -0; ``rtol`` lets finite ones differ."""
    assert a.dtype == b.dtype and a.shape == b.shape
    np.testing.assert_allclose(a, b, rtol=rtol, atol=0)
    if a.dtype.kind == "f":
        number = ~np.isnan(a)
        np.testing.assert_array_equal(np.signbit(a[number]), np.signbit(b[number]))
