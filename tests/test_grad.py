"""Derivatives: backward, grad, value_and_grad, vjp, jacobian; eager, traced, nested."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import nir
from nir.errors import NotDifferentiable, ShapeError
from tests.peers import torch_or_skip

X = np.random.default_rng(0).standard_normal((3, 4))


@pytest.fixture(autouse=True, params=["interp", "cpu"])
def target(request: pytest.FixtureRequest) -> Iterator[str]:
    nir.set_default_target(request.param)
    yield request.param
    nir.set_default_target("cpu")


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "polynomial": lambda x: (x**3 - 2 * x * x + x).sum(),
    "softmax": lambda x: (x.softmax(1) * x).sum(),
    "matmul": lambda x: (x @ x.mT).exp().sum(),
    "index": lambda x: (x[1:, ::2] * x[0, 1]).sum() + x[-1, -1],
    "extreme": lambda x: x.max(1)[0].sum() + x.amin(),
    "broadcast": lambda x: (x - x.mean(0, keepdim=True)).square().mean(),
    "moments": lambda x: x.var(0).sum() * x.std(),
    "shapes": lambda x: (x.reshape(4, 3).flip(0).mT * x.unsqueeze(0)[0]).tanh().sum(),
    "clamp": lambda x: x.clamp(-0.5, 0.5).sum() + x.relu().logsumexp(0).sum(),
    "take": lambda x: x.index_select(0, _index(x)).sigmoid().sum(),
}


def _index(x: Any) -> Any:
    if isinstance(x, nir.Tensor):
        return nir.tensor(np.array([0, 2, 0]))
    return torch_or_skip().tensor([0, 2, 0])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_beside_torch(name: str) -> None:
    torch = torch_or_skip()
    fn = FUNCTIONS[name]
    theirs = torch.tensor(X, requires_grad=True)
    value = fn(theirs)
    (first,) = torch.autograd.grad(value, theirs, create_graph=True)
    second = None
    if first.requires_grad:
        (second,) = torch.autograd.grad((first * first).sum(), theirs, allow_unused=True)
    ours = nir.tensor(X, requires_grad=True)
    out = fn(ours)
    out.backward()
    assert ours.grad is not None
    np.testing.assert_allclose(out.item(), value.item(), rtol=1e-12)
    np.testing.assert_allclose(ours.grad.numpy(), first.detach().numpy(), rtol=1e-9, atol=1e-12)
    hvp = nir.grad(lambda x: (nir.grad(fn)(x) ** 2).sum())(nir.tensor(X)).numpy()
    expected = np.zeros_like(X) if second is None else second.numpy()
    np.testing.assert_allclose(hvp, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_traced_and_jitted(name: str, target: str) -> None:
    fn = FUNCTIONS[name]
    if name == "take":
        index = nir.tensor(np.array([0, 2, 0]))
        fn = lambda x: x.index_select(0, nir.constant(index)).sigmoid().sum()  # noqa: E731
    x = nir.tensor(X)
    eager = nir.grad(fn)(x).numpy()
    np.testing.assert_allclose(nir.jit(nir.grad(fn))(x).numpy(), eager, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(nir.grad(nir.jit(fn))(x).numpy(), eager, rtol=1e-12, atol=1e-14)


def test_to_any_order() -> None:
    def sine(x: nir.Tensor) -> nir.Tensor:
        return x.sin()

    fn, x = sine, nir.tensor(np.array(0.7))
    for expected in (np.cos(0.7), -np.sin(0.7), -np.cos(0.7), np.sin(0.7)):
        fn = nir.grad(fn)
        np.testing.assert_allclose(fn(x).item(), expected, rtol=1e-12)
        np.testing.assert_allclose(nir.jit(fn)(x).item(), expected, rtol=1e-12)


def test_value_and_grad() -> None:
    def loss(params: dict[str, nir.Tensor], x: nir.Tensor) -> tuple[nir.Tensor, dict[str, Any]]:
        y = x @ params["w"] + params["b"]
        return (y * y).mean(), {"y": y, "name": "aux"}

    params = {"w": nir.tensor(X[0]), "b": nir.tensor(np.array(0.5))}
    (value, aux), grads = nir.value_and_grad(loss, has_aux=True)(params, nir.tensor(X))
    y = X @ X[0] + 0.5
    np.testing.assert_allclose(value.item(), (y * y).mean())
    np.testing.assert_allclose(aux["y"].numpy(), y)
    assert aux["name"] == "aux" and not aux["y"].requires_grad and not value.requires_grad
    np.testing.assert_allclose(grads["w"].numpy(), 2 * y @ X / 3)
    np.testing.assert_allclose(grads["b"].item(), 2 * y.mean())
    grad, aux = nir.grad(loss, has_aux=True)(params, nir.tensor(X))
    np.testing.assert_allclose(grad["b"].item(), 2 * y.mean())


def test_several_arguments() -> None:
    fn = lambda a, b, c: (a * b).sum() + 0 * c.sum()  # noqa: E731
    a, b, c = nir.ones(2), nir.full((2,), 3.0), nir.ones(4)
    da, dc = nir.grad(fn, argnums=(0, 2))(a, b, c)
    assert (da.tolist(), dc.tolist()) == ([3, 3], [0] * 4)
    _, unused = nir.grad(lambda a, b: a.sum(), argnums=(0, 1))(a, b)
    assert unused.tolist() == [0, 0]


def test_gradients_flow_through_grad_to_the_outside() -> None:
    w = nir.tensor(np.array([1.0, 2.0]), requires_grad=True)
    inner = nir.grad(lambda x: (x**3 * w).sum())(w)  # 3 x^2 w at x = w
    assert inner.requires_grad
    inner.sum().backward()
    assert w.grad is not None
    np.testing.assert_allclose(w.grad.numpy(), 9 * np.array([1.0, 4.0]))  # d 3 w^3


def test_results_of_grad_keep_no_history() -> None:
    w = nir.ones(3)
    for _ in range(3):
        w = w - 0.1 * nir.grad(lambda x: (x * x).sum())(w)
    assert not w.requires_grad
    w.numpy()
    assert w._cell.record is None


def test_vjp_and_jacobian() -> None:
    x = nir.tensor(X[0])
    out, back = nir.vjp(lambda x: (x * x, x.sum()), x)
    (ct,) = back((nir.tensor(X[1]), nir.tensor(np.array(2.0))))
    np.testing.assert_allclose(out[0].numpy(), X[0] ** 2)
    np.testing.assert_allclose(ct.numpy(), 2 * X[0] * X[1] + 2)
    matrix = nir.tensor(X)
    jac = nir.jacobian(lambda v: (matrix @ v).exp())(x).numpy()
    np.testing.assert_allclose(jac, np.exp(X @ X[0])[:, None] * X)


# ---- backward ------------------------------------------------------------------------------------


def test_backward_accumulates_and_stops() -> None:
    w = nir.ones(3, requires_grad=True)
    frozen = nir.full((3,), 2.0)
    for _ in range(2):
        (w * frozen).sum().backward()
    assert w.grad is not None and w.grad.tolist() == [4, 4, 4]
    assert frozen.grad is None
    w.grad = None
    (w.detach() * w).sum().backward()
    assert w.grad is not None and w.grad.tolist() == [1, 1, 1]
    with nir.no_grad():
        assert not (w * 2).requires_grad
        with nir.enable_grad():
            assert (w * 2).requires_grad
    assert nir.stop_gradient(w * 2).requires_grad is False


def test_backward_after_looking() -> None:
    w = nir.tensor(np.array([1.0, 2.0]), requires_grad=True)
    hidden = w.exp()
    loss = (hidden * hidden).sum()
    assert hidden.tolist() and loss.item()
    loss.backward()
    assert w.grad is not None
    np.testing.assert_allclose(w.grad.numpy(), 2 * np.exp(2 * np.array([1.0, 2.0])))


def test_backward_with_a_gradient_and_twice() -> None:
    w = nir.ones(2, requires_grad=True)
    y = w * 3
    y.backward(nir.tensor([1.0, 10.0]), retain_graph=True)
    y.backward(nir.tensor([1.0, 1.0]))
    assert w.grad is not None and w.grad.tolist() == [6, 33]
    with pytest.raises(NotDifferentiable, match="retain_graph=True"):
        y.backward(nir.ones(2))


def test_a_rebound_leaf_gets_the_gradient_of_its_old_value() -> None:
    w = nir.full((2,), 3.0, requires_grad=True)
    loss = (w * w).sum()
    w.copy_(nir.zeros(2))
    loss.backward()
    assert w.grad is not None and w.grad.tolist() == [6, 6]
    assert w.requires_grad and w.is_leaf and w.tolist() == [0, 0]


def test_in_place_and_gradients() -> None:
    w = nir.ones(2, requires_grad=True)
    y = w * 2
    y.mul_(3)
    y.sum().backward()
    assert w.grad is not None and w.grad.tolist() == [6, 6]
    with pytest.raises(NotDifferentiable, match="use nir"):
        w.add_(1)
    with nir.no_grad():
        w.add_(1)
    assert w.requires_grad and w.tolist() == [2, 2]


def test_flags_of_leaves() -> None:
    x = nir.ones(2)
    y = x * 2
    y.requires_grad_()
    assert y.is_leaf and y.requires_grad
    (y * 5).sum().backward()
    assert y.grad is not None and y.grad.tolist() == [5, 5]
    with pytest.raises(NotDifferentiable, match="expected a leaf"):
        (y * 2).requires_grad_(False)
    with pytest.raises(ShapeError, match=r"grad: expected f32\[2\], got f32\[3\]"):
        y.grad = nir.ones(3)
    y.data = nir.ones(3)
    assert y.shape == (3,) and y.requires_grad


# ---- control -------------------------------------------------------------------------------------


def test_custom_vjp() -> None:
    clip = nir.custom_vjp(lambda x: x * 1.0, lambda operands, results, cts: cts[0].clamp(-1, 1))
    x = nir.tensor(np.array([0.5, 20.0]))
    assert nir.grad(lambda x: (clip(x) ** 2).sum())(x).tolist() == [1.0, 1.0]
    with pytest.raises(nir.errors.TraceError, match="neither argument nor state"):
        nir.custom_vjp(lambda y: y * x, lambda o, r, c: c[0])(x)


def test_host_call_with_a_gradient() -> None:
    calls = []

    def sort(a: np.ndarray) -> np.ndarray:
        calls.append(a)
        return np.sort(a)

    fn = nir.custom_vjp(lambda x: nir.host_call(sort, "f64[3]", x), lambda o, r, c: c[0] * 2)
    x = nir.tensor(np.array([3.0, 1.0, 2.0]), requires_grad=True)
    y = fn(x)
    assert y.tolist() == [1, 2, 3] and len(calls) == 1
    y.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [2, 2, 2]


class TestRegions:
    @pytest.fixture(autouse=True)
    def interpreted(self) -> Iterator[None]:
        """The executor's forms of cond and scan are yet to come."""
        nir.set_default_target("interp")
        yield

    def test_cond_and_its_gradient(self) -> None:
        w = nir.tensor(np.array([2.0, 3.0]))

        def fn(flag: nir.Tensor, x: nir.Tensor) -> nir.Tensor:
            # w is read from around the bodies.
            return nir.cond(flag, lambda x: (x * w).sum(), lambda x: (x * x).sum(), x)

        x = nir.tensor(np.array([5.0, 7.0]))
        for flag, value, slope in ((True, 31, [2, 3]), (False, 74, [10, 14])):
            assert fn(nir.tensor(flag), x).item() == value
            assert nir.grad(lambda x: fn(nir.tensor(flag), x))(x).tolist() == slope  # noqa: B023

    def test_scan_and_its_gradient(self) -> None:
        torch = torch_or_skip()
        rng = np.random.default_rng(0)
        w, xs, h = rng.standard_normal((3, 3)), rng.standard_normal((5, 3)), np.zeros(3)

        def loss(w: nir.Tensor, xs: nir.Tensor) -> nir.Tensor:
            def step(h: nir.Tensor, x: nir.Tensor) -> tuple[nir.Tensor, nir.Tensor]:
                h = (h @ w + x).tanh()
                return h, h * x

            last, ys = nir.scan(step, nir.tensor(h), xs)
            return (ys**2).sum() + last.sum()

        tw, txs = (torch.tensor(a, requires_grad=True) for a in (w, xs))
        th, total = torch.tensor(h), torch.tensor(0.0)
        for x in txs:
            th = torch.tanh(th @ tw + x)
            total = total + ((th * x) ** 2).sum()
        (total + th.sum()).backward()
        dw, dxs = nir.grad(loss, argnums=(0, 1))(nir.tensor(w), nir.tensor(xs))
        np.testing.assert_allclose(dw.numpy(), tw.grad.numpy(), rtol=1e-9)
        np.testing.assert_allclose(dxs.numpy(), txs.grad.numpy(), rtol=1e-9)

    def test_trees_lengths_and_reverse(self) -> None:
        def step(c: dict[str, nir.Tensor], _: Any) -> tuple[dict[str, nir.Tensor], tuple[Any, ...]]:
            return {"n": c["n"] + 1}, (c["n"], c["n"] * 2)

        last, (ys, zs) = nir.scan(step, {"n": nir.tensor(0)}, length=4)
        assert (last["n"].item(), ys.tolist(), zs.tolist()) == (4, [0, 1, 2, 3], [0, 2, 4, 6])
        total, sums = nir.scan(
            lambda c, x: (c + x, c + x), nir.zeros(()), nir.ones(3), reverse=True
        )
        assert (total.item(), sums.tolist()) == (3, [3, 2, 1])

    def test_detach_inside_a_region_stops_gradients(self) -> None:
        def fn(x: nir.Tensor) -> nir.Tensor:
            body = lambda x: (x * x.detach()).sum()  # noqa: E731
            return nir.cond(nir.tensor(True), body, lambda x: x.sum(), x)

        assert nir.grad(fn)(nir.tensor(np.array([3.0, 4.0]))).tolist() == [3, 4]

        def untracked(x: nir.Tensor) -> nir.Tensor:
            def body(x: nir.Tensor) -> nir.Tensor:
                with nir.no_grad():
                    y = x * 10
                return (x * y).sum()

            return nir.cond(nir.tensor(True), body, lambda x: x.sum(), x)

        assert nir.grad(untracked)(nir.tensor(np.array([3.0]))).tolist() == [30]
