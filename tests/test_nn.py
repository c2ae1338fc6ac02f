"""Modules: walks, state, modes, initialisation, dropout; nothing here needs PyTorch."""

from __future__ import annotations

import math

import numpy as np
import pytest

import nir
from nir import nn
from nir.errors import DTypeError, NirError, ShapeError
from nir.ir.types import DType
from nir.nn import functional as F


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.rest = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 2)])
        self.scale = nn.Parameter(nir.ones(2))

    def forward(self, x: nir.Tensor) -> nir.Tensor:
        x = self.norm(self.first(x))
        for layer in self.rest:
            x = layer(x)
        return x * self.scale


def test_named_walks() -> None:
    net = Net()
    assert [n for n, _ in net.named_modules()] == ["", "first", "norm", "rest", "rest.0", "rest.1"]
    assert [n for n, _ in net.named_children()] == ["first", "norm", "rest"]
    assert sorted(n for n, _ in net.named_parameters()) == [
        "first.bias", "first.weight", "norm.bias", "norm.weight", "rest.0.bias",
        "rest.0.weight", "rest.1.bias", "rest.1.weight", "scale",
    ]  # fmt: skip
    assert [n for n, _ in net.named_buffers()] == [
        "norm.running_mean", "norm.running_var", "norm.num_batches_tracked",
    ]  # fmt: skip


def test_shared_module_and_parameter_count_once() -> None:
    layer = nn.Linear(3, 3)
    net = nn.Sequential(layer, nn.ReLU(), layer)
    assert len(list(net.parameters())) == 2
    tied = nn.Linear(3, 3)
    tied.weight = layer.weight
    assert len(list(nn.Sequential(layer, tied).parameters())) == 3


def test_sequential_and_module_list() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Identity())
    assert len(net) == 3 and isinstance(net[1], nn.ReLU) and isinstance(net[-1], nn.Identity)
    modules = nn.ModuleList([nn.ReLU()]).append(nn.Tanh())
    assert [type(m).__name__ for m in modules] == ["ReLU", "Tanh"]


def test_repr_nests() -> None:
    text = repr(nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.GELU(), nn.Dropout(0.1))))
    assert text == (
        "Sequential(\n"
        "  (0): Linear(2, 3, bias=True)\n"
        "  (1): Sequential(\n"
        "    (0): GELU(approximate='none')\n"
        "    (1): Dropout(p=0.1)\n"
        "  )\n"
        ")"
    )


def test_train_and_eval_reach_all_modules() -> None:
    net = Net().eval()
    assert not any(m.training for m in net.modules())
    assert all(m.training for m in net.train().modules())


def test_state_dict_round_trip() -> None:
    a, b = Net(), Net()
    a(nir.tensor(np.ones((5, 3), np.float32)))
    b.load_state_dict(a.state_dict())
    for name, value in a.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), b.state_dict()[name].numpy())
    assert b.norm.num_batches_tracked.item() == 1


def test_state_dict_is_not_changed_by_training() -> None:
    net = nn.Linear(2, 2)
    state = net.state_dict()
    before = state["weight"].numpy().copy()
    net.weight.copy_(net.weight.detach() + 1)
    np.testing.assert_array_equal(state["weight"].numpy(), before)


def test_load_state_dict_refuses_and_changes_nothing() -> None:
    net = nn.Linear(3, 2)
    before = net.weight.numpy().copy()
    good = {"weight": np.zeros((2, 3), np.float32), "bias": np.zeros(2, np.float32)}
    with pytest.raises(NirError, match=r"missing \['bias'\], unexpected \['b'\]"):
        net.load_state_dict({"weight": good["weight"], "b": good["bias"]})
    with pytest.raises(ShapeError, match=r"bias: expected shape \(2,\), got \(3,\)"):
        net.load_state_dict({**good, "bias": np.zeros(3)})
    np.testing.assert_array_equal(net.weight.numpy(), before)
    net.load_state_dict({"weight": good["weight"]}, strict=False)
    assert not net.weight.numpy().any()


