"""The graph of a Needle program: nodes, gradients, data that changes, ops of the user's own."""

from __future__ import annotations

import gc
import itertools
from typing import Any

import numpy as np
import pytest

import nir
import nir.needle as ndl
from nir.needle import autograd, deferred, ops
from nir.needle.store import IS_NUMPY

RTOL = 1e-9 if IS_NUMPY else 2e-5


def tensor(*shape: int, seed: int = 0, **options: Any) -> Any:
    return ndl.Tensor(np.random.default_rng(seed).standard_normal(shape), **options)


# ---- nodes ---------------------------------------------------------------------------------------


def kinds(node: Any) -> list[str]:
    return [type(n.op).__name__ if n.op else "leaf" for n in ndl.autograd.find_topo_sort([node])]


def test_nodes_have_needles_granularity() -> None:
    a, b = tensor(2), tensor(2)
    assert kinds(a - b) == ["leaf", "leaf", "Negate", "EWiseAdd"]
    assert kinds(3 * a) == ["leaf", "MulScalar"]
    assert kinds(a - 1.5) == ["leaf", "AddScalar"]
    assert kinds(2 - a) == ["leaf", "Negate", "AddScalar"]
    assert kinds(a / b) == ["leaf", "leaf", "EWiseDiv"]
    assert kinds(a**2) == ["leaf", "PowerScalar"]
    assert kinds((a * a).sum()) == ["leaf", "EWiseMul", "Summation"]


def test_topological_order_is_postorder_and_visits_once() -> None:
    a, b = tensor(2), tensor(2)
    c = a * b
    d = c + a
    assert ndl.autograd.find_topo_sort([d]) == [a, b, c, d]
    assert ndl.autograd.find_topo_sort([c, d]) == [a, b, c, d]
    deep = a
    for _ in range(5000):
        deep = deep + a
    assert len(ndl.autograd.find_topo_sort([deep])) == 5001


def test_inputs_are_the_operands_themselves() -> None:
    a, b = tensor(2), tensor(2)
    c = a + b
    assert c.inputs[0] is a and c.inputs[1] is b
    assert c.op.__dict__ == {} and (a + 2).op.__dict__ == {"scalar": 2}


def test_a_value_that_needs_no_gradient_is_a_leaf() -> None:
    a = tensor(2, requires_grad=False)
    b = a * 2
    assert b.is_leaf() and not b.requires_grad
    assert tensor(2).requires_grad and (a + tensor(2)).requires_grad


def test_values_are_counted() -> None:
    gc.collect()  # what earlier tests left
    before = autograd.TENSOR_COUNTER
    x = tensor(3)
    y = (x * 2).sum()
    assert before + 3 == autograd.TENSOR_COUNTER
    y.backward()
    del x, y
    gc.collect()
    assert before == autograd.TENSOR_COUNTER


# ---- gradients -----------------------------------------------------------------------------------


def test_every_node_gets_its_gradient() -> None:
    a, b = tensor(3, 3, seed=1), tensor(3, 3, seed=2)
    h = a @ b
    y = h * h
    z = y.sum()
    z.backward()
    np.testing.assert_allclose(y.grad.numpy(), np.ones((3, 3)))
    np.testing.assert_allclose(h.grad.numpy(), 2 * h.numpy(), RTOL)
    np.testing.assert_allclose(a.grad.numpy(), 2 * h.numpy() @ b.numpy().T, 10 * RTOL, 1e-6)
    np.testing.assert_allclose(b.grad.numpy(), a.numpy().T @ (2 * h.numpy()), 10 * RTOL, 1e-6)


def test_backward_overwrites() -> None:
    x = tensor(3)
    for _ in range(2):
        (x * 3).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), np.full(3, 3.0))


def test_backward_takes_an_adjoint() -> None:
    x, g = tensor(3), tensor(3, seed=7)
    (x * x).backward(g)
    np.testing.assert_allclose(x.grad.numpy(), 2 * x.numpy() * g.numpy(), RTOL)


def test_a_leaf_that_is_used_twice_gets_the_sum() -> None:
    x = tensor(4)
    (x * x + x * 2 + x).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), 2 * x.numpy() + 3, RTOL)


