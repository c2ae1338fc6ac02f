"""The attention kernels: odd sizes, masks and layouts on every ISA level, to the bit."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from kernel_harness import ISAS, call, guarded, same_bits

from nir.frozen import replace
from nir.ir.op import Value
from nir.ir.types import TensorType, dtype
from nir.ops import Attention, AttentionGrad
from nir.targets import cpu

_ids = itertools.count()
RNG = np.random.default_rng(3)
ORDERS = ("BTHD", "BTHD", "BTHD", "TBHD")

# (B, H, T, S, D, E), attributes, mask: its shape and "bool" or "float"
CASES = {
    "small": ((2, 3, 5, 7, 3, 4), {}, None),
    "one query": ((1, 2, 1, 130, 16, 16), {}, None),
    "one query, padding": ((2, 2, 1, 300, 20, 40), {}, ((2, 1, 1, 300), "bool")),
    "one query, few keys": ((2, 1, 1, 3, 64, 64), {}, None),
    "four queries, causal": ((1, 2, 4, 290, 64, 130), {"causal": True}, None),
    "four queries, bias": ((1, 2, 4, 33, 32, 16), {"orders": ORDERS}, ((1, 2, 4, 33), "float")),
    "one strip": ((1, 2, 64, 64, 32, 32), {}, None),
    "tails": ((2, 1, 70, 133, 24, 40), {}, None),
    "causal": ((1, 2, 128, 128, 32, 32), {"causal": True}, None),
    "causal, more keys": ((1, 2, 100, 130, 17, 33), {"causal": True}, None),
    "causal, more queries": ((1, 1, 90, 33, 64, 64), {"causal": True}, None),
    "wide": ((1, 1, 20, 66, 130, 20), {}, None),
    "orders": ((2, 2, 67, 67, 16, 16), {"orders": ORDERS, "causal": True}, None),
    "bool mask": ((2, 2, 66, 70, 16, 16), {}, ((2, 1, 66, 70), "bool")),
    "padding": ((2, 2, 66, 70, 16, 16), {}, ((2, 1, 1, 70), "bool")),
    "bias, causal": ((2, 2, 70, 70, 16, 16), {"causal": True}, ((1, 2, 70, 70), "float")),
    "bias of a query": ((1, 1, 70, 70, 16, 16), {}, ((1, 1, 70, 1), "float")),
    "no keys": ((1, 1, 3, 0, 8, 8), {}, None),
    "no queries": ((1, 1, 0, 3, 8, 8), {}, None),
}


def value(a: np.ndarray) -> Value:
    return Value(next(_ids), TensorType(dtype(a.dtype), a.shape))


def made(op: Any) -> Any:
    return replace(op, results=tuple(Value(next(_ids), t) for t in op.infer()))


def laid(x: np.ndarray, order: str) -> np.ndarray:
    return np.ascontiguousarray(x.transpose(["BHTD".index(a) for a in order]))


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def mask_of(spec: tuple[tuple[int, ...], str] | None) -> np.ndarray | None:
    if spec is None:
        return None
    shape, kind = spec
    if kind == "float":
        return np.where(RNG.random(shape) < 0.2, -np.inf, RNG.standard_normal(shape)).astype("f4")
    seen = RNG.random(shape) < 0.5
    if shape[2] > 2:
        seen[:, :, 2] = False  # a query that sees nothing
    return seen


def run(op: Any, arrays: list[np.ndarray], isa: str, cuts: list[int]) -> list[np.ndarray]:
    kc = cpu.KERNELS[op.name](op)
    outs = [guarded(v.type.shape, np.float32) for v in op.results]
    call(kc.kernel, isa, [*arrays, *(o for o, _ in outs)], kc.dims, kc.rows, row_cuts=cuts,
         scratch=kc.scratch)  # fmt: skip
    for out, memory in outs:
        used = np.zeros_like(memory)
        start = out.ctypes.data - memory.ctypes.data
        used[start : start + out.nbytes] = 1
        assert (memory[used == 0] == 77).all(), "wrote outside its result"
    return [out.copy() for out, _ in outs]


def check(op: Any, arrays: list[np.ndarray]) -> None:
    """Every ISA level agrees with the reference, and all of them, cut up or not, to the bit."""
    wanted = op.ref(*arrays)
    rows = cpu.KERNELS[op.name](op).rows
    first = None
    for isa in ISAS:
        for cuts in ([], list(range(1, rows))):
            got = run(op, arrays, isa, cuts)
            first = first or got
            assert all(map(same_bits, got, first)), (isa, cuts)
    assert first is not None
    for mine, want in zip(first, wanted, strict=True):
        np.testing.assert_allclose(mine, want, rtol=3e-5, atol=3e-5)


def case(name: str, *, extreme: bool = False) -> tuple[Attention, list[np.ndarray]]:
    (b, h, t, s, d, e), attributes, spec = CASES[name]
    orders = attributes.get("orders", ("BHTD",) * 4)
    parts = [normal(b, h, t, d), normal(b, h, s, d), normal(b, h, s, e)]
    if extreme:
        parts[0][..., 0] *= 60
    arrays = [laid(x, order) for x, order in zip(parts, orders, strict=False)]
    mask = mask_of(spec)
    arrays += [] if mask is None else [mask]
    q, k, v, *rest = map(value, arrays)
    given = {"causal": False, "scale": 0.3} | attributes
    return made(Attention(q, k, v, rest[0] if rest else None, **given)), arrays


@pytest.mark.parametrize("name", CASES)
def test_forward(name: str) -> None:
    check(*case(name))


def test_scores_far_apart() -> None:
    check(*case("causal", extreme=True))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_stay_in_their_rows(bad: float) -> None:
    op, arrays = case("tails")
    arrays[0][0, 0, 3, 1] = bad
    check(op, arrays)
    assert np.isnan(run(op, arrays, ISAS[0], [])[0]).any(-1).sum() == 1


def gradient(op: Attention, arrays: list[np.ndarray], joined: bool = False) -> Any:
    """The gradient's op and its arrays, for a random cotangent."""
    out, lse = op.ref(*arrays)
    ct = normal(*out.shape)
    delta = (ct * out).transpose([op.orders[3].index(a) for a in "BHTD"]).sum(3)
    more = [ct, lse, np.ascontiguousarray(delta)]
    grad = AttentionGrad(
        op.q, op.k, op.v, op.mask, op.causal, op.scale, *map(value, more), joined=joined,
        orders=op.orders, first=op.first, heads=op.heads,
    )  # fmt: skip
    return made(grad), [*arrays, *more]


@pytest.mark.parametrize("name", CASES)
def test_backward(name: str) -> None:
    check(*gradient(*case(name)))


@pytest.mark.parametrize("causal", [False, True])
def test_heads_of_one_projection(causal: bool) -> None:
    """q, k and v among the heads of one tensor, and their gradients in one."""
    three = normal(70, 2, 6, 16)
    x = value(three)
    op = made(
        Attention(x, x, x, None, causal, 0.25, orders=("TBHD",) * 4, first=(0, 2, 4), heads=2)
    )
    check(op, [three, three, three])
    check(*gradient(op, [three, three, three], joined=True))