def test_zero_grad_and_requires_grad() -> None:
    net = nn.Linear(3, 2)
    net(nir.tensor(np.ones((1, 3), np.float32))).sum().backward()
    assert net.weight.grad is not None
    net.zero_grad()
    assert net.weight.grad is None
    net.requires_grad_(False)
    assert not any(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("half", [nir.float16, nir.bfloat16], ids=str)
def test_a_model_trains_and_compiles_in_a_half_type(half: DType) -> None:
    nir.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.LayerNorm(16), nn.Linear(16, 4))
    x = nir.randn(5, 8)
    model(x).square().mean().backward()
    wide = {name: p.grad.numpy() for name, p in model.named_parameters()}
    model.to(half)
    assert {p.grad.dtype for p in model.parameters()} == {half}  # gradients follow
    for p in model.parameters():
        p.grad = None
    y = model(x.to(half))
    y.square().mean().backward()
    for name, p in model.named_parameters():
        assert p.grad.dtype is half
        np.testing.assert_allclose(p.grad.float().numpy(), wide[name], rtol=0.1, atol=0.03)
    compiled = nir.compile(model, nir.spec(f"{half}[B,8]"))(x.to(half))
    assert compiled.dtype is half
    np.testing.assert_allclose(compiled.float().numpy(), y.float().numpy(), rtol=0.02, atol=0.02)


def test_to_dtype_leaves_integers_alone() -> None:
    net = Net().to(nir.float64)
    assert net.first.weight.dtype == nir.float64
    assert net.norm.running_mean.dtype == nir.float64
    assert net.norm.num_batches_tracked.dtype == nir.int64
    assert net(nir.tensor(np.ones((2, 3)))).dtype == nir.float64
    assert all(isinstance(p, nn.Parameter) for p in net.parameters())


def test_apply_visits_children_first() -> None:
    seen: list[str] = []
    nn.Sequential(nn.ReLU(), nn.Tanh()).apply(lambda m: seen.append(type(m).__name__))
    assert seen == ["ReLU", "Tanh", "Sequential"]


def test_buffers_keep_their_identity() -> None:
    norm = nn.BatchNorm1d(3)
    mean = norm.running_mean
    norm(nir.tensor(np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)))
    assert norm.running_mean is mean
    assert mean.numpy().any()


def test_buffer_that_is_not_persistent() -> None:
    net = nn.Module()
    net.register_buffer("cache", nir.zeros(2), persistent=False)
    assert [n for n, _ in net.named_buffers()] == ["cache"]
    assert net.state_dict() == {}


# ---- dropout -------------------------------------------------------------------------------------


def test_dropout() -> None:
    drop = nn.Dropout(0.25, nir.Generator(0))
    x = nir.ones(100, 100)
    y = drop(x).numpy()
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    assert abs((y == 0).mean() - 0.25) < 0.02
    assert (drop(x).numpy() != y).any()
    drop.eval()
    assert (drop(x).numpy() == 1).all()


def test_dropout_masks_the_gradient() -> None:
    x = nir.ones(1000).requires_grad_()
    y = nn.Dropout(0.5, nir.Generator(0))(x)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), y.numpy())


def test_dropout_follows_its_generator() -> None:
    def mask(seed: int) -> np.ndarray:
        return nn.Dropout(0.5, nir.Generator(seed))(nir.ones(64)).numpy()

    np.testing.assert_array_equal(mask(1), mask(1))
    assert (mask(1) != mask(2)).any()


def test_dropout_extremes() -> None:
    assert not F.dropout(nir.ones(5), 1.0).numpy().any()
    assert F.dropout(nir.ones(5), 0.0).numpy().all()
    with pytest.raises(NirError, match=r"expected a probability, got 1\.5"):
        F.dropout(nir.ones(5), 1.5)


# ---- initialisers --------------------------------------------------------------------------------

FAN_IN, FAN_OUT = 20 * 9, 30 * 9
NORMAL = {
    "xavier_normal_": math.sqrt(2 / (FAN_IN + FAN_OUT)),
    "kaiming_normal_": math.sqrt(2 / FAN_IN),
}
UNIFORM = {
    "xavier_uniform_": math.sqrt(6 / (FAN_IN + FAN_OUT)),
    "kaiming_uniform_": math.sqrt(6 / FAN_IN),
}


