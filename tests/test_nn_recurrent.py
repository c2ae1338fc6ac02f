"""RNN, LSTM and GRU, layers and cells, beside PyTorch and as compiled loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from backend_harness import check, close, compiled, outputs, reference

import nir
from nir import nn
from nir.errors import NirError, ShapeError
from nir.ir.interp import run
from nir.ops import Matmul, Scan
from tests.peers import torch_or_skip

torch = torch_or_skip()

TOLERANCE = {"f32": 5e-5, "f64": 1e-11}
TORCH = {"f32": torch.float32, "f64": torch.float64}
NUMPY = {"f32": np.float32, "f64": np.float64}
T, N, IN, HID = 5, 3, 4, 6


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def flat(tree: Any) -> list[Any]:
    if not isinstance(tree, tuple):
        return [tree]
    return [leaf for part in tree for leaf in flat(part)]


def like(tree: Any, leaves: list[Any]) -> Any:
    """``leaves`` in the structure of ``tree``."""
    if not isinstance(tree, tuple):
        return leaves.pop(0)
    return tuple(like(part, leaves) for part in tree)


def compare(ours: nn.Module, theirs: Any, x: np.ndarray, hx: Any, dtype: str) -> None:
    """All outputs, and gradients of a random linear function of all by inputs and weights."""
    given = [x.astype(NUMPY[dtype])] + [h.astype(NUMPY[dtype]) for h in flat(hx) if h is not None]
    a = [nir.Tensor(g, requires_grad=True) for g in given]
    b = [torch.from_numpy(g.copy()).requires_grad_() for g in given]
    y = flat(ours(a[0], *([like(hx, a[1:])] if hx is not None else [])))
    z = flat(theirs(b[0], *([like(hx, b[1:])] if hx is not None else [])))
    assert [tuple(t.shape) for t in y] == [tuple(t.shape) for t in z]
    loss, other = nir.Tensor(0.0, dtype=dtype), torch.zeros((), dtype=TORCH[dtype])
    for i, (p, q) in enumerate(zip(y, z, strict=True)):
        v = array(*q.shape, seed=20 + i).astype(NUMPY[dtype])
        loss, other = loss + (p * nir.Tensor(v)).sum(), other + (q * torch.from_numpy(v)).sum()
    ours.zero_grad()
    theirs.zero_grad()
    loss.backward()
    other.backward()
    own = dict(ours.named_parameters())
    pairs = [(f"output {i}", p, q) for i, (p, q) in enumerate(zip(y, z, strict=True))]
    pairs += [(f"gradient of input {i}", a[i].grad, b[i].grad) for i in range(len(given))]
    pairs += [(f"gradient of {n}", own[n].grad, p.grad) for n, p in theirs.named_parameters()]
    for what, mine, wanted in pairs:
        if wanted is None:  # torch cuts the graph where dropout removes everything
            wanted = torch.zeros(tuple(mine.shape))
        np.testing.assert_allclose(
            mine.numpy(), wanted.detach().numpy(), TOLERANCE[dtype], TOLERANCE[dtype], err_msg=what
        )


def twins(name: str, dtype: str, *args: Any, **options: Any) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    ours = getattr(nn, name)(*args, dtype=dtype, **options)
    theirs = getattr(torch.nn, name)(*args, dtype=TORCH[dtype], **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def states(name: str, *shape: int) -> Any:
    h, c = array(*shape, seed=5), array(*shape, seed=6)
    return (h, c) if name.startswith("LSTM") else h


# ---- layers --------------------------------------------------------------------------------------

LAYERS: list[tuple[str, dict[str, Any]]] = [
    (name, options)
    for name in ("RNN", "LSTM", "GRU")
    for options in (
        {},
        {"bias": False, "batch_first": True},
        {"num_layers": 2, "bidirectional": True},
        {"num_layers": 3, "batch_first": True, "dropout": 0.4},
    )
] + [("RNN", {"nonlinearity": "relu", "num_layers": 2})]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("name", "options"), LAYERS, ids=str)
def test_layer(name: str, options: dict[str, Any], dtype: str) -> None:
    """Training without dropout and evaluation with it, with and without first states."""
    x = array(N, T, IN) if options.get("batch_first") else array(T, N, IN)
    rows = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    ours, theirs = twins(name, dtype, IN, HID, **options)
    if "dropout" in options:
        ours.eval(), theirs.eval()
    compare(ours, theirs, x, None, dtype)
    compare(ours, theirs, x, states(name, rows, N, HID), dtype)


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_one_sequence_without_a_batch(name: str) -> None:
    ours, theirs = twins(name, "f64", IN, HID, 2, bidirectional=True, batch_first=True)
    compare(ours, theirs, array(T, IN), None, "f64")
    compare(ours, theirs, array(T, IN), states(name, 4, HID), "f64")


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_dropout_is_between_the_layers(name: str) -> None:
    # With probability 1 the second layer reads zeros, and its own output is as it is.
    ours, theirs = twins(name, "f64", IN, HID, 2, dropout=1.0)
    compare(ours, theirs, array(T, N, IN), None, "f64")
    layer = getattr(nn, name)(IN, HID, 2, dropout=0.5)
    x = nir.Tensor(array(T, N, IN), dtype="f32")
    nir.manual_seed(1)
    one, two = (layer(x)[0].numpy() for _ in range(2))
    nir.manual_seed(1)
    np.testing.assert_array_equal(layer(x)[0].numpy(), one)
    assert (one != two).any()


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_a_layer_is_its_cell_step_by_step(name: str) -> None:
    layer, cell = getattr(nn, name)(IN, HID), getattr(nn, f"{name}Cell")(IN, HID)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in layer.state_dict().items()})
    x = nir.Tensor(array(T, N, IN), dtype="f32")
    out, last = layer(x)
    state = None
    for t in range(T):
        state = cell(x[t], state)
        np.testing.assert_allclose(out.numpy()[t], flat(state)[0].numpy(), 1e-5, 1e-6)
    for a, b in zip(flat(last), flat(state), strict=True):
        np.testing.assert_allclose(a.numpy()[0], b.numpy(), 1e-5, 1e-6)


# ---- cells ---------------------------------------------------------------------------------------

CELLS: list[tuple[str, dict[str, Any]]] = [
    ("RNNCell", {}),
    ("RNNCell", {"nonlinearity": "relu", "bias": False}),
    ("LSTMCell", {}),
    ("LSTMCell", {"bias": False}),
    ("GRUCell", {}),
    ("GRUCell", {"bias": False}),
]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("name", "options"), CELLS, ids=str)
def test_cell(name: str, options: dict[str, Any], dtype: str) -> None:
    ours, theirs = twins(name, dtype, IN, HID, **options)
    compare(ours, theirs, array(N, IN), None, dtype)
    compare(ours, theirs, array(N, IN), states(name, N, HID), dtype)
    compare(ours.eval(), theirs.eval(), array(IN), states(name, HID), dtype)


# ---- as loops ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_one_product_before_the_loop(name: str) -> None:
    """The sequence meets the input weights in one product; the loop holds the hidden ones only."""
    layer = getattr(nn, name)(IN, HID)
    graph = nir.trace(layer, nir.spec(f"f32[T,B,{IN}]"))
    (loop,) = (op for op in graph.nodes if isinstance(op, Scan))
    assert sum(isinstance(op, Matmul) for op in graph.nodes) == 1
    assert sum(isinstance(op, Matmul) for op in loop.body.nodes) == 1


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_training_step_compiles_for_every_length_and_batch(name: str) -> None:
    layer = getattr(nn, name)(IN, HID, 2, bidirectional=name == "GRU")

    def step(x: nir.Tensor) -> Any:
        layer(x)[0].square().mean().backward()
        return [p.grad for p in layer.parameters()]

    graph = nir.trace(step, nir.spec(f"f32[T,B,{IN}]"), state=[layer])
    weights = [p.numpy() for p in layer.parameters()]
    program = compiled(graph)
    for length, batch in ((1, 2), (7, 1), (4, 5)):
        inputs = [array(length, batch, IN).astype(np.float32), *weights]
        problem = close(graph, inputs, reference(graph, inputs), outputs(program, inputs))
        assert problem is None, f"{length} steps of {batch}: {problem}"
    check(graph, inputs)  # on each ISA level, to the bit


def test_the_interpreter_agrees_with_torch() -> None:
    ours, theirs = twins("LSTM", "f64", IN, HID, 2, bidirectional=True)
    x = array(T, N, IN)
    graph = nir.trace(ours, nir.spec(f"f64[{T},{N},{IN}]"))
    by_path = dict(ours.named_parameters())
    inputs = {"x": x, **{name: p.numpy() for name, p in by_path.items()}}
    found = run(graph, [inputs[n] for n in graph.input_names])
    with torch.no_grad():
        wanted = flat(theirs(torch.from_numpy(x)))
    for mine, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(mine, other.numpy(), 1e-12, 1e-12)


def test_a_language_model_learns_in_a_compiled_step() -> None:
    """It learns to say which symbol came one step before."""
    nir.manual_seed(0)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(5, 8)
            self.rnn = nn.GRU(8, 24)
            self.out = nn.Linear(24, 5)

        def forward(self, x: nir.Tensor) -> nir.Tensor:
            return self.out(self.rnn(self.embedding(x))[0])

    model = Model()
    optimizer = nir.optim.Adam(model.parameters(), lr=0.03)

    def step(x: nir.Tensor, y: nir.Tensor) -> nir.Tensor:
        optimizer.zero_grad()
        said = model(x)[1:].flatten(0, 1)
        loss = nn.functional.cross_entropy(said, y.flatten())
        loss.backward()
        optimizer.step()
        return loss

    train = nir.jit(step, state=[model, optimizer])
    rng = np.random.default_rng(0)
    for _ in range(200):
        s = rng.integers(0, 5, (12, 16))
        loss = train(nir.Tensor(s), nir.Tensor(s[:-1]))
    assert loss.item() < 0.2  # guessing costs 1.6


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nn.RNN(4, 0), "RNN: expected sizes >= 1, got input_size 4 and hidden_size 0"),
        (lambda: nn.GRU(4, 2, 0), "GRU: expected num_layers >= 1, got 0"),
        (lambda: nn.RNN(4, 2, nonlinearity="sin"), "expected nonlinearity 'tanh' or 'relu'"),
        (
            lambda: nn.LSTM(4, 2)(nir.zeros(3, 1, 5)),
            r"LSTM: expected x \[T,N,4\] or \[T,4\], got f32\[3,1,5\]",
        ),
        (
            lambda: nn.LSTM(4, 2)(nir.zeros(3, 1, 4), nir.zeros(1, 1, 2)),
            "LSTM: expected 2 initial states, got 1",
        ),
        (
            lambda: nn.GRU(4, 2, 2)(nir.zeros(3, 1, 4), nir.zeros(1, 1, 2)),
            r"GRU: expected an initial state of shape \(2, 1, 2\)",
        ),
        (
            lambda: nn.GRUCell(4, 2)(nir.zeros(3, 4), nir.zeros(2, 2)),
            r"GRUCell: expected a state of shape \(3, 2\), got f32\[2,2\]",
        ),
        (
            lambda: nn.RNNCell(4, 2)(nir.zeros(3, 5)),
            r"RNNCell: expected x \[N,4\] or \[4\], got f32\[3,5\]",
        ),
    ],
)
def test_errors(call: Callable[[], Any], message: str) -> None:
    with pytest.raises((ShapeError, NirError), match=message):
        call()
