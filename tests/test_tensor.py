"""Tensor beside PyTorch: promotion, broadcasting, indexing and every method, value and type."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import nir
from nir.errors import DTypeError, IndexRangeError, ShapeError
from nir.frontend.emit import promote
from nir.ir.types import DTYPES
from tests.peers import torch_or_skip

TORCH_NAMES = {
    "f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16", "i64": "int64",
    "i32": "int32", "i16": "int16", "i8": "int8", "u8": "uint8", "bool": "bool",
}  # fmt: skip


@pytest.fixture(autouse=True)
def interpreted() -> Iterator[None]:
    """Compositions of ops are tested here, not backends: the reference interpreter runs them."""
    nir.set_default_target("interp")
    yield
    nir.set_default_target("cpu")


def torch_dtype(torch: Any, name: object) -> Any:
    return getattr(torch, TORCH_NAMES[str(name)])


def check(ours: Any, theirs: Any, torch: Any) -> None:
    """Equal structure, shapes, dtypes and values."""
    if isinstance(theirs, (tuple, list)):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            check(a, b, torch)
        return
    assert isinstance(ours, nir.Tensor)
    assert ours.shape == tuple(theirs.shape)
    assert torch_dtype(torch, ours.dtype) == theirs.dtype, (ours.dtype, theirs.dtype)
    a, b = ours.numpy(), theirs.detach().numpy()
    if b.dtype.kind in "iub":
        np.testing.assert_array_equal(a, b)
    else:
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6)


X = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
P = np.abs(X) + np.float32(0.5)
N = np.random.default_rng(1).integers(-5, 6, (2, 3, 4))
B = X > 0

# Each runs on nir's tensors and on PyTorch's alike.
METHODS: dict[str, Callable[[Any], Any]] = {
    "neg": lambda x: -x,
    "abs": lambda x: abs(x),
    "sign": lambda x: x.sign(),
    "exp": lambda x: x.exp(),
    "expm1": lambda x: x.expm1(),
    "tanh": lambda x: x.tanh(),
    "sigmoid": lambda x: x.sigmoid(),
    "erf": lambda x: x.erf(),
    "sin": lambda x: x.sin(),
    "cos": lambda x: x.cos(),
    "floor": lambda x: x.floor(),
    "ceil": lambda x: x.ceil(),
    "round": lambda x: (x * 2).round(),
    "trunc": lambda x: (x * 2).trunc(),
    "relu": lambda x: x.relu(),
    "square": lambda x: x.square(),
    "reciprocal": lambda x: x.reciprocal(),
    "isnan": lambda x: (x / x).isnan(),
    "isinf": lambda x: (x / 0).isinf(),
    "isfinite": lambda x: (x / 0).isfinite(),
    "clamp": lambda x: x.clamp(-0.5, 0.7),
    "clamp_max": lambda x: x.clamp(max=0.1),
    "pow_2": lambda x: x**2,
    "pow_3": lambda x: x**3,
    "pow_4": lambda x: x**4,
    "pow_-1": lambda x: x**-1,
    "pow_-2": lambda x: x**-2,
    "pow_0": lambda x: x**0,
    "rpow": lambda x: 2.0**x,
    "rsub": lambda x: 1 - x,
    "rdiv": lambda x: 1 / x,
    "floordiv": lambda x: x // 0.7,
    "mod": lambda x: x % 0.7,
    "compare": lambda x: (x > 0, x >= 0.5, x < 0, x <= -0.5, x == x, x != x),
    "maximum": lambda x: x.maximum(x.flip(0)),
    "minimum": lambda x: x.minimum(x.flip(0)),
    "masked_fill": lambda x: x.masked_fill(x > 0, -1),
    "sum": lambda x: x.sum(),
    "sum_dim": lambda x: x.sum(1),
    "sum_dims": lambda x: x.sum((0, -1), keepdim=True),
    "mean": lambda x: (x.mean(), x.mean(-1), x.mean((0, 2), keepdim=True)),
    "prod": lambda x: (x.prod(), x.prod(1), x.prod(1, keepdim=True)),
    "var": lambda x: (x.var(), x.var(1), x.var((0, 2), correction=0, keepdim=True)),
    "std": lambda x: (x.std(), x.std(-1)),
    "norm": lambda x: x.norm(),
    "amax": lambda x: (x.amax(), x.amax(1), x.amax((0, 2), keepdim=True)),
    "amin": lambda x: (x.amin(), x.amin(-1)),
    "max": lambda x: (x.max(), *x.max(1), *x.max(-1, keepdim=True)),
    "min": lambda x: (x.min(), *x.min(0)),
    "argmax": lambda x: (x.argmax(), x.argmax(1), x.argmax(-1, keepdim=True)),
    "argmin": lambda x: (x.argmin(), x.argmin(0)),
    "any_all": lambda x: ((x > 1).any(), (x > -9).all(), (x > 0).any(1), (x > 0).all(0)),
    "logsumexp": lambda x: (x.logsumexp(1), x.logsumexp((0, 2), keepdim=True)),
    "cumsum": lambda x: (x.cumsum(1), x.cumsum(-1)),
    "softmax": lambda x: (x.softmax(1), x.log_softmax(-1)),
    "reshape": lambda x: (x.reshape(6, 4), x.reshape(-1), x.view(2, -1), x.reshape((4, 6))),
    "flatten": lambda x: (x.flatten(), x.flatten(1), x.flatten(0, 1), x.flatten(-2)),
    "unflatten": lambda x: x.unflatten(2, (2, -1)),
    "permute": lambda x: (x.permute(2, 0, 1), x.permute((0, -1, 1))),
    "transpose": lambda x: (x.transpose(0, 2), x.mT, x[0].T),
    "squeeze": lambda x: (x[:1].squeeze(), x[:, :1].squeeze(1), x.squeeze(1)),
    "unsqueeze": lambda x: (x.unsqueeze(0), x.unsqueeze(-1), x.unsqueeze(2)),
    "expand": lambda x: (x[:, :1].expand(2, 5, 4), x[:1].expand(3, -1, -1), x.expand(2, 2, 3, 4)),
    "expand_as": lambda x: x[0].expand_as(x),
    "flip": lambda x: (x.flip(0), x.flip((0, 2)), x.flip(-1)),
    "roll": lambda x: (x.roll(1, 1), x.roll(-3, 2), x.roll(6, 1)),
    "repeat": lambda x: (x.repeat(1, 2, 3), x.repeat(2, 1, 1, 1)),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
    "split": lambda x: (*x.split(3, 2), *x.split([1, 2], 1), *x.chunk(2, 2), *x.chunk(3, 2)),
    "unbind": lambda x: (*x.unbind(), *x.unbind(2)),
    "narrow": lambda x: x.narrow(2, 1, 2),
    "iteration": lambda x: tuple(row * 2 for row in x),
    "tril_triu": lambda x: (x.tril(), x.triu(1), x.tril(-1)),
    "matmul": lambda x: (x @ x.mT, x[0] @ x[0].T, x @ x[0, 0], x[0, 0] @ x[0].T, x[0, 0] @ x[1, 1]),
    "matmul_batch": lambda x: (x.unsqueeze(1) @ x.mT, x[0] @ x.mT, x @ x[0].T),
    "to": lambda x: (x.double(), x.long(), x.int(), x.bool(), x.half().float()),
    "clone": lambda x: (x.clone(), x.detach()),
}  # fmt: skip

INDICES: dict[str, Callable[[Any], Any]] = {
    "integer": lambda x: (x[0], x[-1], x[1, 2], x[1, -1, 3]),
    "slice": lambda x: (x[:1], x[:, 1:], x[..., :-1], x[:, -2:, 1:3], x[5:], x[:, 2:1]),
    "step": lambda x: (x[..., ::2], x[:, ::3, 1::2], x[:, 1:9:2]),
    "none": lambda x: (x[None], x[:, None], x[..., None], x[0, None, 1]),
    "ellipsis": lambda x: (x[...], x[..., 0], x[0, ..., 1], x[1, 2, 3, ...]),
    "mixed": lambda x: x[1, ..., None, ::2],
}
INDEX_TENSORS: dict[str, Callable[[Any, Any], Any]] = {
    "one": lambda x, i: (x[i], x[:, :, i], x[i, 1:], x[..., i]),
    "matrix": lambda x, i: x[i.reshape(1, -1)],
    "several": lambda x, i: (x[i, i], x[:, i, i], x[i, :, i], x[i, i, i]),
    "broadcast": lambda x, i: x[i.unsqueeze(1), i.unsqueeze(0)],
    "gather": lambda x, i: x.gather(1, (i + 0).reshape(1, -1, 1).expand(2, 4, 4)),
    "select": lambda x, i: (x.index_select(0, i), x.index_select(-1, i)),
}


@pytest.mark.parametrize("name", METHODS)
def test_method(name: str) -> None:
    torch = torch_or_skip()
    check(METHODS[name](nir.tensor(X)), METHODS[name](torch.from_numpy(X)), torch)


@pytest.mark.parametrize("name", ["log", "log1p", "sqrt", "rsqrt"])
def test_method_of_positive(name: str) -> None:
    torch = torch_or_skip()
    check(getattr(nir.tensor(P), name)(), getattr(torch.from_numpy(P), name)(), torch)
    check(nir.tensor(P) ** 0.5, torch.from_numpy(P) ** 0.5, torch)
    check(nir.tensor(P) ** nir.tensor(X), torch.from_numpy(P) ** torch.from_numpy(X), torch)


INTEGER_METHODS = [
    "neg", "abs", "sign", "exp", "sigmoid", "relu", "square", "pow_2", "pow_3", "rsub", "rdiv",
    "compare", "maximum", "masked_fill", "sum", "sum_dims", "prod", "amax", "max", "min", "argmax",
    "any_all", "cumsum", "reshape", "permute", "flip", "roll", "split", "matmul", "to",
]  # fmt: skip


@pytest.mark.parametrize("name", INTEGER_METHODS)
def test_method_of_integers(name: str) -> None:
    torch = torch_or_skip()
    fn = METHODS[name]
    with np.errstate(all="ignore"):
        check(fn(nir.tensor(N)), fn(torch.from_numpy(N)), torch)


def test_integer_division() -> None:
    torch = torch_or_skip()
    y = np.where(N == 0, 3, N)[::-1].copy()
    a, b, c, d = nir.tensor(N), nir.tensor(y), torch.from_numpy(N), torch.from_numpy(y)
    check((a // b, a % b, a / b), (c // d, c % d, c / d), torch)


def test_bits_and_logic() -> None:
    torch = torch_or_skip()
    for fn in (
        lambda x, y: (x & y, x | y, x ^ y, ~x),
        lambda x, y: (x.logical_and(y), x.logical_or(y), x.logical_xor(y), x.logical_not()),
    ):
        for u, v in ((B, B[::-1].copy()), (N, N[::-1].copy())):
            check(fn(nir.tensor(u), nir.tensor(v)), fn(*map(torch.from_numpy, (u, v))), torch)
    shifted = nir.tensor(np.abs(N)) << 2
    check(shifted >> 1, (torch.from_numpy(np.abs(N)) << 2) >> 1, torch)


@pytest.mark.parametrize("name", INDICES)
def test_index(name: str) -> None:
    torch = torch_or_skip()
    check(INDICES[name](nir.tensor(X)), INDICES[name](torch.from_numpy(X)), torch)


def test_index_by_negative_step() -> None:
    x = nir.tensor(X)
    np.testing.assert_array_equal(x[:, ::-1].numpy(), X[:, ::-1])
    np.testing.assert_array_equal(x[..., 3:0:-2].numpy(), X[..., 3:0:-2])


@pytest.mark.parametrize("name", INDEX_TENSORS)
def test_index_tensors(name: str) -> None:
    torch = torch_or_skip()
    i = np.array([1, 0, -1, 1])
    if name in ("gather", "select"):
        i = i % 2  # PyTorch refuses negative ones here
    fn = INDEX_TENSORS[name]
    check(fn(nir.tensor(X), nir.tensor(i)), fn(torch.from_numpy(X), torch.from_numpy(i)), torch)


def test_index_tensors_apart_count_each_range() -> None:
    # (0, 4) is inside of the flattened axes, and out of the second.
    x = nir.tensor(X[0])
    with pytest.raises(IndexRangeError):
        x[nir.tensor([0]), nir.tensor([4])].numpy()
    with pytest.raises(IndexRangeError):
        x[nir.tensor([0]), nir.tensor([-5])].numpy()


def test_scatter() -> None:
    torch = torch_or_skip()
    i = np.array([[0, 1, 2, 0], [2, 2, 1, 0]])
    args = (np.zeros((3, 4), np.float32), i, X[0, :2])
    check(
        nir.tensor(args[0]).scatter_add(0, *map(nir.tensor, args[1:])),
        torch.from_numpy(args[0]).scatter_add(0, *map(torch.from_numpy, args[1:])),
        torch,
    )
    rows = np.array([2, 0, 2])
    check(
        nir.tensor(X[0]).index_add(0, nir.tensor(rows), nir.tensor(X[1])),
        torch.from_numpy(X[0]).index_add(0, torch.from_numpy(rows), torch.from_numpy(X[1])),
        torch,
    )
    rows = np.array([2, 0])
    check(
        nir.tensor(X[0]).index_copy(0, nir.tensor(rows), nir.tensor(X[1, :2])),
        torch.from_numpy(X[0]).index_copy(0, torch.from_numpy(rows), torch.from_numpy(X[1, :2])),
        torch,
    )


# ---- types ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", DTYPES)
def test_promotion_of_tensors(first: str) -> None:
    torch = torch_or_skip()
    for second in DTYPES:
        ours = promote(DTYPES[first], DTYPES[second])
        theirs = torch.promote_types(torch_dtype(torch, first), torch_dtype(torch, second))
        assert torch_dtype(torch, ours) == theirs, (first, second)


OPERANDS: dict[str, Callable[[Any, Callable[..., Any]], Any]] = {
    "f32[2]": lambda lib, t: t([1.0, 2.0], "f32"),
    "f64[2]": lambda lib, t: t([1.0, 2.0], "f64"),
    "f16[2]": lambda lib, t: t([1.0, 2.0], "f16"),
    "i64[2]": lambda lib, t: t([1, 2], "i64"),
    "u8[2]": lambda lib, t: t([1, 2], "u8"),
    "bool[2]": lambda lib, t: t([True, False], "bool"),
    "f32[]": lambda lib, t: t(1.0, "f32"),
    "f64[]": lambda lib, t: t(1.0, "f64"),
    "i64[]": lambda lib, t: t(3, "i64"),
    "bool[]": lambda lib, t: t(True, "bool"),
    "float": lambda lib, t: 2.5,
    "int": lambda lib, t: 3,
    "True": lambda lib, t: True,
}


@pytest.mark.parametrize("first", [k for k in OPERANDS if "[" in k])
def test_result_type_of_all_operands(first: str) -> None:
    torch = torch_or_skip()

    def ours(data: Any, name: str) -> nir.Tensor:
        return nir.tensor(np.asarray(data), dtype=name)

    def theirs(data: Any, name: str) -> Any:
        return torch.tensor(data, dtype=torch_dtype(torch, name))

    for second in OPERANDS:
        a, b = OPERANDS[first](nir, ours), OPERANDS[second](nir, ours)
        c, d = OPERANDS[first](torch, theirs), OPERANDS[second](torch, theirs)
        for fn in (lambda x, y: x * y, lambda x, y: y * x, lambda x, y: x / y):
            found, expected = fn(a, b), fn(c, d)
            if found.dtype == nir.int64 and expected.dtype == torch.bool:
                continue  # a product of bools counts here
            assert torch_dtype(torch, found.dtype) == expected.dtype, (first, second)


def test_python_floats_are_f32_and_arrays_keep_their_dtype() -> None:
    assert nir.tensor([1.0, 2.0]).dtype == nir.float32
    assert nir.tensor(1).dtype == nir.int64
    assert nir.tensor(True).dtype == nir.bool_
    assert nir.tensor(np.float64(1)).dtype == nir.float64
    assert nir.tensor([[1, 2], [3, 4]], dtype=nir.float16).dtype == nir.float16
    assert nir.tensor([nir.tensor(1.0), nir.tensor(2.0)]).tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    "shapes", [((2, 1, 4), (3, 1)), ((), (2,)), ((1,), (0, 3)), ((5,), (2, 5))]
)
def test_broadcasting(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    a, b = (np.arange(np.prod(s), dtype=np.float32).reshape(s) + 1 for s in shapes)
    out = nir.tensor(a) - nir.tensor(b)
    np.testing.assert_array_equal(out.numpy(), a - b)
    np.testing.assert_array_equal((nir.tensor(a) == nir.tensor(b)).numpy(), a == b)


# ---- making, combining, looking ------------------------------------------------------------------


def test_creation_beside_torch() -> None:
    torch = torch_or_skip()
    made: list[Callable[[Any], Any]] = [
        lambda m: m.zeros(2, 3),
        lambda m: m.ones((2, 3)),
        lambda m: m.full((2,), 1.5),
        lambda m: m.full((2,), 3),
        lambda m: m.full((), True),
        lambda m: m.arange(5),
        lambda m: m.arange(2, 9, 3),
        lambda m: m.arange(0, 1, 0.25),
        lambda m: m.arange(5.0),
        lambda m: m.arange(5, 0, -2),
        lambda m: m.linspace(0, 1, 5),
        lambda m: m.eye(3),
        lambda m: m.eye(2, 4),
        lambda m: m.zeros_like(m.ones(2, 2)),
        lambda m: m.ones_like(m.arange(3)),
        lambda m: m.cat([m.ones(2, 1), m.zeros(2, 2)], 1),
        lambda m: m.cat([m.ones(2), m.arange(2)]),
        lambda m: m.stack([m.ones(2), m.zeros(2)], 1),
        lambda m: m.where(m.arange(4) > 1, m.arange(4), -1),
        lambda m: m.where(m.arange(4) > 1, 0.5, m.arange(4)),
        lambda m: m.maximum(m.arange(4), m.full((4,), 2)),
        lambda m: m.matmul(m.ones(2, 3), m.ones(3, 2)),
    ]
    for make in made:
        check(make(nir), make(torch), torch)


def test_pad_beside_torch() -> None:
    torch = torch_or_skip()
    for widths in ((1, 2), (0, 1, 2, 0), (1, 1, 0, 0, 2, 1)):
        ours = nir.pad(nir.tensor(X), widths, 1.5)
        theirs = torch.nn.functional.pad(torch.from_numpy(X), widths, value=1.5)
        check(ours, theirs, torch)


def test_values_out() -> None:
    x = nir.tensor([[1.5, 2.0]])
    assert x.tolist() == [[1.5, 2.0]]
    assert x[0, 0].item() == 1.5
    assert (float(x[0, 1]), int(x[0, 1]), bool(x[0, 0] > 1)) == (2.0, 2, True)
    assert list(range(5))[nir.tensor(3)] == 3
    assert f"{x[0, 0]:.2f}" == "1.50"
    assert repr(x) == "tensor([[1.5, 2. ]])"
    assert repr(nir.tensor([1.0], dtype="f64")) == "tensor([1.], dtype=f64)"
    assert len(nir.ones(3, 2)) == 3 and nir.ones(3, 2).numel() == 6
    assert nir.ones(3, 2).size() == (3, 2) and nir.ones(3, 2).size(-1) == 2
    np.testing.assert_array_equal(np.asarray(x), [[1.5, 2.0]])
    assert np.asarray(x, dtype=np.float64).dtype == np.float64


def test_numpy_is_a_copy() -> None:
    x = nir.ones(3)
    x.numpy()[0] = 5
    array = np.ones(3, np.float32)
    y = nir.from_numpy(array)
    array[0] = 7
    assert x.tolist() == y.tolist() == [1, 1, 1]


def test_dlpack_both_ways() -> None:
    x = nir.arange(6).reshape(2, 3) * 1
    np.testing.assert_array_equal(np.from_dlpack(x), [[0, 1, 2], [3, 4, 5]])
    y = nir.from_dlpack(np.ones((2, 2), np.float32))
    assert y.tolist() == [[1, 1], [1, 1]]
    torch = torch_or_skip()
    shared = torch.from_dlpack(x)
    before = x * 1
    shared[0, 0] = 50
    del shared
    # What was recorded before the write reads the old value, what comes after the new one.
    assert (before.tolist()[0][0], (x * 1).tolist()[0][0]) == (0, 50)


def test_arithmetic_with_numpy_operands() -> None:
    x = nir.tensor(X)
    out = X[0] + x
    assert isinstance(out, nir.Tensor)
    np.testing.assert_array_equal(out.numpy(), X[0] + X)
    np.testing.assert_array_equal((x * np.float32(2)).numpy(), X * 2)


def test_what_is_no_operand_is_refused() -> None:
    with pytest.raises(TypeError):
        nir.ones(2) + "a"  # type: ignore[operator]
    with pytest.raises(DTypeError, match="expected an exponent from 0 to 64"):
        nir.arange(3) ** -1
    with pytest.raises(ShapeError, match="expected a shape of sizes >= 0"):
        nir.zeros(-1)
    with pytest.raises(ShapeError, match="inhomogeneous"):
        nir.tensor([[1], [2, 3]])


def test_random_streams() -> None:
    nir.manual_seed(3)
    a, b = nir.rand(1000), nir.randn(1000)
    nir.manual_seed(3)
    np.testing.assert_array_equal(nir.rand(1000).numpy(), a.numpy())
    assert abs(b.mean().item()) < 0.15 and abs(b.std().item() - 1) < 0.1
    assert a.numpy().min() >= 0 and a.numpy().max() < 1
    g = nir.Generator(0)
    draws = nir.randint(2, 7, (500,), generator=g).numpy()
    assert draws.min() == 2 and draws.max() == 6
    assert sorted(nir.randperm(50, generator=g).tolist()) == list(range(50))
    assert abs(nir.bernoulli((2000,), 0.3, generator=g).float().mean().item() - 0.3) < 0.05
    assert nir.rand(3, dtype="f64").dtype == nir.float64


def test_copies_of_modules_and_tensors() -> None:
    model = nir.nn.Sequential(nir.nn.Linear(3, 2), nir.nn.BatchNorm1d(2))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert isinstance(other[0].weight, nir.nn.Parameter) and other[0].weight.requires_grad
        np.testing.assert_array_equal(other[0].weight.numpy(), model[0].weight.numpy())
        with nir.no_grad():
            other[0].weight.zero_()
        assert model[0].weight.numpy().any()