@pytest.mark.parametrize("name", [*NORMAL, *UNIFORM])
def test_initialiser(name: str) -> None:
    nir.manual_seed(0)
    w = nir.zeros(30, 20, 3, 3)
    assert getattr(nir.init, name)(w) is w
    values = w.numpy()
    assert abs(values.mean()) < 0.01
    if name in UNIFORM:
        bound = UNIFORM[name]
        assert 0.99 * bound < abs(values).max() <= bound
        assert abs(values.std() - bound / math.sqrt(3)) < 0.03 * bound
    else:
        assert abs(values.std() / NORMAL[name] - 1) < 0.03


def test_initialisers_follow_the_seed() -> None:
    def weight(seed: int) -> np.ndarray:
        nir.manual_seed(seed)
        return nn.Linear(4, 4).weight.numpy()

    np.testing.assert_array_equal(weight(3), weight(3))
    assert (weight(3) != weight(4)).any()


def test_simple_initialisers() -> None:
    init = nir.init
    assert (init.constant_(nir.zeros(3), 2.5).numpy() == 2.5).all()
    assert (init.ones_(nir.zeros(3)).numpy() == 1).all()
    assert not init.zeros_(nir.ones(3)).numpy().any()
    np.testing.assert_array_equal(init.eye_(nir.zeros(2, 3)).numpy(), np.eye(2, 3))
    values = init.uniform_(nir.zeros(1000), 2, 3).numpy()
    assert values.min() >= 2 and values.max() <= 3
    values = init.normal_(nir.zeros(10000), 5, 2).numpy()
    assert abs(values.mean() - 5) < 0.1 and abs(values.std() - 2) < 0.1


def test_gains() -> None:
    assert nir.init.calculate_gain("relu") == math.sqrt(2)
    assert nir.init.calculate_gain("leaky_relu", 1.0) == 1.0
    with pytest.raises(NirError, match=r"expected one of linear, .* got 'swoosh'"):
        nir.init.calculate_gain("swoosh")
    with pytest.raises(ShapeError, match="at least 2 axes"):
        nir.init.xavier_normal_(nir.zeros(3))
    with pytest.raises(NirError, match="'fan_in' or 'fan_out', got 'fan'"):
        nir.init.kaiming_normal_(nir.zeros(3, 3), mode="fan")  # type: ignore[arg-type]


# ---- what layers refuse --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "call", "message"),
    [
        (ShapeError, lambda x: nn.Linear(4, 2)(x), r"got \(2, 3\) and \(2, 4\)"),
        (ShapeError, lambda x: nn.Conv2d(3, 2, 3)(x), "images"),
        (ShapeError, lambda x: nn.Conv2d(3, 2, 3, groups=2), "divisible by groups=2"),
        (ShapeError, lambda x: nn.BatchNorm1d(4)(x), "expected 4 channels on axis 1"),
        (ShapeError, lambda x: nn.BatchNorm2d(3)(x), "4 axes"),
        (ShapeError, lambda x: nn.LayerNorm(4)(x), r"last axes of \(4,\)"),
        (ShapeError, lambda x: nn.MaxPool2d(2)(x), "images"),
        (ShapeError, lambda x: F.mse_loss(x, x.sum(0)), "target of shape"),
        (ShapeError, lambda x: F.cross_entropy(x, nir.zeros(3, dtype="i64")), "target of shape"),
        (DTypeError, lambda x: nn.Embedding(4, 2)(x), "integer indices, got f32"),
        (NirError, lambda x: F.mse_loss(x, x, "median"), "'mean', 'sum' or 'none'"),
        (NirError, lambda x: F.gelu(x, "erf"), "'none' or 'tanh'"),
        (NirError, lambda x: nn.Conv2d(3, 2, 3, padding="full")(nir.zeros(1, 3, 4, 4)), "'same'"),
    ],
)
def test_layer_refuses(kind: type[NirError], call: object, message: str) -> None:
    with pytest.raises(kind, match=message):
        call(nir.zeros(2, 3))  # type: ignore[operator]
