"""jit and compile: one program each, state written back, retraces explained, buffers reused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nir
from nir import nn
from nir.errors import DTypeError, IndexRangeError, ShapeError, StaleTensorError, TraceError
from nir.nn import functional as F


@pytest.fixture(autouse=True, params=["interp", "cpu"])
def target(request: pytest.FixtureRequest) -> Iterator[str]:
    nir.set_default_target(request.param)
    yield request.param
    nir.set_default_target("cpu")


def batches(sizes: tuple[int, ...], seed: int = 0) -> list[tuple[nir.Tensor, nir.Tensor]]:
    rng = np.random.default_rng(seed)
    return [
        (
            nir.tensor(rng.standard_normal((n, 4)).astype(np.float32)),
            nir.tensor(rng.integers(0, 3, n)),
        )
        for n in sizes
    ]


def network() -> nn.Module:
    nir.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3)
    )


def trainer(jit: bool) -> tuple[Any, Any, nn.Module, nir.optim.Optimizer]:
    model = network()
    optimizer = nir.optim.Adam(model.parameters(), lr=0.05, weight_decay=1e-3)

    def step(x: nir.Tensor, y: nir.Tensor) -> nir.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    def evaluate(x: nir.Tensor, y: nir.Tensor) -> nir.Tensor:
        return (model(x).argmax(1) == y).sum()

    if jit:
        specs = ("f32[B,4]", "i64[B]")
        step = nir.jit(step, state=[model, optimizer], specs=specs)
        evaluate = nir.jit(evaluate, state=[model], specs=specs)
    return step, evaluate, model, optimizer


def epochs(jit: bool) -> tuple[list[float], list[np.ndarray], Any, Any]:
    step, evaluate, model, optimizer = trainer(jit)
    schedule = nir.optim.StepLR(optimizer, 1, 0.5)
    numbers = []
    for epoch in range(3):
        model.train()
        numbers += [step(x, y).item() for x, y in batches((16, 16, 5), epoch)]
        schedule.step()
        model.eval()
        numbers += [evaluate(x, y).item() for x, y in batches((20, 7), 9)]
    return numbers, [t.numpy() for t in model.state_dict().values()], step, evaluate


def test_epochs_compile_two_programs_and_equal_eager_ones() -> None:
    numbers, state, step, evaluate = epochs(jit=True)
    assert (step.compiles, evaluate.compiles) == (1, 1)
    assert step.why == evaluate.why == ["first call"]
    assert step.compile_seconds > 0
    expected, expected_state, _, _ = epochs(jit=False)
    np.testing.assert_allclose(numbers, expected, rtol=2e-4, atol=1e-6)
    for a, b in zip(state, expected_state, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)


# ---- traces --------------------------------------------------------------------------------------


def test_shapes_dtypes_and_statics_are_traced_apart() -> None:
    def fn(x: nir.Tensor, n: int = 1) -> nir.Tensor:
        return x * n

    f = nir.jit(fn)
    for _ in range(2):
        assert f(nir.ones(3)).shape == (3,)
        assert f(nir.ones(4)).shape == (4,)
        assert f(nir.arange(4)).dtype == nir.int64
        assert f(nir.ones(3), 2).tolist() == [2, 2, 2]
        assert f(nir.ones(3), n=2).tolist() == [2, 2, 2]
    assert f.compiles == 5
    assert f.why[:3] == [
        "first call",
        "argument 0: f32[3] -> f32[4]",
        "argument 0: f32[4] -> i64[4]",
    ]
    assert "tuple(*), dict()" in f.why[3] and "tuple(*, 2)" in f.why[3]


def test_a_changed_attribute_says_why() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))
    f = nir.jit(model)
    x = nir.ones(2, 4)
    f(x)
    model.eval()
    f(x)
    model[1].p = 0.25
    f(x)
    model.train()
    f(x)
    model[1].p = 0.5
    f(x)
    assert f.compiles == 4  # the last finds the first trace
    assert (
        f.why[1] == "training: True -> False; 0.training: True -> False; 1.training: True -> False"
    )
    assert f.why[2] == "1.p: 0.5 -> 0.25"


def test_static_argnames_take_anything() -> None:
    f = nir.jit(lambda x, sizes: x.reshape(sizes), static_argnames=("sizes",))
    assert f(nir.ones(6), [2, 3]).shape == (2, 3)
    assert f(nir.ones(6), sizes=[2, 3]).shape == (2, 3)
    assert f(nir.ones(6), [3, 2]).shape == (3, 2)
    g = nir.jit(lambda x, table: x * float(table.sum()), static_argnames=("table",))
    assert g(nir.ones(2), np.float32(3)).tolist() == [3, 3]


def test_arrays_and_trees_come_and_go() -> None:
    @nir.jit
    def f(batch: dict[str, Any], scale: Any) -> Any:
        return {"y": batch["x"] * scale, "same": batch["x"], "n": 3, "none": None}

    x = np.ones((2, 2), np.float32)
    out = f({"x": x}, np.float32(3))
    assert out["n"] == 3 and out["none"] is None
    assert out["y"].tolist() == [[3, 3], [3, 3]]
    x[:] = 9  # what is handed through is a copy of the caller's array
    assert out["same"].tolist() == [[1, 1], [1, 1]]


def test_specs_are_checked() -> None:
    f = nir.jit(lambda x, y: x[: x.shape[0]] + y, specs=("f32[B]", "f32[B]"))
    assert f(nir.ones(2), nir.ones(2)).tolist() == [2, 2]
    assert f(nir.ones(0), nir.ones(0)).tolist() == []
    with pytest.raises(ShapeError, match=r"axis 0: expected B = 2"):
        f(nir.ones(2), nir.ones(3))
    with pytest.raises(DTypeError, match=r"expected f32\[B\], got i64\[2\]"):
        f(nir.ones(2), nir.arange(2))
    with pytest.raises(TraceError, match="expected arguments"):
        f(nir.ones(2))
    assert f.compiles == 1


def test_inside_another_trace_it_is_part_of_it() -> None:
    inner = nir.jit(lambda x: x * 2)
    outer = nir.jit(lambda x: inner(x) + 1)
    assert outer(nir.ones(2)).tolist() == [3, 3]
    assert (inner.compiles, outer.compiles) == (0, 1)


def test_methods_are_decorated_like_functions() -> None:
    class Scaler:
        def __init__(self) -> None:
            self.factor = nir.tensor(3.0)

        @nir.jit
        def scale(self, x: nir.Tensor, factor: nir.Tensor) -> nir.Tensor:
            return x * factor

    s = Scaler()
    assert s.scale(nir.ones(2), s.factor).tolist() == [3, 3]
    bound = nir.jit(network().forward)
    assert bound(nir.ones(2, 4)).shape == (2, 3)  # the method's object is state


# ---- state ---------------------------------------------------------------------------------------


def test_state_of_plain_trees() -> None:
    counts = {"n": nir.tensor(0), "history": [nir.zeros(2)]}

    @nir.jit(state=[counts])
    def add(x: nir.Tensor) -> nir.Tensor:
        counts["n"] = counts["n"] + 1
        counts["history"][0] = counts["history"][0] + x
        return counts["n"] * 10

    first = counts["n"]
    assert [add(nir.ones(2)).item() for _ in range(3)] == [10, 20, 30]
    assert counts["n"] is first and first.item() == 3  # the tensor itself has moved on
    assert counts["history"][0].tolist() == [3, 3]
    assert add.compiles == 1


def test_swapped_state() -> None:
    pair = {"a": nir.tensor([1.0]), "b": nir.tensor([2.0])}

    @nir.jit(state=[pair])
    def swap() -> None:
        a = pair["a"].detach()
        pair["a"].copy_(pair["b"])
        pair["b"].copy_(a)

    for expected in ((2, 1), (1, 2), (2, 1)):
        swap()
        assert (pair["a"].item(), pair["b"].item()) == expected


def test_nothing_changes_when_a_run_fails() -> None:
    state = {"n": nir.tensor(0)}

    @nir.jit(state=[state], specs=("f32[4]", "i64[B]"))
    def f(x: nir.Tensor, i: nir.Tensor) -> nir.Tensor:
        state["n"].add_(1)
        return x[i]

    f(nir.ones(4), nir.tensor([1, 3]))
    with pytest.raises(IndexRangeError):
        f(nir.ones(4), nir.tensor([1, 4]))
    assert state["n"].item() == 1


def test_new_state_is_refused() -> None:
    holder: dict[str, Any] = {"items": []}

    @nir.jit(state=[holder])
    def f(x: nir.Tensor) -> nir.Tensor:
        holder["items"].append(x)
        return x

    with pytest.raises(TraceError, match=r"items.<length>: 0 -> 1"):
        f(nir.ones(2))


def test_generators_draw_on() -> None:
    g = nir.Generator(5)

    def draw() -> nir.Tensor:
        return nir.rand(4, generator=g)

    f = nir.jit(draw, state=[g])
    found = [f().numpy() for _ in range(2)] + [draw().numpy()] + [f().numpy()]
    g.manual_seed(5)
    for a in found:
        np.testing.assert_array_equal(draw().numpy(), a)
    assert f.compiles == 1


# ---- gradients as state --------------------------------------------------------------------------


def test_gradients_left_by_a_function_are_there() -> None:
    w = nn.Parameter(nir.tensor([1.0, 2.0]))

    @nir.jit(state=[w])
    def backward(x: nir.Tensor) -> None:
        (w * w * x).sum().backward()

    backward(nir.ones(2))
    assert w.grad is not None and w.grad.tolist() == [2, 4]
    backward(nir.ones(2))  # adds up, as in eager code
    assert w.grad.tolist() == [4, 8]
    optimizer = nir.optim.SGD([w], lr=0.5)
    optimizer.step()
    assert w.tolist() == [-1, -2]
    w.grad = None
    backward(nir.ones(2))
    assert w.grad.tolist() == [-2, -4]


def test_gradients_used_inside_are_not_kept() -> None:
    step, _, model, optimizer = trainer(jit=True)
    (x, y), *_ = batches((8,))
    step(x, y)
    step(x, y)
    assert step.compiles == 1
    weight = model[0].weight
    with pytest.raises(StaleTensorError, match=r"used up in the compiled step at .*test_jit\.py"):
        weight.grad  # noqa: B018
    with pytest.raises(StaleTensorError, match="call zero_grad"):
        F.cross_entropy(model(x), y).backward()
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    assert weight.grad is not None


def test_a_step_without_zero_grad_is_told() -> None:
    w = nn.Parameter(nir.ones(2))
    optimizer = nir.optim.SGD([w], lr=0.1)

    @nir.jit(state=[w, optimizer])
    def step() -> None:
        (w * w).sum().backward()
        optimizer.step()

    step()
    with pytest.raises(StaleTensorError, match="used up"):
        step()


# ---- buffers -------------------------------------------------------------------------------------


def test_state_buffers_are_reused(target: str) -> None:
    if target == "interp":
        pytest.skip("the interpreter makes new arrays")
    state = {"w": nir.tensor(np.zeros(1000, np.float32))}

    @nir.jit(state=[state])
    def f(x: nir.Tensor) -> None:
        state["w"].add_(x)

    x = nir.tensor(np.ones(1000, np.float32))
    f(x)
    address = state["w"]._cell.data.address
    for _ in range(3):
        f(x)
        assert state["w"]._cell.data.address == address
    # Whoever else holds the value keeps it: a detached tensor, a pending op, a DLPack view.
    held = state["w"].detach()
    f(x)
    pending = state["w"] * 1
    f(x)
    view = np.from_dlpack(state["w"])
    f(x)
    assert [v.item() for v in (held[0], pending[0])] == [4, 5] and view[0] == 6
    assert state["w"][0].item() == 7


def test_donated_arguments(target: str) -> None:
    f = nir.jit(lambda x: x * 2, donate=("x",))
    x = nir.tensor(np.ones(1000, np.float32))
    address = x._cell.data.address
    y = f(x)
    with pytest.raises(StaleTensorError, match=r"donated at tests/test_jit.py:\d+"):
        x.numpy()
    assert y[0].item() == 2
    if target == "cpu":
        assert y._cell.data.address == address
    z = nir.tensor(np.ones(1000, np.float32))
    alias = z.detach()
    f(z)
    assert alias[0].item() == 1
    with pytest.raises(TraceError, match="donate names z, which is no argument"):
        nir.jit(lambda x: x, donate=("z",))(y)


def test_borrowed_arrays_are_never_written() -> None:
    f = nir.jit(lambda x: x + 1, donate=("x",))
    x = np.ones(1000, np.float32)
    assert f(x)[0].item() == 2 and x[0] == 1


# ---- compile -------------------------------------------------------------------------------------


def test_compile_a_function_a_module_and_a_graph(target: str) -> None:
    fn = nir.compile(lambda x, y: {"sum": x + y, "x": x}, "f32[B]", "f32[B]", target=target)
    for n in (3, 1, 0):
        out = fn(np.ones(n, np.float32), nir.ones(n))
        assert out["sum"].tolist() == [2] * n and out["x"].tolist() == [1] * n
    model = network().eval()
    compiled = nir.compile(model, "f32[B,4]", target=target)
    x = batches((6,))[0][0]
    np.testing.assert_allclose(compiled(x).numpy(), model(x).numpy(), rtol=1e-5, atol=1e-6)
    before = compiled(x).numpy()
    model[0].weight.zero_()  # bound as it was
    np.testing.assert_array_equal(compiled(x).numpy(), before)
    graph = nir.trace(lambda x, y: (x * 2, x @ y), "f32[B,4]", "f32[4,2]")
    doubled, product = nir.compile(graph, target=target)(x, nir.ones(4, 2))
    assert doubled.shape == (6, 4) and product.shape == (6, 2)
    assert compiled.graph.name == "Sequential" and compiled.compile_seconds >= 0
    with pytest.raises(ShapeError, match="expected 4, got 5"):
        compiled(nir.ones(2, 5))
    with pytest.raises(TraceError, match="expected arguments"):
        compiled(x, x)


def test_compile_refuses_a_model_in_training() -> None:
    with pytest.raises(TraceError, match=r"rebinds its state \(1.running_mean"):
        nir.compile(network(), "f32[B,4]")


def test_package(tmp_path: Path, target: str) -> None:
    if target == "interp":
        pytest.skip("the interpreter has no package")
    model = network().eval()
    compiled = nir.compile(model, "f32[B,4]")
    compiled.save(tmp_path / "model.nirp")
    x = batches((6,))[0][0]
    loaded = np.asarray(nir.load(tmp_path / "model.nirp")(x.numpy()))
    np.testing.assert_array_equal(loaded, compiled(x).numpy())
