"""simplify's rules for movement and for the products that absorb it: before and expected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pass_harness import CPU, assert_same, check_pass, edge_inputs, graph_of, random_inputs

from nir.ir.dim import symbol
from nir.ir.interp import run
from nir.passes.simplify import simplify

B, S = symbol("B"), symbol("S")
F, M, T = "f32[B,4]", "f32[6,4]", "f32[B,3,4]"
Fn = Callable[..., Any]
ONES2, ONES3 = (1, 1), (1, 1, 1)

CASES: dict[str, tuple[tuple[str, ...], Fn, Fn | None]] = {
    # transpose
    "identity transpose": ((F,), lambda x: x.transpose((0, 1)), lambda x: x),
    "transpose twice": ((F,), lambda x: x.transpose((1, 0)).transpose((1, 0)), lambda x: x),
    "transposes compose": (
        (T,),
        lambda x: x.transpose((1, 2, 0)).transpose((1, 2, 0)),
        lambda x: x.transpose((2, 0, 1)),
    ),
    "transpose of size 1 is a reshape": (
        ("f32[B,1,4]",),
        lambda x: x.transpose((1, 0, 2)),
        lambda x: x.reshape((1, B, 4)),
    ),
    "transpose of broadcast": (
        ("f32[4]",),
        lambda x: x.broadcast((B, 4), (1,)).transpose((1, 0)),
        lambda x: x.broadcast((4, B), (0,)),
    ),
    "transpose of broadcast moves the small operand": (
        (F,),
        lambda x: x.broadcast((3, B, 4), (1, 2)).transpose((2, 0, 1)),
        lambda x: x.transpose((1, 0)).broadcast((4, 3, B), (0, 2)),
    ),
    "transposes meet across axes of size 1": (
        (T,),
        lambda x: x.transpose((2, 0, 1)).reshape((4, B, 1, 3)).transpose((1, 2, 3, 0)),
        lambda x: x.reshape((B, 1, 3, 4)),
    ),
    "transpose of matmul": (
        (F, "f32[4,5]"),
        lambda a, b: a.matmul(b).transpose((1, 0)),
        lambda a, b: b.matmul(a, transpose_lhs=True, transpose_rhs=True),
    ),
    # reshape and broadcast
    "reshape to its own shape": ((F,), lambda x: x.reshape((B, 4)), lambda x: x),
    "reshapes compose": (
        (F,),
        lambda x: x.reshape((B * 4,)).reshape((B, 2, 2)),
        lambda x: x.reshape((B, 2, 2)),
    ),
    "reshape there and back": ((F,), lambda x: x.reshape((B * 4,)).reshape((B, 4)), lambda x: x),
    "reshape of full": (
        ("f32[]",),
        lambda x: x.broadcast((B, 4), ()).reshape((B * 4,)),
        lambda x: x.broadcast((B * 4,), ()),
    ),
    "reshape of broadcast": (
        ("f32[4]",),
        lambda x: x.broadcast((B, 3, 4), (2,)).reshape((B * 3, 2, 2)),
        lambda x: x.reshape((2, 2)).broadcast((B * 3, 2, 2), (1, 2)),
    ),
    "reshape that mixes repeated axes stays": (
        ("f32[4]",),
        lambda x: x.broadcast((B, 4), (1,)).reshape((B * 4,)),
        None,
    ),
    "broadcast of nothing new": ((F,), lambda x: x.broadcast((B, 4), (0, 1)), lambda x: x),
    "broadcasts compose": (
        ("f32[4]",),
        lambda x: x.broadcast((3, 4), (1,)).broadcast((B, 3, 4), (1, 2)),
        lambda x: x.broadcast((B, 3, 4), (2,)),
    ),
    "keepdim and back": (
        (F,),
        lambda x: x.sum((1,)).reshape((B, 1)).reshape((B,)).broadcast((B, 4), (0,)),
        lambda x: x.sum((1,)).broadcast((B, 4), (0,)),
    ),
    "broadcast drops axes of size 1": (
        ("f32[B]",),
        lambda x: x.reshape((B, 1)).broadcast((B, 1, 4), (0, 1)),
        lambda x: x.broadcast((B, 1, 4), (0,)),
    ),
    # slice
    "slice of everything": ((F,), lambda x: x.slice((0, 0), (B, 4), ONES2), lambda x: x),
    "slices compose": (
        ("f32[20,4]",),
        lambda x: x.slice((2, 0), (8, 4), (2, 1)).slice((1, 1), (3, 2), (2, 1)),
        lambda x: x.slice((4, 1), (3, 2), (4, 1)),
    ),
    "slice of broadcast": (
        ("f32[4]",),
        lambda x: x.broadcast((B, 4), (1,)).slice((0, 1), (2, 3), ONES2),
        lambda x: x.slice((1,), (3,), (1,)).broadcast((2, 3), (1,)),
    ),
    "slice inside a pad": (
        (M,),
        lambda x: x.pad((1, 0), (2, 3), 0.0).slice((2, 1), (3, 3), ONES2),
        lambda x: x.slice((1, 1), (3, 3), ONES2),
    ),
    "slice of the padding stays": (
        (M,),
        lambda x: x.pad((1, 0), (2, 3), 0.0).slice((0, 1), (3, 3), ONES2),
        None,
    ),
    "slice of one part of a concat": (
        (M, F),
        lambda a, b: a.concat((b,), axis=0).slice((6, 0), (B, 4), ONES2),
        lambda a, b: b,
    ),
    "slice across a concat stays": (
        (M, M),
        lambda a, b: a.concat((b,), axis=0).slice((3, 0), (6, 4), ONES2),
        None,
    ),
    # flip, pad, concat, dilate
    "flip twice": ((F,), lambda x: x.flip((0, 1)).flip((1,)), lambda x: x.flip((0,))),
    "flip and back": ((F,), lambda x: x.flip((1,)).flip((1,)), lambda x: x),
    "flip of size 1": (("f32[B,1]",), lambda x: x.flip((1,)), lambda x: x),
    "flip of broadcast": (
        ("f32[4]",),
        lambda x: x.broadcast((3, 4), (1,)).flip((0, 1)),
        lambda x: x.flip((0,)).broadcast((3, 4), (1,)),
    ),
    "pad by nothing": ((F,), lambda x: x.pad((0, 0), (0, 0), 1.0), lambda x: x),
    "pads join": (
        (F,),
        lambda x: x.pad((1, 0), (0, 2), 0.0).pad((1, 1), (3, 0), 0.0),
        lambda x: x.pad((2, 1), (3, 2), 0.0),
    ),
    "pads of 0 and -0 stay apart": (
        (F,),
        lambda x: x.pad((1, 0), (0, 2), 0.0).pad((1, 1), (3, 0), -0.0),
        None,
    ),
    "concat of one": ((F,), lambda x: x.concat((), axis=0), lambda x: x),
    "concat with an empty tensor": (
        (F, "f32[0,4]"),
        lambda a, b: a.concat((b,), axis=0),
        lambda a, b: a,
    ),
    "concat of concat": (
        (F, M, F),
        lambda a, b, c: a.concat((b,), axis=0).concat((c,), axis=0),
        lambda a, b, c: a.concat((b, c), axis=0),
    ),
    "split and joined again": (
        (M,),
        lambda x: x.slice((0, 0), (2, 4), ONES2).concat((x.slice((2, 0), (4, 4), ONES2),), axis=0),
        lambda x: x,
    ),
    "joined in another order stays": (
        (M,),
        lambda x: x.slice((2, 0), (4, 4), ONES2).concat((x.slice((0, 0), (2, 4), ONES2),), axis=0),
        None,
    ),
    "dilate by 1": ((F,), lambda x: x.dilate((1, 1)), lambda x: x),
    # products and sums
    "matmul of transposes": (
        ("f32[4,B]", "f32[5,4]"),
        lambda a, b: a.transpose((1, 0)).matmul(b.transpose((1, 0))),
        lambda a, b: a.matmul(b, transpose_lhs=True, transpose_rhs=True),
    ),
    "matmul by one matrix for each batch": (
        (T, "f32[4,5]"),
        lambda a, w: a.matmul(w.broadcast((B, 4, 5), (1, 2))),
        lambda a, w: a.reshape((B * 3, 4)).matmul(w).reshape((B, 3, 5)),
    ),
    "sum of products over the batch": (
        (T, "f32[B,3,5]"),
        lambda a, d: a.matmul(d, transpose_lhs=True).sum((0,)),
        lambda a, d: a.reshape((B * 3, 4)).matmul(d.reshape((B * 3, 5)), transpose_lhs=True),
    ),
    "sum of transpose": (
        (T,),
        lambda x: x.transpose((0, 2, 1)).sum((2,)),
        lambda x: x.sum((1,)),
    ),
}

_ROUNDS = {"sum of products over the batch", "sum of transpose"}


@pytest.mark.parametrize("name", CASES)
def test_rule(name: str) -> None:
    specs, before, expected = CASES[name]
    graph = graph_of(before, *specs)
    after = check_pass(simplify, graph, expected and graph_of(expected, *specs))
    for seed in range(3):
        products = "matmul" in graph.count() or name in _ROUNDS
        arrays = random_inputs(graph, seed) if products else edge_inputs(graph, seed)
        env = {"B": 3}
        for a, b in zip(run(graph, arrays, env), run(after, arrays, env), strict=True):
            assert_same(a, b, rtol=1e-4 if products else 0)
    assert simplify(after, CPU) is after
