"""Recurrent layers. A sequence is one `nir.scan`, so that programs do not grow with its length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import nir
from nir.frontend.nn import functional as F
from nir.frontend.nn.recurrent import lstm_state
from nir.needle import init, ops
from nir.needle.autograd import Tensor
from nir.needle.nn.nn_basic import Lowered, LoweredTuple, Module, Parameter
from nir.needle.ops.ops_mathematic import together


class Sigmoid(Module):
    """1 / (1 + exp(-x))."""

    def forward(self, x: Any) -> Any:
        return Lowered(nir.Tensor.sigmoid)(x)


class _Cell(Module):
    """Weights W_ih (in, g h), W_hh (h, g h) and biases (g h,), all U(-1/sqrt(h), 1/sqrt(h))."""

    gates = 1

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool, device: Any, dtype: Any
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        bound = 1 / math.sqrt(hidden_size)
        width = self.gates * hidden_size

        def drawn(*shape: int) -> Parameter:
            return Parameter(init.rand(*shape, low=-bound, high=bound, device=device, dtype=dtype))

        self.W_ih: Any = drawn(input_size, width)
        self.W_hh: Any = drawn(hidden_size, width)
        self.bias_ih: Any = drawn(width) if bias else None
        self.bias_hh: Any = drawn(width) if bias else None

    def weights(self) -> list[Any]:
        """W_ih, W_hh, and the biases where there are any."""
        biases = (self.bias_ih, self.bias_hh)
        return [self.W_ih, self.W_hh, *(b for b in biases if b is not None)]

    def zeros(self, batch: int, like: Any) -> Any:
        return init.zeros(batch, self.hidden_size, device=like.device, dtype=like.dtype)


def _projected(x: nir.Tensor, w_ih: nir.Tensor, biases: Sequence[nir.Tensor]) -> nir.Tensor:
    """The part of the gates that does not depend on the state."""
    y = x @ w_ih
    for b in biases:
        y = y + b
    return y


class RNNCell(_Cell):
    """h' = nonlinearity(x W_ih + b_ih + h W_hh + b_hh)."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Any = None,
        dtype: Any = "float32",
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device, dtype)
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"expected a nonlinearity 'tanh' or 'relu', got {nonlinearity!r}")
        self.nonlinearity = nonlinearity

    def forward(self, X: Any, h: Any = None) -> Any:
        h = self.zeros(X.shape[0], X) if h is None else h
        op = LoweredTuple(_run_cell, kind=self.nonlinearity)
        return op(X, h, *self.weights())[0]


class LSTMCell(_Cell):
    """Gates i, f, g, o = x W_ih + b_ih + h W_hh + b_hh; c' = s(f) c + s(i) tanh(g);
    h' = s(o) tanh(c'), where s is the logistic function."""

    gates = 4

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = "float32",
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device, dtype)

    def forward(self, X: Any, h: Any = None) -> Any:
        state = (self.zeros(X.shape[0], X), self.zeros(X.shape[0], X)) if h is None else h
        return LoweredTuple(_run_cell, kind="lstm")(X, *state, *self.weights()).tuple()


# ---- what cells and layers compute -------------------------------------------------------------


def _step(kind: str, state: Sequence[nir.Tensor], x: nir.Tensor, w: nir.Tensor) -> Any:
    """The next state, whose first part is the output; ``x`` is the input's part of the gates."""
    gates = x + state[0] @ w
    match kind:
        case "tanh":
            return (gates.tanh(),)
        case "relu":
            return (gates.relu(),)
        case _:
            return lstm_state(gates, state[1])


def _run_cell(x: nir.Tensor, *rest: nir.Tensor, kind: str) -> tuple[nir.Tensor, ...]:
    """(x, *state, W_ih, W_hh, *biases) -> state."""
    x, *rest = together(x, *rest)  # type: ignore[assignment]
    count = 2 if kind == "lstm" else 1
    state, (wi, wh, *biases) = rest[:count], rest[count:]
    return tuple(_step(kind, state, _projected(x, wi, biases), wh))


