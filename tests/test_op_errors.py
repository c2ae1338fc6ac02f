"""Bad operands and attributes of every op, and the exact message that each must give."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from nir.errors import DeviceError, DTypeError, IndexRangeError, ShapeError, TraceError
from nir.ir.dim import symbol
from nir.ir.graph import Builder, Graph
from nir.ir.interp import run
from nir.ir.op import OPS, Op
from nir.ir.types import DTYPES, TensorType, f32, i32
from nir.ops.expr import Expr


def parse(spec: str) -> TensorType:
    """ "f32[B,3]" as a type; "@" gives another device."""
    match = re.fullmatch(r"(\w+)\[(.*)\](?:@(\w+))?", spec)
    assert match
    name, sizes, device = match.groups()
    shape = tuple(int(d) if d.isdigit() else symbol(d) for d in sizes.split(",") if d)
    return TensorType(DTYPES[name], shape, device=device or "cpu")


def region(*specs: str, out: tuple[int, ...] = (0,)) -> Graph:
    """A body that returns some of its inputs."""
    b = Builder("body")
    values = [b.input(parse(s)) for s in specs]
    return b.build([values[i] for i in out])


NONE = ((0, 0), (0, 0))
POOL = {"kernel": (2, 2), "stride": (2, 2), "padding": NONE}
IMAGE, WEIGHT = "f32[2,5,5,4]", "f32[3,3,4,6]"
KEY = ("i64[]", "i64[]")

# (op, operand types, attributes, error, message)
Row = tuple[str, tuple[str, ...], dict[str, Any], type[Exception], str]
ROWS: list[Row] = [
    ("add", ("f32[2,3]", "f32[3]"), {}, ShapeError,
     "add: expected operands of one shape, got f32[2,3], f32[3]"),
    ("mul", ("f32[B,3]", "f32[C,3]"), {}, ShapeError,
     "mul: expected operands of one shape, got f32[B,3], f32[C,3]"),
    ("sub", ("f32[2]", "f64[2]"), {}, DTypeError,
     "sub: expected operands of one dtype, got f32[2], f64[2]"),
    ("maximum", ("f32[2]", "f32[2]@gpu"), {}, DeviceError, "maximum: operands on cpu and gpu"),
    ("div", ("i32[2]", "i32[2]"), {}, DTypeError, "div: expected float, got i32[2]"),
    ("exp", ("i64[3]",), {}, DTypeError, "exp: expected float, got i64[3]"),
    ("neg", ("bool[3]",), {}, DTypeError, "neg: expected float or int or uint, got bool[3]"),
    ("logical_not", ("f32[3]",), {}, DTypeError, "logical_not: expected bool, got f32[3]"),
    ("bit_and", ("f32[3]", "f32[3]"), {}, DTypeError,
     "bit_and: expected int or uint or bool, got f32[3]"),
    ("shift_left", ("bool[3]", "bool[3]"), {}, DTypeError,
     "shift_left: expected int or uint, got bool[3]"),
    ("where", ("f32[3]", "f32[3]", "f32[3]"), {}, DTypeError,
     "where: expected a bool condition and one dtype, got f32[3], f32[3], f32[3]"),
    ("where", ("bool[]", "f32[3]", "f32[3]"), {}, ShapeError,
     "where: expected operands of one shape, got bool[], f32[3], f32[3]"),
    ("reshape", ("f32[2,3]",), {"shape": (4, 2)}, ShapeError,
     "reshape: [4,2] has 8 elements, expected 6 (x: f32[2,3])"),
    ("reshape", ("f32[2,3]",), {"shape": (-2, -3)}, ShapeError,
     "reshape: [-2,-3] has 6 elements, expected 6 (x: f32[2,3])"),
    ("reshape", ("f32[B,6]",), {"shape": (symbol("B") * 2, 4)}, ShapeError,
     "reshape: [2*B,4] has 8*B elements, expected 6*B (x: f32[B,6])"),
    ("transpose", ("f32[2,3]",), {"perm": (0, 0)}, ShapeError,
     "transpose: expected a permutation of 2 axes, got (0, 0) (x: f32[2,3])"),
    ("broadcast", ("f32[3]",), {"shape": (2, 4), "axes": (1,)}, ShapeError,
     "broadcast: axis 0 has size 3 (x: f32[3]), axis 1 of [2,4] has 4"),
    ("broadcast", ("f32[1]",), {"shape": (4,), "axes": (0,)}, ShapeError,
     "broadcast: axis 0 has size 1 (x: f32[1]), axis 0 of [4] has 4"),
    ("broadcast", ("f32[3,2]",), {"shape": (2, 3), "axes": (1, 0)}, ShapeError,
     "broadcast: expected 2 ascending axes below 2, got (1, 0) (x: f32[3,2])"),
    ("broadcast", ("f32[]",), {"shape": (-1,), "axes": ()}, ShapeError,
     "broadcast: expected sizes >= 0, got [-1]"),
    ("slice", ("f32[4]",), {"starts": (0, 0), "sizes": (1, 1), "steps": (1, 1)}, ShapeError,
     "slice: expected 1 starts, sizes and steps (x: f32[4])"),
    ("slice", ("f32[4]",), {"starts": (1,), "sizes": (3,), "steps": (2,)}, ShapeError,
     "slice: 3 elements from 1 by 2 leave axis 0 of size 4 (x: f32[4])"),
    ("slice", ("f32[4]",), {"starts": (3,), "sizes": (2,), "steps": (-1,)}, ShapeError,
     "slice: expected positive steps, got -1 on axis 0"),
    ("pad", ("f32[4]",), {"low": (-1,), "high": (0,), "value": 0.0}, ShapeError,
     "pad: expected widths >= 0, got (-1,), (0,) (x: f32[4])"),
    ("pad", ("f32[4]",), {"low": (), "high": (0,), "value": 0.0}, ShapeError,
     "pad: expected 1 low and high widths (x: f32[4])"),
    ("concat", ("f32[2,3]", "f32[2,4]"), {"axis": 0}, ShapeError,
     "concat: shapes differ beside axis 0: f32[2,3], f32[2,4]"),
    ("concat", ("f32[2]", "i32[2]"), {"axis": 0}, DTypeError,
     "concat: expected operands of one dtype, got f32[2], i32[2]"),
    ("concat", ("f32[2]",), {"axis": 1}, ShapeError,
     "concat: expected tensors with an axis 1, got f32[2]"),
    ("flip", ("f32[2,3]",), {"axes": (0, 0)}, ShapeError,
     "flip: expected distinct axes below 2, got (0, 0) (x: f32[2,3])"),
    ("dilate", ("f32[2,3]",), {"factors": (2, 0)}, ShapeError,
     "dilate: expected 2 factors >= 1, got (2, 0) (x: f32[2,3])"),
    ("take", ("f32[4]", "f32[2]"), {"axis": 0}, DTypeError,
     "take: expected i32 or i64 indices, got f32[2]"),
    ("take", ("f32[4]", "i64[2]"), {"axis": 1}, ShapeError,
     "take: axis 1 of a tensor of 1 axes (x: f32[4])"),
    ("scatter_add", ("f32[4,3]", "i64[2]", "f32[3,3]"), {"axis": 0}, ShapeError,
     "scatter_add: expected updates f32[2,3], got f32[3,3]"),
    ("scatter_add", ("bool[4]", "i64[2]", "bool[2]"), {"axis": 0}, DTypeError,
     "scatter_add: expected one number dtype, got x: bool[4], updates: bool[2]"),
    ("put", ("f32[4,3]", "i64[2]", "f32[3,3]"), {"axis": 0}, ShapeError,
     "put: expected updates f32[2,3], got f32[3,3]"),
    ("put", ("f32[4,3]", "i64[2]", "i32[2,3]"), {"axis": 0}, DTypeError,
     "put: expected updates f32[2,3], got i32[2,3]"),
    ("take_along", ("f32[4,3]", "i64[2,2]"), {"axis": 0}, ShapeError,
     "take_along: shapes differ beside axis 0: x: f32[4,3], indices: i64[2,2]"),
    ("scatter_add_along", ("f32[4,3]", "i64[2,2]", "f32[2,2]"), {"axis": 0}, ShapeError,
     "scatter_add_along: shapes differ beside axis 0: x: f32[4,3], indices: i64[2,2]"),
    ("scatter_add_along", ("f32[4]", "i64[2]", "f64[2]"), {"axis": 0}, DTypeError,
     "scatter_add_along: expected one number dtype, got x: f32[4], updates: f64[2]"),
    ("full", (), {"value": 1.0, "shape": (2, -1), "dtype": f32}, ShapeError,
     "full: expected sizes >= 0, got (2, -1)"),
    ("iota", (), {"shape": (2,), "axis": 1, "dtype": f32}, ShapeError,
     "iota: axis 1 of a tensor of 1 axes"),
    ("sum", ("f32[2,3]",), {"axes": (2,)}, ShapeError,
     "sum: expected ascending axes below 2, got (2,) (x: f32[2,3])"),
    ("max", ("f32[2,3]",), {"axes": (1, 0)}, ShapeError,
     "max: expected ascending axes below 2, got (1, 0) (x: f32[2,3])"),
    ("mean", ("i64[2]",), {"axes": (0,)}, DTypeError, "mean: expected float, got i64[2]"),
    ("sum", ("bool[2]",), {"axes": (0,)}, DTypeError,
     "sum: expected float or int or uint, got bool[2]"),
    ("arg_max", ("f32[2,0]",), {"axis": 1}, ShapeError, "arg_max: axis 1 is empty (x: f32[2,0])"),
    ("arg_min", ("f32[2]",), {"axis": -1}, ShapeError,
     "arg_min: axis -1 of a tensor of 1 axes (x: f32[2])"),
    ("cum_sum", ("bool[2]",), {"axis": 0}, DTypeError,
     "cum_sum: expected float or int, got bool[2]"),
    ("sort", ("f32[2]",), {"axis": 1}, ShapeError,
     "sort: axis 1 of a tensor of 1 axes (x: f32[2])"),
    ("top_k", ("f32[2,3]",), {"k": 4, "axis": 1}, ShapeError,
     "top_k: expected k from 0 to 3, got 4 (x: f32[2,3])"),
    ("reduce_partial", ("f32[4]",), {"op": "mean", "chunk": 2}, DTypeError,
     "reduce_partial: op is one of sum, prod, max, min, not 'mean'"),
    ("matmul", ("f32[8,16]", "f32[12,10]"), {}, ShapeError,
     "matmul: inner dimensions differ: 16 (lhs: f32[8,16]) and 12 (rhs: f32[12,10])"),
    ("matmul", ("f32[8,16]", "f32[16,10]"), {"transpose_rhs": True}, ShapeError,
     "matmul: inner dimensions differ: 16 (lhs: f32[8,16]) and 10 (rhs: f32[16,10])"),
    ("matmul", ("f32[2,3,4]", "f32[4,5]"), {}, ShapeError,
     "matmul: batch dimensions differ (lhs: f32[2,3,4], rhs: f32[4,5])"),
    ("matmul", ("f32[4]", "f32[4,5]"), {}, ShapeError,
     "matmul: expected operands of 2 or more axes (lhs: f32[4], rhs: f32[4,5])"),
    ("matmul", ("f32[3,4]", "f64[4,5]"), {}, DTypeError,
     "matmul: expected operands of one number dtype (lhs: f32[3,4], rhs: f64[4,5])"),
    ("pack", ("f32[4]",), {}, ShapeError, "pack: expected a matrix, got w: f32[4]"),
    ("conv2d", (IMAGE, "f32[3,3,3,6]"), {}, ShapeError,
     "conv2d: x has 4 channels (x: f32[2,5,5,4]), the weight expects 3 "
     "(w: f32[3,3,3,6], groups 1)"),
    ("conv2d", (IMAGE, "f32[6,6,4,2]"), {}, ShapeError,
     "conv2d: kernel (6, 6) with dilation (1, 1) exceeds the padded image "
     "(x: f32[2,5,5,4], padding ((0, 0), (0, 0)))"),
    ("conv2d", (IMAGE, "f32[3,3,2,5]"), {"groups": 2}, ShapeError,
     "conv2d: 5 output channels do not divide by groups 2 (w: f32[3,3,2,5])"),
    ("conv2d", (IMAGE, WEIGHT), {"stride": (0, 1)}, ShapeError,
     "conv2d: expected stride, dilation and groups >= 1, got (0, 1), (1, 1) and 1"),
    ("conv2d", (IMAGE, WEIGHT), {"padding": ((0, 0), (-1, 0))}, ShapeError,
     "conv2d: expected padding >= 0, got ((0, 0), (-1, 0))"),
    ("conv2d", ("f32[5,5,4]", WEIGHT), {}, ShapeError,
     "conv2d: expected operands of 4 axes (NHWC, HWIO), got f32[5,5,4], f32[3,3,4,6]"),
    ("conv2d", (IMAGE, "f64[3,3,4,6]"), {}, DTypeError,
     "conv2d: expected operands of one float dtype, got f32[2,5,5,4], f64[3,3,4,6]"),
    ("conv2d_input_grad", ("f32[2,4,3,6]", WEIGHT), {"input_size": (5, 5)}, ShapeError,
     "conv2d_input_grad: expected dy [2,3,3,6], got f32[2,4,3,6] "
     "(w: f32[3,3,4,6], input_size (5, 5))"),
    ("conv2d_weight_grad", (IMAGE, "f32[2,4,3,6]"), {"kernel_size": (3, 3)}, ShapeError,
     "conv2d_weight_grad: expected dy [2,3,3,..], got f32[2,4,3,6] (x: f32[2,5,5,4])"),
    ("conv2d_weight_grad", (IMAGE, "f32[2,3,3,5]"), {"kernel_size": (3, 3), "groups": 2},
     ShapeError, "conv2d_weight_grad: channels do not divide by groups 2 "
     "(x: f32[2,5,5,4], dy: f32[2,3,3,5])"),
    ("max_pool2d", ("f32[5,5]",), POOL, ShapeError,
     "max_pool2d: expected an NHWC image, got f32[5,5]"),
    ("max_pool2d", ("f32[1,1,5,2]",), POOL, ShapeError,
     "max_pool2d: window (2, 2) exceeds the padded image (x: f32[1,1,5,2])"),
    ("avg_pool2d", (IMAGE,), {**POOL, "padding": ((2, 0), (0, 0))}, ShapeError,
     "avg_pool2d: expected padding below the kernel (2, 2), got ((2, 0), (0, 0))"),
    ("avg_pool2d", (IMAGE,), {**POOL, "stride": (0, 1)}, ShapeError,
     "avg_pool2d: expected kernel and stride >= 1, got (2, 2), (0, 1)"),
    ("avg_pool2d", ("i32[2,5,5,4]",), POOL, DTypeError,
     "avg_pool2d: expected float, got i32[2,5,5,4]"),
    ("max_pool2d_grad", (IMAGE, "f32[2,3,2,4]"), POOL, ShapeError,
     "max_pool2d_grad: expected dy f32[2,2,2,4], got f32[2,3,2,4] (x: f32[2,5,5,4])"),
    ("max_pool2d_select", (IMAGE, "f32[2,5,5,3]"), POOL, ShapeError,
     "max_pool2d_select: expected v of x's type f32[2,5,5,4], got f32[2,5,5,3]"),
    ("avg_pool2d_grad", ("f32[2,3,2,4]",), {**POOL, "input_size": (5, 5)}, ShapeError,
     "avg_pool2d_grad: expected dy of size (2, 2), got f32[2,3,2,4]"),
    ("softmax", ("f32[2,3]",), {"axis": 2}, ShapeError,
     "softmax: axis 2 of a tensor of 2 axes (x: f32[2,3])"),
    ("log_softmax", ("i64[2,3]",), {"axis": 1}, DTypeError,
     "log_softmax: expected one float dtype, got i64[2,3]"),
    ("layer_norm", ("f32[2,3]", "f32[2]", "f32[3]"), {"eps": 1e-5}, ShapeError,
     "layer_norm: expected weight [3], got f32[2] (x: f32[2,3])"),
    ("batch_norm", ("f32[B,3]", "f32[3]", "f32[4]"), {"eps": 1e-5}, ShapeError,
     "batch_norm: expected bias [3], got f32[4] (x: f32[B,3])"),
    ("batch_norm_inference", ("f32[3]", *("f32[3]",) * 4), {"eps": 1e-5}, ShapeError,
     "batch_norm_inference: expected x with a batch and a channel axis, got f32[3]"),
    ("cross_entropy", ("f32[2,3]", "f32[2]"), {}, DTypeError,
     "cross_entropy: expected i64 targets, got f32[2]"),
    ("cross_entropy", ("f32[2,3]", "i64[3]"), {}, ShapeError,
     "cross_entropy: expected logits [N,C] and targets [N], got f32[2,3] and i64[3]"),
    ("attention", ("f32[1,2,4,8]", "f32[1,2,5,8]", "f32[1,2,6,8]"),
     {"mask": None, "causal": False, "scale": 1.0}, ShapeError,
     "attention: shapes do not fit: q: f32[1,2,4,8], k: f32[1,2,5,8], v: f32[1,2,6,8]"),
    ("attention", ("f32[1,2,4,8]", "f32[1,2,5,8]", "f32[1,2,5,8]", "bool[1,3,4,5]"),
     {"causal": False, "scale": 1.0}, ShapeError,
     "attention: expected a mask that broadcasts to [1,2,4,5], got q: f32[1,2,4,8], "
     "k: f32[1,2,5,8], v: f32[1,2,5,8], mask: bool[1,3,4,5]"),
    ("attention", ("f32[1,2,4,8]", "f32[1,2,5,8]", "f32[1,2,5,8]", "i32[1,1,4,5]"),
     {"causal": False, "scale": 1.0}, DTypeError,
     "attention: expected a mask of bool or f32, got q: f32[1,2,4,8], k: f32[1,2,5,8], "
     "v: f32[1,2,5,8], mask: i32[1,1,4,5]"),
    ("attention", ("f32[1,2,4,8]", "f32[1,2,5,8]", "f32[1,2,5,8]"),
     {"mask": None, "causal": False, "scale": 1.0, "orders": ("BHTD", "BHDT", "BHTD", "BHTD")},
     ShapeError,
     "attention: expected four orders of BHTD, BTHD, TBHD, HBTD, HTBD, THBD, got BHTD, BHDT, BHTD, "
     "BHTD"),
    ("attention_grad", (*("f32[1,2,4,8]",) * 4, "f32[1,2,4]", "f32[1,2,5]"),
     {"mask": None, "causal": False, "scale": 1.0}, ShapeError,
     "attention_grad: expected ct [1,2,4,8], lse and delta [1,2,4], got f32[1,2,4,8], f32[1,2,4] "
     "and f32[1,2,5]"),
    ("random_bits", ("i32[]", "i64[]"), {"shape": (2,)}, DTypeError,
     "random_bits: expected key: i64[], got i32[]"),
    ("random_uniform", KEY, {"shape": (2,), "dtype": i32}, DTypeError,
     "random_uniform: expected f32 or f64, got i32"),
    ("random_bernoulli", (*KEY, "f64[]"), {"shape": (2,)}, DTypeError,
     "random_bernoulli: expected p: f32[], got f64[]"),
    ("cond", ("f32[]", "f32[2]"), {"then_body": region("f32[2]"), "else_body": region("f32[2]")},
     DTypeError, "cond: expected a predicate bool[], got f32[]"),
    ("cond", ("bool[]", "f32[2]"), {"then_body": region("f32[2]"), "else_body": region("f32[3]")},
     ShapeError, "cond: else_body takes (f32[3]), got (f32[2])"),
    ("scan", ("f32[2]",),
     {"xs": (), "captures": (), "length": 3, "reverse": False, "body": region("f32[3]")},
     ShapeError, "scan: body takes (f32[3]), got (f32[2])"),
    ("while_loop", ("f32[2]",),
     {"captures": (), "condition": region("f32[2]"), "body": region("f32[2]")},
     DTypeError, "while_loop: expected a condition that returns bool[], got (f32[2])"),
    ("while_loop", ("bool[]",),
     {"captures": (), "condition": region("bool[]"), "body": region("bool[]"), "max_trips": -1},
     ShapeError, "while_loop: expected max_trips >= 0, got -1"),
    ("check_index", ("f32[2]",), {"size": 3}, DTypeError,
     "check_index: expected i32 or i64 indices, got f32[2]"),
    ("custom_vjp", ("f32[2]",), {"fwd": region("f32[2]"), "bwd": region("f32[2]")}, ShapeError,
     "custom_vjp: bwd takes (f32[2]), got (f32[2], f32[2], f32[2])"),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=[f"{r[0]}-{i}" for i, r in enumerate(ROWS)])
def test_message(row: Row) -> None:
    name, operands, attributes, error, message = row
    b = Builder()
    values = [b.input(parse(s)) for s in operands]
    cls = OPS[name]
    fields = dict(attributes)
    for field, arity in cls.operand_fields:
        if field not in fields:
            fields[field] = tuple(values) if arity == "many" else values.pop(0)
            values = [] if arity == "many" else values
    with pytest.raises(error) as caught:
        b.emit(cls(**fields))
    assert caught.value.message == message  # type: ignore[attr-defined]
    assert "test_op_errors.py:" in str(caught.value.location)  # type: ignore[attr-defined]


def test_every_op_with_operands_can_be_given_wrong_ones() -> None:
    # One op of each shared base class; some ops take whatever type they are given.
    tested = {r[0] for r in ROWS}
    anything = {"cast", "constant", "hold", "host_call", "fused", "banded", "pack_conv2d"}
    bases = {OPS[name].__mro__[1] for name in tested} - {Op}
    for name, cls in OPS.items():
        assert name in tested | anything or bases & set(cls.__mro__[1:]), name


@pytest.mark.parametrize(
    ("name", "extra"), [("take", ()), ("scatter_add", (np.ones(2, np.float32),)),
                        ("put", (np.ones(2, np.float32),)),
                        ("take_along", ()), ("scatter_add_along", (np.ones(2, np.float32),))],
)  # fmt: skip
@pytest.mark.parametrize("bad", [4, -5])
def test_index_out_of_range(name: str, extra: tuple[np.ndarray, ...], bad: int) -> None:
    b = Builder()
    x, i, *rest = (
        Expr(b, b.input(parse(s))) for s in ("f32[4]", "i64[2]", *("f32[2]",) * len(extra))
    )
    graph = b.build([getattr(x, name)(i, *rest, axis=0).value])
    arrays = [np.arange(4, dtype=np.float32), np.array([1, bad]), *extra]
    message = f"{name}: index {bad} is out of range for an axis of size 4"
    with pytest.raises(IndexRangeError, match=message):
        run(graph, arrays)


def test_host_call_checks_what_comes_back() -> None:
    call = OPS["host_call"]
    t = TensorType(f32, (2,))
    with pytest.raises(TraceError, match=r"host_call: expected a f32\[2\], got float64\[2\]"):
        call(inputs=(), fn=lambda: np.zeros(2), types=(t,)).ref()
    with pytest.raises(TraceError, match="host_call: expected 1 results, got 2"):
        call(inputs=(), fn=lambda: (np.zeros(2), np.zeros(2)), types=(t,)).ref()
    with pytest.raises(TraceError, match=r"host_call: expected a f32\[2\], got float32\[3\]"):
        call(inputs=(), fn=lambda: np.zeros(3, np.float32), types=(t,)).ref()