def test_derivatives_to_third_order() -> None:
    x = ndl.Tensor(np.array([1.5, -2.0, 0.5]))
    (x**4).sum().backward()
    first = x.grad
    first.backward()
    second = x.grad
    second.backward()
    v = np.array([1.5, -2.0, 0.5])
    np.testing.assert_allclose(first.numpy(), 4 * v**3, RTOL)
    np.testing.assert_allclose(second.numpy(), 12 * v**2, RTOL)
    np.testing.assert_allclose(x.grad.numpy(), 24 * v, 4 * RTOL)


def test_a_function_of_a_gradient_is_differentiated() -> None:
    x = tensor(4, seed=3)
    (x**3).sum().backward()
    (x.grad * x.grad * 0.5).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), 18 * x.numpy() ** 3, 10 * RTOL)


def test_gradients_are_nodes() -> None:
    x = tensor(2)
    (x * x).sum().backward()
    assert x.grad.op is not None and x.grad.requires_grad
    assert any(leaf is x for leaf in ndl.autograd.find_topo_sort([x.grad]))


def test_gradient_as_tuple_of_a_node() -> None:
    a, b = tensor(2, 3, seed=1), tensor(3, 2, seed=2)
    out, g = ndl.matmul(a, b), tensor(2, 2, seed=3)
    da, db = out.op.gradient_as_tuple(g, out)
    np.testing.assert_allclose(da.numpy(), g.numpy() @ b.numpy().T, 10 * RTOL, 1e-6)
    np.testing.assert_allclose(db.numpy(), a.numpy().T @ g.numpy(), 10 * RTOL, 1e-6)


def test_gradient_as_tuple_can_be_differentiated() -> None:
    x, g = tensor(3, seed=1), tensor(3, seed=2)
    out = ndl.exp(x * 2)
    (adjoint,) = out.op.gradient_as_tuple(g, out)
    adjoint.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), 2 * np.exp(2 * x.numpy()) * g.numpy(), 10 * RTOL)


def test_integers_have_gradients() -> None:
    x = ndl.Tensor([3, 4])
    (x * x).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [6, 8])


def test_the_two_ways_back_agree() -> None:
    """The walk over nodes and nir's walk over what was recorded."""

    def loss(a: Any, b: Any) -> Any:
        h = ndl.relu(a @ b) + ndl.broadcast_to(b.sum(0).reshape((1, 3)), (4, 3))
        return (ndl.logsumexp(h, axes=1) * 2).sum()

    found = []
    for walk in (False, True):
        a, b = tensor(4, 3, seed=1), tensor(3, 3, seed=2)
        y = loss(a, b)
        order, one = ndl.autograd.find_topo_sort([y]), autograd.ones_like(y)
        if walk:
            ndl.lowering.walk(y, one, order)
        else:
            assert ndl.lowering.backward(y, one, order)
        found.append([a.grad.numpy(), b.grad.numpy()])
    for x, y in zip(*found, strict=True):
        np.testing.assert_allclose(x, y, 10 * RTOL, 1e-6)


# ---- data ----------------------------------------------------------------------------------------


def test_writes_to_a_leaf_are_seen_by_the_next_call() -> None:
    x = tensor(2, 3)
    before = x.numpy()
    assert (x * 1).numpy().tolist() == before.tolist()
    x.realize_cached_data().flat[4] += 1.0
    expected = before.copy()
    expected[1, 1] += 1
    np.testing.assert_allclose((x * 1).numpy(), expected, 1e-6)
    held = x.cached_data
    held.flat[0] += 2.0
    expected[0, 0] += 2
    np.testing.assert_allclose((x * 1).numpy(), expected, 1e-6)
    np.testing.assert_allclose(x.numpy(), expected, 1e-6)


def test_gradients_see_a_leaf_that_changed() -> None:
    x, w = tensor(3, seed=1), tensor(3, seed=2)
    y = (x * w).sum()
    w.realize_cached_data().flat[0] += 5.0
    y.backward()
    np.testing.assert_allclose(x.grad.numpy(), w.numpy(), 1e-6)


