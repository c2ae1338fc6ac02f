"""Ops against PyTorch, since a reference cannot be its own oracle: every sample, and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from op_cases import CASES, Case, in_f64, make_graph

from nir.ir.interp import run
from nir.ir.op import OPS, Sample
from nir.ops.vjp import vjp

torch = pytest.importorskip("torch")
F = torch.nn.functional


def nchw(x: Any) -> Any:
    return x.permute(0, 3, 1, 2)


def nhwc(x: Any) -> Any:
    return x.permute(0, 2, 3, 1)


def zero_padded(x: Any, padding: Any, value: float = 0.0) -> Any:
    (top, bottom), (left, right) = padding
    return F.pad(nchw(x), (left, right, top, bottom), value=value)


def conv2d(
    x: Any, w: Any, stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1,
    x_layout="NHWC",
) -> Any:  # fmt: skip
    x = nhwc(x) if x_layout == "NCHW" else x
    weight = w.permute(3, 2, 0, 1)
    return nhwc(F.conv2d(zero_padded(x, padding), weight, None, stride, 0, dilation, groups))


def max_pool2d(x: Any, kernel, stride, padding) -> Any:
    return nhwc(F.max_pool2d(zero_padded(x, padding, -torch.inf), kernel, stride))


def max_pool2d_select(x: Any, v: Any, kernel, stride, padding) -> Any:
    image = zero_padded(x, padding, -torch.inf)
    _, at = F.max_pool2d(image, kernel, stride, return_indices=True)
    flat = zero_padded(v, padding).flatten(2)
    return nhwc(flat.gather(2, at.flatten(2)).reshape(at.shape))


def avg_pool2d(x: Any, kernel, stride, padding, count_include_pad=True) -> Any:
    total = F.avg_pool2d(zero_padded(x, padding), kernel, stride)
    if count_include_pad:
        return nhwc(total)
    inside = F.avg_pool2d(zero_padded(torch.ones_like(x), padding), kernel, stride)
    return nhwc(total / inside)


def conv2d_input_grad(dy: Any, w: Any, input_size: Any, **window: Any) -> Any:
    groups = window.get("groups", 1)
    x = torch.zeros(
        (dy.shape[0], *input_size, w.shape[2] * groups), dtype=dy.dtype, requires_grad=True
    )
    return torch.autograd.grad(conv2d(x, w, **window), x, dy, create_graph=True)[0]


def conv2d_weight_grad(x: Any, dy: Any, kernel_size: Any, **window: Any) -> Any:
    channels = x.shape[1 if window.get("x_layout") == "NCHW" else 3]
    ci = channels // window.get("groups", 1)
    w = torch.zeros((*kernel_size, ci, dy.shape[3]), dtype=x.dtype, requires_grad=True)
    return torch.autograd.grad(conv2d(x, w, **window), w, dy, create_graph=True)[0]


def top_k(x: Any, k: int, axis: int, largest: bool = True) -> Any:
    # torch.topk leaves the order of equals open; its stable sort does not.
    values, indices = torch.sort(x, dim=axis, descending=largest, stable=True)
    return values.narrow(axis, 0, k), indices.narrow(axis, 0, k)


def max_pool2d_grad(x: Any, dy: Any, **window: Any) -> Any:
    v = torch.zeros_like(x).requires_grad_()
    return torch.autograd.grad(max_pool2d_select(x, v, **window), v, dy, create_graph=True)[0]


def avg_pool2d_grad(dy: Any, input_size: Any, **window: Any) -> Any:
    x = torch.zeros((dy.shape[0], *input_size, dy.shape[3]), dtype=dy.dtype, requires_grad=True)
    return torch.autograd.grad(avg_pool2d(x, **window), x, dy, create_graph=True)[0]


def matmul(a: Any, b: Any, transpose_lhs: bool = False, transpose_rhs: bool = False) -> Any:
    return (a.mT if transpose_lhs else a) @ (b.mT if transpose_rhs else b)


def broadcast(x: Any, shape: Sequence[int], axes: Sequence[int]) -> Any:
    return x.reshape([shape[a] if a in axes else 1 for a in range(len(shape))]).expand(*shape)


def slice_(x: Any, starts: Any, sizes: Any, steps: Any) -> Any:
    for axis, (start, size, step) in enumerate(zip(starts, sizes, steps, strict=True)):
        index = torch.arange(size) * step + start
        x = x.index_select(axis, index)
    return x


def pad(x: Any, low: Sequence[int], high: Sequence[int], value: Any) -> Any:
    widths = [w for pair in zip(reversed(low), reversed(high), strict=True) for w in pair]
    return F.pad(x, widths, value=value)


def dilate(x: Any, factors: Sequence[int]) -> Any:
    for axis, f in enumerate(factors):
        n = x.shape[axis]
        shape = list(x.shape)
        shape[axis] = max(0, (n - 1) * f + 1)
        x = x.new_zeros(shape).index_copy(axis, torch.arange(n) * f, x)
    return x


def wrap(i: Any, n: int) -> Any:
    return torch.where(i < 0, i + n, i).long()


def take(x: Any, i: Any, axis: int) -> Any:
    flat = x.index_select(axis, wrap(i, x.shape[axis]).reshape(-1))
    return flat.reshape(*x.shape[:axis], *i.shape, *x.shape[axis + 1 :])


def scatter_add(x: Any, i: Any, updates: Any, axis: int) -> Any:
    rest = x.shape[axis + 1 :]
    flat = updates.reshape(*x.shape[:axis], i.numel(), *rest)
    return x.index_add(axis, wrap(i, x.shape[axis]).reshape(-1), flat)


def put(x: Any, i: Any, updates: Any, axis: int) -> Any:
    rest = x.shape[axis + 1 :]
    flat = updates.reshape(*x.shape[:axis], i.numel(), *rest)
    return x.index_copy(axis, wrap(i, x.shape[axis]).reshape(-1), flat)


def prod(x: Any, axes: Sequence[int]) -> Any:
    for a in reversed(axes):
        x = x.prod(a, dtype=x.dtype)
    return x


def layer_norm(x: Any, *affine: Any, eps: float, given: Sequence[str] = ("weight", "bias")) -> Any:
    named = dict(zip(given, affine, strict=True))
    return F.layer_norm(x, x.shape[-1:], named.get("weight"), named.get("bias"), eps)


def batch_norm(x: Any, w: Any, b: Any, eps: float) -> Any:
    rows = x.reshape(-1, x.shape[-1])
    y = F.batch_norm(rows, None, None, w, b, True, 0.0, eps).reshape(x.shape)
    return y, rows.mean(0), rows.var(0, correction=0)


def batch_norm_inference(x: Any, w: Any, b: Any, mean: Any, var: Any, eps: float) -> Any:
    if mean.requires_grad:  # torch's own has no gradient for the statistics
        return (x - mean) / (var + eps).sqrt() * w + b
    rows = x.reshape(-1, x.shape[-1])
    return F.batch_norm(rows, mean, var, w, b, False, 0.0, eps).reshape(x.shape)


def cross_entropy(x: Any, target: Any) -> Any:
    # Ours gives a target outside the classes logsumexp; torch refuses one.
    known = (target >= 0) & (target < x.shape[1])
    loss = F.cross_entropy(x, torch.where(known, target, 0), reduction="none")
    return torch.where(known, loss, x.logsumexp(1))


def axes_in_order(x: Any, order: str, first: int = 0, heads: int | None = None) -> Any:
    x = x.permute(*(order.index(a) for a in "BHTD"))
    return x if heads is None else x[:, first : first + heads]


def attention(
    q: Any, k: Any, v: Any, *masks: Any, causal: bool, scale: float, mask: None = None,
    orders: Any = ("BHTD",) * 4, first: Any = (0, 0, 0), heads: int | None = None,
) -> Any:  # fmt: skip
    given = zip((q, k, v), orders, first, strict=False)
    q, k, v = (axes_in_order(x, order, h, heads) for x, order, h in given)
    t, s = q.shape[2], k.shape[2]
    scores = q @ k.transpose(2, 3) * scale
    for m in masks:
        scores = scores.masked_fill(~m, -math.inf) if m.dtype == torch.bool else scores + m
    if causal:  # ours lets the last query see every key, torch's the first query the first key
        scores = scores.masked_fill(~torch.ones(t, s, dtype=torch.bool).tril(s - t), -math.inf)
    out = torch.nan_to_num(scores.softmax(3), 0.0) @ v
    lse = scores.logsumexp(3)
    lse = torch.where(lse == -math.inf, math.inf, lse)
    return out.permute(*("BHTD".index(a) for a in orders[3])), lse


def attention_grad(
    q: Any, k: Any, v: Any, *rest: Any, causal: bool, scale: float, mask: None = None,
    orders: Any = ("BHTD",) * 4, first: Any = (0, 0, 0), heads: int | None = None,
    joined: bool = False,
) -> Any:  # fmt: skip
    *masks, ct, lse, delta = rest
    given = zip((q, k, v, ct), orders, (*first, 0), strict=True)
    q, k, v, ct = (axes_in_order(x, order, h, heads) for x, order, h in given)
    t, s = q.shape[2], k.shape[2]
    scores = q @ k.transpose(2, 3) * scale
    for m in masks:
        scores = scores.masked_fill(~m, -math.inf) if m.dtype == torch.bool else scores + m
    if causal:
        scores = scores.masked_fill(~torch.ones(t, s, dtype=torch.bool).tril(s - t), -math.inf)
    p = (scores - lse[..., None]).exp()
    ds = p * (ct @ v.transpose(2, 3) - delta[..., None]) * scale
    grads = [ds @ k, ds.transpose(2, 3) @ q, p.transpose(2, 3) @ ct]
    laid = [g.permute(*("BHTD".index(a) for a in o)) for g, o in zip(grads, orders, strict=False)]
    return (torch.cat(laid, orders[0].index("H")),) if joined else laid


def extreme_arg(name: str) -> Callable[..., Any]:
    return lambda x, axis: getattr(torch, name)(x, dim=axis)


def reduced(name: str) -> Callable[..., Any]:
    def call(x: Any, axes: Sequence[int]) -> Any:
        return getattr(torch, name)(x, dim=tuple(axes)) if axes else x

    return call


def summed(x: Any, axes: Sequence[int]) -> Any:
    return x.sum(tuple(axes), dtype=x.dtype) if axes else x


def floor_mod(name: str) -> Callable[..., Any]:
    def call(x: Any, y: Any) -> Any:
        if x.dtype.is_floating_point:
            return getattr(torch, name)(x, y)
        # Ours gives 0 for an integer divided by 0; torch raises.
        safe = getattr(torch, name)(x, torch.where(y == 0, 1, y))
        return torch.where(y == 0, torch.zeros_like(x), safe)

    return call


TORCH_DTYPES = {"f64": torch.float64, "f32": torch.float32, "i64": torch.int64, "i32": torch.int32,
                "bool": torch.bool}  # fmt: skip

SAME_NAME = [
    "neg", "abs", "sign", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "tanh", "sigmoid",
    "erf", "sin", "cos", "floor", "ceil", "round", "trunc", "relu", "logical_not", "add", "sub",
    "mul", "div", "pow", "maximum", "minimum", "eq", "ne", "lt", "le", "gt", "ge", "logical_and",
    "logical_or", "logical_xor", "where",
]  # fmt: skip

TABLE: dict[str, Callable[..., Any]] = {
    **{name: getattr(torch, name) for name in SAME_NAME},
    "bit_not": torch.bitwise_not,
    "bit_and": torch.bitwise_and,
    "bit_or": torch.bitwise_or,
    "bit_xor": torch.bitwise_xor,
    "is_nan": torch.isnan,
    "floor_div": floor_mod("floor_divide"),
    "mod": floor_mod("remainder"),
    "reshape": lambda x, shape: x.reshape(shape),
    "transpose": lambda x, perm: x.permute(perm),
    "broadcast": broadcast,
    "slice": slice_,
    "pad": pad,
    "concat": lambda *xs, axis: torch.cat(xs, axis),
    "flip": lambda x, axes: x.flip(axes),
    "dilate": dilate,
    "take": take,
    "put": put,
    "scatter_add": scatter_add,
    "take_along": lambda x, i, axis: x.gather(axis, wrap(i, x.shape[axis])),
    "scatter_add_along": lambda x, i, u, axis: x.scatter_add(axis, wrap(i, x.shape[axis]), u),
    "sum": summed,
    "mean": lambda x, axes: x.mean(tuple(axes)) if axes else x,
    "prod": prod,
    "max": reduced("amax"),
    "min": reduced("amin"),
    "log_sum_exp": reduced("logsumexp"),
    "arg_max": extreme_arg("argmax"),
    "arg_min": extreme_arg("argmin"),
    "cum_sum": lambda x, axis: x.cumsum(axis, dtype=x.dtype),
    "sort": lambda x, axis, descending=False: torch.sort(
        x, dim=axis, descending=descending, stable=True
    ),
    "top_k": top_k,
    "matmul": matmul,
    "conv2d": conv2d,
    "conv2d_input_grad": conv2d_input_grad,
    "conv2d_weight_grad": conv2d_weight_grad,
    "max_pool2d": max_pool2d,
    "max_pool2d_grad": max_pool2d_grad,
    "max_pool2d_select": max_pool2d_select,
    "avg_pool2d": avg_pool2d,
    "avg_pool2d_grad": avg_pool2d_grad,
    "softmax": lambda x, axis: x.softmax(axis),
    "log_softmax": lambda x, axis: x.log_softmax(axis),
    "layer_norm": layer_norm,
    "batch_norm": batch_norm,
    "batch_norm_inference": batch_norm_inference,
    "cross_entropy": cross_entropy,
    "attention": attention,
    "attention_grad": attention_grad,
    "cast": lambda x, dtype: x.to(TORCH_DTYPES[dtype.name]),
}

# Ops that torch has not, or means otherwise (a shift by the width or more).
NO_PEER = {
    "shift_left", "shift_right", "shift_right_logical", "full", "iota", "constant", "pack",
    "pack_conv2d", "reduce_partial", "fused", "banded", "random_bits", "random_uniform",
    "random_normal",
    "random_bernoulli", "custom_vjp", "host_call", "scan", "cond", "while_loop", "check_index",
    "hold",
}  # fmt: skip


def test_every_op_has_a_peer_or_is_known_to_have_none() -> None:
    assert set(OPS) == set(TABLE) | NO_PEER
    assert not set(TABLE) & NO_PEER


def call(case: Case, operands: Sequence[Any]) -> tuple[Any, ...]:
    attributes = dict(case.sample.attributes)
    if case.op.name == "layer_norm":
        absent = [n for n in ("weight", "bias") if n in attributes]
        attributes["given"] = [n for n in ("weight", "bias") if n not in absent]
        for n in absent:
            del attributes[n]
    out = TABLE[case.op.name](*operands, **attributes)
    return tuple(out) if isinstance(out, (tuple, list)) else (out,)


def has_peer(case: Case) -> bool:
    x = case.arrays[0] if case.arrays else np.zeros(0)
    match case.op.name:
        case "cast":
            # torch leaves a float that does not fit an integer undefined.
            to = case.sample.attributes["dtype"]
            return to.name in TORCH_DTYPES and not (x.dtype.kind == "f" and to.is_integer)
        case "max" | "min":
            return x.size > 0  # torch has no maximum of nothing
        case "floor_div" | "mod":
            # torch's is fmod's, which differs where x / y is not finite or rounds up.
            normal = all(np.isfinite(a).all() and a.all() for a in case.arrays)
            return x.dtype.kind != "f" or normal
        case "sign":
            return not np.isnan(x).any()  # torch: 0
    return case.op.name in TABLE


PEERED = [c for c in CASES if has_peer(c)]


@pytest.mark.parametrize("case", PEERED, ids=lambda c: c.id)
def test_forward(case: Case) -> None:
    ours = run(make_graph(case), case.arrays)
    theirs = call(case, [torch.from_numpy(x.copy()) for x in case.arrays])
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        expected = b.detach().numpy()
        assert a.dtype == expected.dtype and a.shape == expected.shape
        if a.dtype.kind == "f":
            tolerance = 3e-5 if a.dtype == np.float32 else 1e-11
            np.testing.assert_allclose(a, expected, rtol=tolerance, atol=tolerance / 10)
        else:
            np.testing.assert_array_equal(a, expected)


SLOPED = [
    c
    for c in PEERED
    if c.sample.differentiable
    and any(x.dtype.kind == "f" for x in c.arrays)
    and any(t.dtype.is_float for t in make_graph(c).output_types)
    and c.op.name != "floor_div"  # torch has no gradient
]


def slopes(case: Case, seed: int) -> tuple[list[np.ndarray], list[Any]]:
    """Our cotangents of the float operands in f64, and torch's."""
    case = in_f64(case)
    graph = make_graph(case)
    rng = np.random.default_rng(seed)
    cts = [rng.standard_normal(y.shape) for y in run(graph, case.arrays) if y.dtype.kind == "f"]
    ours = run(vjp(graph), [*case.arrays, *cts])
    operands = [torch.from_numpy(x.copy()) for x in case.arrays]
    floats = [x.requires_grad_() for x in operands if x.is_floating_point()]
    ys = [y for y in call(case, operands) if y.is_floating_point()]
    total = sum((y * torch.from_numpy(ct)).sum() for y, ct in zip(ys, cts, strict=True))
    theirs = torch.autograd.grad(total, floats, allow_unused=True)
    return ours, [
        torch.zeros_like(x) if g is None else g for x, g in zip(floats, theirs, strict=True)
    ]


