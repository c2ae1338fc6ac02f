"""Optimisers, clipping and schedules: beside PyTorch, compiled, saved and loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import nir
from nir import nn, optim
from nir.errors import NirError
from tests.peers import torch_or_skip

SHAPES = ((3, 4), (4,), (2, 1, 3))


def arrays(seed: int, dtype: str = "float32") -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(s).astype(dtype) for s in SHAPES]


def parameters(dtype: str = "float32") -> list[nn.Parameter]:
    return [nn.Parameter(a) for a in arrays(0, dtype)]


def set_gradients(params: list[Any], seed: int, make: Callable[[np.ndarray], Any]) -> None:
    for p, g in zip(params, arrays(seed), strict=True):
        p.grad = make(g)


OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {"lr": 0.1}),
    "sgd_momentum": ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    "sgd_nesterov": ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "adam": ("Adam", {"lr": 0.01}),
    "adam_decay": ("Adam", {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-5, "weight_decay": 0.1}),
    "adamw": ("AdamW", {"lr": 0.01, "weight_decay": 0.1}),
    "adam_no_average": ("Adam", {"lr": 0.01, "betas": (0.0, 0.9)}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_beside_torch(name: str) -> None:
    torch = torch_or_skip()
    kind, options = OPTIMIZERS[name]
    ours = parameters()
    theirs = [torch.nn.Parameter(torch.from_numpy(a)) for a in arrays(0)]
    a, b = getattr(optim, kind)(ours, **options), getattr(torch.optim, kind)(theirs, **options)
    for step in range(1, 8):
        set_gradients(ours, step, nir.tensor)
        set_gradients(theirs, step, torch.from_numpy)
        if step == 5:  # as a schedule does
            a.param_groups[0]["lr"] = b.param_groups[0]["lr"] = 0.003
        a.step()
        b.step()
        for p, q in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(p.numpy(), q.detach().numpy(), rtol=2e-6, atol=2e-7)


def test_groups_have_their_own_options() -> None:
    first, second, third = parameters()
    groups = [{"params": [first], "lr": 1.0}, {"params": [second, third]}]
    optimizer = optim.SGD(groups, lr=0.5)
    before = [p.numpy().copy() for p in (first, second, third)]
    for p in (first, second, third):
        p.grad = nir.ones(*p.shape)
    optimizer.step()
    for p, old, lr in zip((first, second, third), before, (1.0, 0.5, 0.5), strict=True):
        np.testing.assert_allclose(p.numpy(), old - lr, rtol=1e-6)


def test_parameter_without_gradient_stays() -> None:
    params = parameters()
    before = [p.numpy().copy() for p in params]
    optimizer = optim.Adam(params, lr=0.1)
    params[0].grad = nir.ones(*params[0].shape)
    optimizer.step()
    assert (params[0].numpy() != before[0]).all()
    np.testing.assert_array_equal(params[1].numpy(), before[1])
    optimizer.zero_grad()
    assert params[0].grad is None


def test_double_precision() -> None:
    params = parameters("float64")
    optimizer = optim.SGD(params, lr=0.1)
    before = params[0].numpy().copy()
    params[0].grad = nir.tensor(np.ones(SHAPES[0]))
    optimizer.step()
    np.testing.assert_allclose(params[0].numpy(), before - 0.1, rtol=1e-15)


def test_small_first_steps_lose_no_digits() -> None:
    # 1 - beta2 in f32 has 5 digits left of 7; Adam's first step is lr whatever the gradient is.
    p = nn.Parameter(np.zeros(4, np.float32))
    optimizer = optim.Adam([p], lr=1.0, betas=(0.9, 0.99999), eps=0.0)
    p.grad = nir.tensor(np.array([1e-3, 1, -1e3, 5], np.float32))
    optimizer.step()
    np.testing.assert_allclose(abs(p.numpy()), 1, rtol=5e-7)


def test_refusals() -> None:
    params = parameters()
    with pytest.raises(NirError, match="expected parameters, got none"):
        optim.SGD([])
    with pytest.raises(NirError, match="occurs twice"):
        optim.SGD([params[0], params[0]])
    with pytest.raises(NirError, match=r"lr >= 0, got -1"):
        optim.Adam(params, lr=-1)
    with pytest.raises(NirError, match=r"betas in \[0, 1\)"):
        optim.Adam(params, betas=(0.9, 1.0))
    with pytest.raises(NirError, match="nesterov needs a positive momentum"):
        optim.SGD(params, nesterov=True)
    with pytest.raises(NirError, match="expected float Tensors"):
        optim.SGD([nir.tensor([1, 2])])


# ---- compiled ------------------------------------------------------------------------------------


def quadratic(params: list[nn.Parameter], target: nir.Tensor) -> nir.Tensor:
    return sum(((p - target) ** 2).sum() for p in params)  # type: ignore[return-value]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_compiled_step_equals_eager(name: str) -> None:
    kind, options = OPTIMIZERS[name]

    def run(compiled: bool) -> list[np.ndarray]:
        model = nn.Module()
        model.a, model.b, model.c = parameters()
        params = list(model.parameters())
        optimizer = getattr(optim, kind)(params, **options)

        def step(target: nir.Tensor) -> nir.Tensor:
            optimizer.zero_grad()
            loss = quadratic(params, target)
            loss.backward()
            optimizer.step()
            return loss.detach()

        fn = nir.jit(step, state=[model, optimizer]) if compiled else step
        losses = [fn(nir.tensor(np.float32(t))).numpy() for t in (0.5, 0.25, 0.0)]
        return [*losses, *(p.numpy() for p in params)]

    for a, b in zip(run(True), run(False), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_a_schedule_never_compiles_again() -> None:
    model = nn.Linear(3, 2)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    schedule = optim.StepLR(optimizer, 1, 0.5)

    @nir.jit(state=[model, optimizer], specs=("f32[B,3]",))
    def step(x: nir.Tensor) -> nir.Tensor:
        optimizer.zero_grad()
        loss = model(x).sum()
        loss.backward()
        optimizer.step()
        return loss.detach()

    moves = []
    for rows in (4, 4, 1):
        before = model.bias.numpy().copy()
        step(nir.ones(rows, 3))
        moves.append((before - model.bias.numpy())[0] / rows)
        schedule.step()
    np.testing.assert_allclose(moves, [0.1, 0.05, 0.025], rtol=1e-5)
    assert step.compiles == 1


# ---- state ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_dict_continues(name: str) -> None:
    kind, options = OPTIMIZERS[name]

    def steps(params: list[nn.Parameter], optimizer: optim.Optimizer, seeds: range) -> None:
        for seed in seeds:
            set_gradients(params, seed, nir.tensor)
            optimizer.step()

    a = parameters()
    first = getattr(optim, kind)(a, **options)
    steps(a, first, range(3))
    b = [nn.Parameter(p.numpy().copy()) for p in a]
    second = getattr(optim, kind)(b, **{**options, "lr": 123.0})
    second.load_state_dict(first.state_dict())
    for params, optimizer in ((a, first), (b, second)):
        steps(params, optimizer, range(3, 6))
    for p, q in zip(a, b, strict=True):
        np.testing.assert_array_equal(p.numpy(), q.numpy())


def test_state_of_torch_loads() -> None:
    torch = torch_or_skip()
    theirs = [torch.nn.Parameter(torch.from_numpy(a)) for a in arrays(0)]
    b = torch.optim.Adam(theirs, lr=0.02, weight_decay=0.1)
    for step in range(3):
        set_gradients(theirs, step, torch.from_numpy)
        b.step()
    ours = [nn.Parameter(p.detach().numpy().copy()) for p in theirs]
    a = optim.Adam(ours, lr=0.5)
    a.load_state_dict(b.state_dict())
    set_gradients(ours, 7, nir.tensor)
    set_gradients(theirs, 7, torch.from_numpy)
    a.step()
    b.step()
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.numpy(), q.detach().numpy(), rtol=2e-6, atol=2e-7)


def test_state_of_another_shape_is_refused() -> None:
    small = optim.Adam([nn.Parameter(np.zeros(2, np.float32))])
    large = optim.Adam([nn.Parameter(np.zeros(3, np.float32))])
    with pytest.raises(NirError, match=r"exp_avg of shape \(2,\), got \(3,\)"):
        small.load_state_dict(large.state_dict())
    with pytest.raises(NirError, match=r"groups of \[1\] parameters, got \[3\]"):
        small.load_state_dict(optim.Adam(parameters()).state_dict())


# ---- clipping ------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, float("inf")])
@pytest.mark.parametrize("max_norm", [0.5, 1e3])
def test_clip_grad_norm(norm_type: float, max_norm: float) -> None:
    torch = torch_or_skip()
    ours = parameters()
    theirs = [torch.nn.Parameter(torch.from_numpy(a)) for a in arrays(0)]
    set_gradients(ours, 1, nir.tensor)
    set_gradients(theirs, 1, torch.from_numpy)
    a = optim.clip_grad_norm_(ours, max_norm, norm_type)
    b = torch.nn.utils.clip_grad_norm_(theirs, max_norm, norm_type)
    np.testing.assert_allclose(a.item(), b.item(), rtol=1e-5)
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-5)


def test_clip_grad_value() -> None:
    params = parameters()
    set_gradients(params, 1, nir.tensor)
    optim.clip_grad_value_(params, 0.3)
    for p, g in zip(params, arrays(1), strict=True):
        np.testing.assert_array_equal(p.grad.numpy(), g.clip(-np.float32(0.3), np.float32(0.3)))
    with pytest.raises(NirError, match="a parameter that has a gradient"):
        optim.clip_grad_norm_(parameters(), 1.0)


# ---- schedules -----------------------------------------------------------------------------------

SCHEDULES: dict[str, tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]] = {
    "step": (lambda o: optim.StepLR(o, 3, 0.3), lambda s, o: s.StepLR(o, 3, 0.3)),
    "cosine": (
        lambda o: optim.CosineAnnealingLR(o, 10, 0.01),
        lambda s, o: s.CosineAnnealingLR(o, 10, 0.01),
    ),
    "lambda": (
        lambda o: optim.LambdaLR(o, lambda e: 1 / (e + 1)),
        lambda s, o: s.LambdaLR(o, lambda e: 1 / (e + 1)),
    ),
    "linear": (lambda o: optim.LinearLR(o, 0.1, 1.0, 4), lambda s, o: s.LinearLR(o, 0.1, 1.0, 4)),
    "warmup": (
        lambda o: optim.SequentialLR(
            o, [optim.LinearLR(o, 0.1, 1.0, 4), optim.CosineAnnealingLR(o, 6)], [4]
        ),
        lambda s, o: s.SequentialLR(
            o, [s.LinearLR(o, 0.1, 1.0, 4), s.CosineAnnealingLR(o, 6)], [4]
        ),
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_beside_torch(name: str) -> None:
    torch = torch_or_skip()
    ours, theirs = SCHEDULES[name]
    a = optim.SGD(parameters(), lr=0.2)
    b = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.2)
    s, t = ours(a), theirs(torch.optim.lr_scheduler, b)
    for _ in range(10):
        assert a.param_groups[0]["lr"].item() == pytest.approx(b.param_groups[0]["lr"], rel=1e-6)
        assert s.get_last_lr() == pytest.approx(t.get_last_lr(), rel=1e-6)
        b.step()  # PyTorch warns when a schedule steps before its optimiser
        s.step()
        t.step()


def test_schedule_state() -> None:
    optimizer = optim.SGD(parameters(), lr=0.2)
    schedule = optim.CosineAnnealingLR(optimizer, 10)
    for _ in range(4):
        schedule.step()
    other = optim.SGD(parameters(), lr=7.0)
    restored = optim.CosineAnnealingLR(other, 10)
    restored.load_state_dict(schedule.state_dict())
    assert other.param_groups[0]["lr"].item() == optimizer.param_groups[0]["lr"].item()
    schedule.step()
    restored.step()
    assert restored.get_last_lr() == schedule.get_last_lr()


def test_milestones_are_checked() -> None:
    optimizer = optim.SGD(parameters())
    parts = [optim.LinearLR(optimizer), optim.StepLR(optimizer, 2)]
    with pytest.raises(NirError, match=r"1 ascending milestones, got \[2, 1\]"):
        optim.SequentialLR(optimizer, parts, [2, 1])