def test_data_shares_the_buffer_and_takes_no_part_in_gradients() -> None:
    x = tensor(3)
    d = x.data
    assert not d.requires_grad and d.is_leaf()
    d.realize_cached_data().flat[1] += 1.0
    np.testing.assert_array_equal(x.numpy(), d.numpy())


def test_assigning_data_swaps_the_buffer_to_any_shape() -> None:
    x = ndl.Tensor(np.zeros((1, 5), np.float32))
    x.data = ndl.Tensor(np.ones(5, np.float32))
    assert x.shape == (5,) and x.requires_grad
    with pytest.raises(AssertionError):
        x.data = np.ones(5)


def test_a_tensor_of_a_tensor_shares_and_a_tensor_of_an_array_copies() -> None:
    array = np.ones(3, np.float32)
    x = ndl.Tensor(array)
    array[0] = 9
    assert x.numpy().tolist() == [1, 1, 1]
    y = ndl.Tensor(x)
    y.realize_cached_data().flat[0] += 1.0
    assert x.numpy().tolist() == [2, 1, 1]


def test_numpy_is_a_copy() -> None:
    x = tensor(3)
    x.numpy()[:] = 0
    assert (x.numpy() != 0).all()


def test_dtypes_are_those_of_the_personality() -> None:
    if IS_NUMPY:
        assert ndl.Tensor([1, 2]).dtype == np.int64
        assert ndl.Tensor([1.0]).dtype == np.float64
        assert ndl.Tensor([1.0], dtype="float32").dtype == np.float32
        assert (ndl.Tensor([1], dtype=np.float32) * 2.5).dtype == np.float32
        assert isinstance(ndl.Tensor([1.0]).cached_data, np.ndarray)
    else:
        assert ndl.Tensor([1, 2]).dtype == "float32"
        assert isinstance(ndl.Tensor([1.0]).cached_data, ndl.NDArray)
    assert str(ndl.Tensor([1.0]).device) == ("needle.cpu()" if IS_NUMPY else "cpu_numpy()")


def test_lazy_mode_puts_off_cached_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autograd, "LAZY_MODE", True)
    x = tensor(3)
    y = x * 2
    assert y.cached_data is None
    np.testing.assert_allclose(y.numpy(), 2 * x.numpy(), 1e-6)
    assert y.cached_data is not None
    assert len(list(ops.split(x, 0))) == 3


# ---- tuples --------------------------------------------------------------------------------------


def test_tuples() -> None:
    a, b = tensor(3, seed=1), tensor(3, seed=2)
    t = ndl.make_tuple(a, b)
    assert len(t) == 2 and t[0] is a and t.tuple() == (a, b)
    both = t + ndl.make_tuple(b, b)
    assert isinstance(both, ndl.TensorTuple)
    np.testing.assert_allclose(both[0].numpy(), a.numpy() + b.numpy(), 1e-6)
    parts = ops.split(ops.stack([a, b], 0), 0)
    assert [p.shape for p in parts] == [(3,), (3,)]
    (parts[0] * parts[1] + parts[1]).sum().backward()
    np.testing.assert_allclose(a.grad.numpy(), b.numpy(), 1e-6)
    np.testing.assert_allclose(b.grad.numpy(), a.numpy() + 1, 1e-6)


def test_fused_add_scalars() -> None:
    x = tensor(3)
    a, b = ops.fused_add_scalars(x, 2.0, 5.0)
    np.testing.assert_allclose(a.numpy(), x.numpy() + 2, 1e-6)
    np.testing.assert_allclose(b.numpy(), x.numpy() + 5, 1e-6)
    (a * 2 + b * 3).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), np.full(3, 5.0), 1e-6)


# ---- ops of the user's own -----------------------------------------------------------------------


class Cube(ndl.TensorOp):
    def compute(self, a: Any) -> Any:
        return a * a * a

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return out_grad * 3 * node.inputs[0] ** 2


class StraightThrough(ndl.TensorOp):
    """Its gradient is not that of its value: the user's word counts."""

    def compute(self, a: Any) -> Any:
        return a * 0

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return (out_grad * 7,)


