"""decompose: everything ends in ops the target covers, or in an error that names op and line."""

from __future__ import annotations

import numpy as np
import pytest
from op_cases import CASES, Case, make_graph
from pass_harness import CPU, check_pass, graph_of, random_inputs

from nir.errors import UnsupportedError
from nir.ir.dim import symbol
from nir.ir.interp import run
from nir.ir.program import Target
from nir.ir.types import DTYPES, f32, i32
from nir.passes.decompose import covered, decompose

B = symbol("B")
F = "f32[B,4]"
# Run by the interpreter only, or on dtypes that no kernel takes.
_UNSUPPORTED = {"scan", "cond", "host_call"}


def test_mean_becomes_a_sum_and_a_division() -> None:
    before = graph_of(lambda x: x.mean((1,)), F)
    check_pass(decompose, before, graph_of(lambda x: x.sum((1,)) / 4, F))


def test_decompositions_are_decomposed_in_turn() -> None:
    after = decompose(graph_of(lambda x, t: x.cross_entropy(t), F, "i64[B]"), CPU)
    assert all(covered(op, CPU) for op in after.nodes)
    assert "cross_entropy" not in after.count() and "log_softmax" not in after.count()


@pytest.mark.parametrize("dtype", ["i8", "i16", "u8"])
def test_narrow_integers_are_widened_around_kernels_that_do_not_take_them(dtype: str) -> None:
    wide = graph_of(lambda x: x.cast(i32).cum_sum(1).cast(DTYPES[dtype]), f"{dtype}[B,4]")
    check_pass(decompose, graph_of(lambda x: x.cum_sum(1), f"{dtype}[B,4]"), wide)


@pytest.mark.parametrize("half", ["f16", "bf16"])
def test_arithmetic_in_half_types_is_done_in_f32(half: str) -> None:
    before = graph_of(lambda x, y: (x * y).sum((1,)), f"{half}[B,4]", f"{half}[B,4]")
    narrow = DTYPES[half]
    wide = graph_of(
        lambda x, y: (x.cast(f32) * y.cast(f32)).cast(narrow).cast(f32).sum((1,)).cast(narrow),
        f"{half}[B,4]", f"{half}[B,4]",
    )  # fmt: skip
    check_pass(decompose, before, wide)


@pytest.mark.parametrize("half", ["f16", "bf16"])
def test_moving_half_types_stays_as_it_is(half: str) -> None:
    g = graph_of(lambda x: x.transpose((1, 0)).reshape((2, 2, B)), f"{half}[B,4]")
    check_pass(decompose, g, None)


def test_the_interpreter_target_decomposes_nothing() -> None:
    check_pass(decompose, graph_of(lambda x: x.mean((1,)), F), None, Target("interp"))


def test_an_op_that_the_target_has_a_kernel_for_stays() -> None:
    g = graph_of(lambda x: x.softmax(1), F)
    assert "softmax" not in decompose(g, CPU).count()
    check_pass(decompose, g, None, Target("cpu", kernels={"softmax": lambda op: True}))


def test_an_op_without_kernel_or_decomposition_is_named() -> None:
    g = graph_of(lambda x, w: x.matmul(w), F, "f32[4,5]")
    with pytest.raises(UnsupportedError) as error:
        decompose(g, Target("cpu"))
    message = str(error.value)
    assert message.startswith("matmul(f32[B,4], f32[4,5]): target cpu has neither a kernel nor")
    assert "test_pass_decompose.py:" in message


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_decomposition_of_every_op_agrees_with_its_reference(case: Case) -> None:
    g = make_graph(case)
    try:
        after = decompose(g, CPU)
    except UnsupportedError:
        assert case.op.name in _UNSUPPORTED
        return
    assert all(covered(op, CPU) for op in after.nodes)
    with np.errstate(all="ignore"):
        pairs = zip(run(g, case.arrays), run(after, case.arrays), strict=True)
    for want, got in pairs:
        np.testing.assert_allclose(
            got.astype(np.float64), want.astype(np.float64), rtol=2e-4, atol=2e-5
        )


def test_a_symbolic_mean_divides_by_the_size() -> None:
    g = graph_of(lambda x: x.mean((0, 1)), F)
    after = decompose(g, CPU)
    for rows in (1, 5):
        x = random_inputs(g, sizes={"B": rows})
        np.testing.assert_allclose(run(after, x)[0], x[0].mean(), rtol=1e-5)