def _run_layer(x: nir.Tensor, *rest: nir.Tensor, kind: str) -> tuple[nir.Tensor, ...]:
    """(x (T, B, in), *state, W_ih, W_hh, *biases) -> (outputs, *state)."""
    x, *rest = together(x, *rest)  # type: ignore[assignment]
    count = 2 if kind == "lstm" else 1
    state, (wi, wh, *biases) = tuple(rest[:count]), rest[count:]
    xs = _projected(x, wi, biases)

    def body(carry: Any, x: nir.Tensor) -> Any:
        new = _step(kind, carry, x, wh)
        return new, new[0]

    if x.shape[0] == 1:
        last, out = body(state, xs[0])
        return (out.unsqueeze(0), *last)
    last, out = nir.scan(body, state, xs)
    return (out, *last)


def run_layer(cell: Any, X: Any, state: Sequence[Any]) -> tuple[Any, list[Any]]:
    """(outputs (T, B, h), last state) of ``cell`` along X (T, B, in), as one node."""
    if type(cell) not in (RNNCell, LSTMCell):
        return _run_steps(cell, X, state)
    kind = "lstm" if isinstance(cell, LSTMCell) else cell.nonlinearity
    out, *last = LoweredTuple(_run_layer, kind=kind)(X, *state, *cell.weights())
    return out, last


def _run_steps(cell: Module, X: Any, state: Sequence[Any]) -> tuple[Any, list[Any]]:
    """`run_layer` for a cell of the user's own."""
    outputs = []
    now: Any = state[0] if len(state) == 1 else tuple(state)
    for x in ops.split(X, 0):
        now = cell(x, now)
        outputs.append(now if len(state) == 1 else now[0])
    return ops.stack(outputs, 0), [now] if len(state) == 1 else list(now)


class RNN(Module):
    """Layers of `RNNCell`: X (T, B, in), h0 (L, B, h) -> out (T, B, h), h_n (L, B, h)."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Any = None,
        dtype: Any = "float32",
    ) -> None:
        super().__init__()
        self.hidden_size, self.num_layers = hidden_size, num_layers
        self.rnn_cells = [
            RNNCell(
                hidden_size if k else input_size, hidden_size, bias, nonlinearity, device, dtype
            )
            for k in range(num_layers)
        ]

    def forward(self, X: Any, h0: Any = None) -> Any:
        hs = _states(self, X) if h0 is None else list(ops.split(h0, 0))
        last = []
        for cell, h in zip(self.rnn_cells, hs, strict=True):
            X, (h,) = run_layer(cell, X, [h])
            last.append(h)
        return X, ops.stack(last, 0)


class LSTM(Module):
    """Layers of `LSTMCell`: X (T, B, in), (h0, c0) each (L, B, h) -> out, (h_n, c_n)."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        device: Any = None,
        dtype: Any = "float32",
    ) -> None:
        super().__init__()
        self.hidden_size, self.num_layers = hidden_size, num_layers
        widths = [input_size, *[hidden_size] * (num_layers - 1)]
        self.lstm_cells = [LSTMCell(width, hidden_size, bias, device, dtype) for width in widths]

    def forward(self, X: Any, h: Any = None) -> Any:
        if h is None:
            hs, cs = _states(self, X), _states(self, X)
        else:
            hs, cs = (list(ops.split(t, 0)) for t in h)
        last_h, last_c = [], []
        for cell, *state in zip(self.lstm_cells, hs, cs, strict=True):
            X, (h, c) = run_layer(cell, X, state)
            last_h.append(h)
            last_c.append(c)
        return X, (ops.stack(last_h, 0), ops.stack(last_c, 0))


def _states(layers: Any, X: Any) -> list[Any]:
    """A zero state for each layer, as slices of one tensor, like a state that was given."""
    shape = (layers.num_layers, X.shape[1], layers.hidden_size)
    return list(ops.split(init.zeros(*shape, device=X.device, dtype=X.dtype), 0))


class Embedding(Module):
    """Rows of ``weight`` (num_embeddings, embedding_dim) ~ N(0, 1), by word ids (T, B)."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        device: Any = None,
        dtype: Any = "float32",
    ) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.weight = Parameter(
            init.randn(num_embeddings, embedding_dim, device=device, dtype=dtype)
        )

    def forward(self, x: Tensor) -> Any:
        return Lowered(_embed)(x, self.weight)


def _embed(ids: nir.Tensor, weight: nir.Tensor) -> nir.Tensor:
    return F.embedding(ids.to(nir.int64), weight)
