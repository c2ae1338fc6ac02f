"""fold: constants are computed by the ops' own references, and never blown up."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pass_harness import CPU, check_pass, graph_of

from nir.ir.dim import symbol
from nir.ir.interp import run
from nir.ir.op import OPS
from nir.ir.types import f32, f64, i32, i64
from nir.ops import Constant, Full
from nir.ops.expr import Expr
from nir.passes.fold import MAX_BYTES, fold

B = symbol("B")
F = "f32[B,4]"


def constant(x: Expr, data: np.ndarray) -> Expr:
    (c,) = x.emit(Constant(data=data))
    return c


def test_elementwise_of_uniform_operands_is_uniform_at_any_size() -> None:
    before = graph_of(lambda x: x * (x.full_like(4.0).sqrt() + 1.0), F)
    check_pass(fold, before, graph_of(lambda x: x * x.full_like(3.0), F))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.0])
def test_special_values_survive(value: float) -> None:
    after = fold(graph_of(lambda x: x.full_like(value).neg().neg(), F), CPU)
    (op,) = after.nodes
    assert isinstance(op, Full)
    assert float(op.value).hex() == float(value).hex()


def test_rounding_is_that_of_the_dtype() -> None:
    after = fold(graph_of(lambda x: x.full_like(0.1) + 0.2, F), CPU)
    (op,) = after.nodes
    assert isinstance(op, Full) and op.value == float(np.float32(0.1) + np.float32(0.2))


def test_casts_of_constants() -> None:
    before = graph_of(lambda x: x.full_like(3.7).cast(i32), F)
    check_pass(fold, before, graph_of(lambda x: x.full(3, (B, 4), i32), F))


def test_sizes_change_dtype_but_are_not_computed_with() -> None:
    before = graph_of(lambda x: x.full(B, (), i64).cast(f32), F)
    check_pass(fold, before, graph_of(lambda x: x.full(B, (), f32), F))
    check_pass(fold, graph_of(lambda x: x.full(B, (), f32) * 2.0, F), None)


def test_uniform_data_becomes_full() -> None:
    before = graph_of(lambda x: constant(x, np.full((3, 2), 1.5, np.float32)), F)
    check_pass(fold, before, graph_of(lambda x: x.full(1.5, (3, 2), f32), F))
    before = graph_of(lambda x: constant(x, np.array(7)), F)
    check_pass(fold, before, graph_of(lambda x: x.full(7, (), i64), F))


def test_zero_and_minus_zero_are_not_one_number() -> None:
    check_pass(fold, graph_of(lambda x: constant(x, np.array([0.0, -0.0], np.float32)), F), None)


def test_ops_on_constants() -> None:
    data = np.arange(6.0).reshape(2, 3)
    before = graph_of(lambda x: constant(x, data).transpose((1, 0)) * 2.0, F)
    check_pass(fold, before, graph_of(lambda x: constant(x, data.T * 2), F))
    before = graph_of(lambda x: constant(x, data).sum((0, 1)), F)
    check_pass(fold, before, graph_of(lambda x: x.full(15.0, (), f64), F))


def test_large_and_repeated_constants_are_not_written_out() -> None:
    data = np.arange(3, dtype=np.float32)
    check_pass(fold, graph_of(lambda x: constant(x, data).broadcast((100, 3), (1,)), F), None)
    check_pass(fold, graph_of(lambda x: x.full(1.0, (1000, 1000), f32).sum((0,)), F), None)
    wide = np.arange(MAX_BYTES // 4 + 1, dtype=np.float32)
    check_pass(fold, graph_of(lambda x: -constant(x, wide), F), None)


def test_ops_with_inputs_and_impure_ops_stay() -> None:
    check_pass(fold, graph_of(lambda x: x * 2.0, F), None)

    def call(x: Expr) -> Expr:
        c = constant(x, np.array([1.0, 2.0]))
        host = OPS["host_call"](inputs=(c.value,), fn=np.negative, types=(c.type,))
        (out,) = x.emit(host)
        return out

    check_pass(fold, graph_of(call, F), None)


def test_every_elementwise_op_folds_as_it_runs() -> None:
    for cls in OPS.values():
        if cls.kind != "elementwise":
            continue
        for sample in cls.samples():
            arrays = [a.reshape(-1)[:1].reshape(()) for a in sample.operands]
            if any(not a.size for a in sample.operands):
                continue

            def build(x: Expr, cls=cls, arrays=arrays, sample=sample) -> Expr:  # type: ignore[no-untyped-def]
                values = [constant(x, a).value for a in arrays]
                names = [n for n, _ in cls.operand_fields]
                fields = dict(zip(names, values, strict=True)) | dict(sample.attributes)
                (out,) = x.emit(cls(**fields))
                return out

            before = graph_of(build, F)
            after = fold(before, CPU)
            assert [op.name for op in after.nodes] == ["full"], cls.name
            x = [np.zeros((2, 4), np.float32)]
            np.testing.assert_array_equal(run(before, x)[0], run(after, x)[0])