class SumAndDifference(ndl.TensorTupleOp):
    def compute(self, a: Any, b: Any) -> Any:
        return a + b, a - b

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return out_grad[0] + out_grad[1], out_grad[0] - out_grad[1]


def test_an_op_of_the_users() -> None:
    x = tensor(4, seed=5)
    y = (Cube()(ndl.exp(x)) * 2).sum()
    assert kinds(y)[2] == "Cube"
    y.backward()
    np.testing.assert_allclose(y.numpy().reshape(()), 2 * np.exp(3 * x.numpy()).sum(), 1e-5)
    np.testing.assert_allclose(x.grad.numpy(), 6 * np.exp(3 * x.numpy()), 1e-5)


def test_the_users_gradient_counts() -> None:
    x = tensor(4)
    (StraightThrough()(x * 2) + x).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), np.full(4, 15.0), 1e-6)


def test_a_tuple_op_of_the_users() -> None:
    a, b = tensor(3, seed=1), tensor(3, seed=2)
    plus, minus = SumAndDifference()(a, b)
    (plus * 2 + minus * 3).sum().backward()
    np.testing.assert_allclose(plus.numpy(), a.numpy() + b.numpy(), 1e-6)
    np.testing.assert_allclose(a.grad.numpy(), np.full(3, 5.0), 1e-6)
    np.testing.assert_allclose(b.grad.numpy(), np.full(3, -1.0), 1e-6)


def test_a_subclass_may_change_a_gradient() -> None:
    class Leaky(ops.ReLU):
        def gradient(self, out_grad: Any, node: Any) -> Any:
            return out_grad * 4

    x = tensor(4)
    Leaky()(x).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), np.full(4, 4.0), 1e-6)


@pytest.mark.skipif(IS_NUMPY, reason="the arrays of np have no symbolic values")
def test_an_op_of_the_users_is_traced() -> None:
    class Model(ndl.nn.Module):
        def forward(self, x: Any) -> Any:
            return Cube()(x)

    graph = nir.trace(Model(), "f32[B,4]")
    assert [op.name for op in graph.nodes] == ["mul", "mul"]


# ---- what runs -----------------------------------------------------------------------------------


def test_values_that_nobody_reads_do_not_run() -> None:
    before = nir.compile_count()
    x = tensor(17, 19)
    for _ in range(5):
        y = ndl.exp(x) @ x.transpose()
    assert y.shape == (17, 17)
    assert nir.compile_count() == before


def test_a_loop_that_never_looks_stays_bounded() -> None:
    x = tensor(3, requires_grad=False)
    first = x.numpy()
    for _ in range(1000):
        x = x * 1.001
        source = x.ref().source
        assert source is None or source.depth <= deferred._DEPTH_LIMIT + 1
    np.testing.assert_allclose(x.numpy(), first * 1.001**1000, 1e-3)


def test_a_step_seen_before_is_not_recorded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    w = tensor(6, 5)

    def step() -> np.ndarray:
        nonlocal w
        x = tensor(4, 6, seed=3)
        loss = (ndl.tanh(x @ w) ** 2).sum()
        loss.backward()
        w.data = w.data - w.grad.data * 0.1
        return loss.numpy()

    losses = [step() for _ in range(3)]

    def refuse(*_: Any) -> Any:
        raise AssertionError("recorded again")

    if not IS_NUMPY:
        monkeypatch.setattr(deferred, "_planned", refuse)
    programs = nir.compile_count()
    losses += [step() for _ in range(5)]
    assert nir.compile_count() == programs
    assert all(b < a for a, b in itertools.pairwise(losses))


def test_equal_structures_of_other_leaves_are_told_apart() -> None:
    a, b = tensor(3, seed=1), tensor(3, seed=2)
    for x, y in ((a, a), (a, b), (b, a), (b, b)):
        np.testing.assert_allclose((x * y + x).numpy(), x.numpy() * y.numpy() + x.numpy(), 1e-6)
    np.testing.assert_allclose((a * 2).numpy(), a.numpy() * 2, 1e-6)
    np.testing.assert_allclose((a * 3).numpy(), a.numpy() * 3, 1e-6)