@pytest.mark.parametrize("case", SLOPED, ids=lambda c: c.id)
def test_gradient(case: Case) -> None:
    ours, theirs = slopes(case, 11)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-9, atol=1e-10)


# Ties and kinks, where finite differences cannot say what is right: as PyTorch.
KINKS = {
    "abs": ([0.0, -0.0, 1.0],),
    "relu": ([0.0, -0.0, 1.0, -1.0],),
    "maximum": ([1.0, 2.0, 3.0], [1.0, 3.0, 2.0]),
    "minimum": ([1.0, 2.0, 3.0], [1.0, 3.0, 2.0]),
    "max": ([2.0, 1.0, 2.0, 2.0],),
    "min": ([2.0, 1.0, 1.0, 2.0],),
    "prod": ([0.0, 2.0, 3.0],),
    "sign": ([0.0, 3.0],),
    "pow": ([2.0, 0.0, 0.0, 3.0], [0.0, 2.0, 1.0, 1.0]),
}


@pytest.mark.parametrize("name", KINKS)
def test_gradient_at_ties_and_kinks(name: str) -> None:
    attributes = {"axes": (0,)} if name in ("max", "min", "prod") else {}
    sample = Sample(tuple(np.array(x) for x in KINKS[name]), attributes)
    ours, theirs = slopes(Case(OPS[name], 0, sample), 12)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-14)
