"""Recurrent layers and their cells, with PyTorch's parameters, on `nir.scan`.

The products of the whole sequence with the input weights are one matrix product before the loop;
the loop multiplies by the hidden weights alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias

from nir.errors import NirError, ShapeError
from nir.frontend import init
from nir.frontend.control import scan
from nir.frontend.functional import cat, stack, zeros
from nir.frontend.nn import functional as F
from nir.frontend.nn.module import Module, Parameter
from nir.frontend.tensor import Tensor
from nir.ir.location import caller

State: TypeAlias = "tuple[Tensor, ...]"
# From the input's share of the gates and the state to the next state, whose first part is h.
Step: TypeAlias = "Callable[[State, Tensor], State]"

_NONLINEARITIES: dict[str, Callable[[Tensor], Tensor]] = {"tanh": F.tanh, "relu": F.relu}


# ---- one step ------------------------------------------------------------------------------------


def _plain_step(nonlinearity: str, w: Tensor, b: Tensor | None) -> Step:
    """h' = tanh(x + W h)."""
    activation = _NONLINEARITIES[nonlinearity]
    return lambda state, x: (activation(x + state[0] @ w.T),)


def lstm_state(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """(h', c') of gates i f g o: c' = sigmoid(f)c + sigmoid(i)tanh(g), h' = sigmoid(o)tanh(c')."""
    i, f, g, o = gates.chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _lstm_step(_: str, w: Tensor, b: Tensor | None) -> Step:
    """`lstm_state` of x + W h."""
    return lambda state, x: lstm_state(x + state[0] @ w.T, state[1])


def _gru_step(_: str, w: Tensor, b: Tensor | None) -> Step:
    """n = tanh(x_n + r (W_n h + b_n)), h' = (1 - z) n + z h; gates r z n, r and z of sigmoids."""

    def step(state: State, x: Tensor) -> State:
        (h,) = state
        x_r, x_z, x_n = x.chunk(3, -1)
        h_r, h_z, h_n = (h @ w.T).chunk(3, -1)
        r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
        n = (x_n + r * (h_n if b is None else h_n + b)).tanh()
        return (n + z * (h - n),)

    return step


class _Recurrent(Module):
    """What a layer and a cell share: the sizes, the step, and how weights are drawn."""

    gates: ClassVar[int] = 1
    states: ClassVar[int] = 1
    make_step: ClassVar[Any] = staticmethod(_plain_step)
    nonlinearity: str = "tanh"

    def __init__(self, input_size: int, hidden_size: int, bias: bool) -> None:
        super().__init__()
        if hidden_size < 1 or input_size < 1:
            raise ShapeError(
                f"{type(self).__name__}: expected sizes >= 1, got input_size {input_size} and "
                f"hidden_size {hidden_size}",
                caller(),
            )
        self.input_size, self.hidden_size, self.bias = input_size, hidden_size, bias

    def _add_weights(self, suffix: str, inputs: int, dtype: object) -> None:
        rows = self.gates * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (rows, inputs),
            "weight_hh": (rows, self.hidden_size),
        }
        if self.bias:
            shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
        for name, shape in shapes.items():
            setattr(self, name + suffix, Parameter(zeros(*shape, dtype=dtype)))

    def reset_parameters(self) -> None:
        """Draw anew: all of U(-1/sqrt(hidden_size), 1/sqrt(hidden_size))."""
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            init.uniform_(parameter, -bound, bound)

    def _set_nonlinearity(self, nonlinearity: str) -> None:
        if nonlinearity not in _NONLINEARITIES:
            raise NirError(
                f"{type(self).__name__}: expected nonlinearity 'tanh' or 'relu', "
                f"got {nonlinearity!r}",
                caller(),
            )
        self.nonlinearity = nonlinearity

    def _parts(self, x: Tensor, suffix: str) -> tuple[Tensor, Step]:
        """The input's share of the gates of [..., inputs], all biases in it, and the step.

        A GRU's last bias stays in the step, which scales it.
        """
        w_ih, w_hh = (getattr(self, f"weight_{n}{suffix}") for n in ("ih", "hh"))
        if not self.bias:
            return F.linear(x, w_ih), self.make_step(self.nonlinearity, w_hh, None)
        b_ih, b_hh = (getattr(self, f"bias_{n}{suffix}") for n in ("ih", "hh"))
        inner = None
        if self.make_step is _gru_step:
            size = self.hidden_size
            inner = b_hh.narrow(0, 2 * size, size)
            b_hh = cat([b_hh.narrow(0, 0, 2 * size), zeros(size, dtype=b_hh.dtype)])
        return F.linear(x, w_ih, b_ih + b_hh), self.make_step(self.nonlinearity, w_hh, inner)

    def _given(self, hx: Any) -> list[Tensor] | None:
        """The initial states as a list."""
        if hx is None:
            return None
        given = [hx] if isinstance(hx, Tensor) else list(hx)
        if len(given) != self.states:
            raise ShapeError(
                f"{type(self).__name__}: expected {self.states} initial states, got {len(given)}",
                caller(),
            )
        return given

    def _taken(self, states: list[Tensor]) -> Any:
        """The states as the layer returns them."""
        return states[0] if self.states == 1 else tuple(states)


# ---- cells ---------------------------------------------------------------------------------------


class _Cell(_Recurrent):
    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, dtype: object = "f32"
    ) -> None:
        super().__init__(input_size, hidden_size, bias)
        self._add_weights("", input_size, dtype)
        self.reset_parameters()

    def _step(self, x: Tensor, hx: Any) -> Any:
        if x.ndim not in (1, 2) or x.shape[-1] != self.input_size:
            raise ShapeError(
                f"{type(self).__name__}: expected x [N,{self.input_size}] or "
                f"[{self.input_size}], got {x.type}",
                caller(),
            )
        shape = (*x.shape[:-1], self.hidden_size)
        state = self._given(hx) or [zeros(*shape, dtype=x.dtype)] * self.states
        for s in state:
            if tuple(s.shape) != shape:
                raise ShapeError(
                    f"{type(self).__name__}: expected a state of shape {shape}, got {s.type}",
                    caller(),
                )
        share, step = self._parts(x, "")
        return self._taken(list(step(tuple(state), share)))

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}, bias={self.bias}"


class RNNCell(_Cell):
    """h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or relu: x [N, input], h [N, hidden]."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        dtype: object = "f32",
    ) -> None:
        super().__init__(input_size, hidden_size, bias, dtype)
        self._set_nonlinearity(nonlinearity)

    def forward(self, x: Tensor, hx: Tensor | None = None) -> Tensor:
        """The next h; zeros come before the first."""
        return self._step(x, hx)  # type: ignore[no-any-return]


class LSTMCell(_Cell):
    """One step of an LSTM: x [N, input], (h, c) of [N, hidden]; rows of weights i, f, g, o."""

    gates, states = 4, 2
    make_step = staticmethod(_lstm_step)

    def forward(self, x: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """The next (h, c); zeros come before the first."""
        return self._step(x, hx)  # type: ignore[no-any-return]


class GRUCell(_Cell):
    """One step of a GRU: x [N, input], h [N, hidden]; rows of weights r, z, n."""

    gates = 3
    make_step = staticmethod(_gru_step)

    def forward(self, x: Tensor, hx: Tensor | None = None) -> Tensor:
        """The next h; zeros come before the first."""
        return self._step(x, hx)  # type: ignore[no-any-return]


# ---- layers --------------------------------------------------------------------------------------


class _Layer(_Recurrent):
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        dtype: object = "f32",
    ) -> None:
        super().__init__(input_size, hidden_size, bias)
        if num_layers < 1:
            raise ShapeError(
                f"{type(self).__name__}: expected num_layers >= 1, got {num_layers}", caller()
            )
        self.num_layers, self.batch_first, self.dropout = num_layers, batch_first, dropout
        self.bidirectional = bidirectional
        self._suffixes = ("", "_reverse") if bidirectional else ("",)
        for layer in range(num_layers):
            inputs = input_size if layer == 0 else hidden_size * len(self._suffixes)
            for suffix in self._suffixes:
                self._add_weights(f"_l{layer}{suffix}", inputs, dtype)
        self.reset_parameters()

    def _run(self, x: Tensor, hx: Any) -> tuple[Tensor, Any]:
        """(output, last states) of a sequence."""
        self._check(x)
        batched = x.ndim == 3
        if not batched:
            x = x.unsqueeze(1)
        elif self.batch_first:
            x = x.transpose(0, 1)
        start = self._start(x, self._given(hx), batched)
        last: list[State] = []
        for layer in range(self.num_layers):
            if layer and self.dropout and self.training:
                x = F.dropout(x, self.dropout)
            found = []
            for i, suffix in enumerate(self._suffixes):
                share, step = self._parts(x, f"_l{layer}{suffix}")
                row = layer * len(self._suffixes) + i
                state, hs = _loop(step, tuple(s[row] for s in start), share, reverse=i == 1)
                found.append(hs)
                last.append(state)
            x = found[0] if len(found) == 1 else cat(found, -1)
        ends = [stack(parts) for parts in zip(*last, strict=True)]
        if not batched:
            return x.squeeze(1), self._taken([e.squeeze(1) for e in ends])
        return x.transpose(0, 1) if self.batch_first else x, self._taken(ends)

    def _start(self, x: Tensor, given: list[Tensor] | None, batched: bool) -> list[Tensor]:
        """The initial states [layers directions, N, H], zeros if none are given."""
        rows = self.num_layers * len(self._suffixes)
        shape = (rows, x.shape[1], self.hidden_size)
        if given is None:
            return [zeros(*shape, dtype=x.dtype)] * self.states
        want = shape if batched else (rows, self.hidden_size)
        for s in given:
            if tuple(s.shape) != want:
                raise ShapeError(
                    f"{type(self).__name__}: expected an initial state of shape {want} (layers x "
                    f"directions first), got {s.type}",
                    caller(),
                )
        return given if batched else [s.unsqueeze(1) for s in given]

    def _check(self, x: Tensor) -> None:
        if x.ndim not in (2, 3) or x.shape[-1] != self.input_size:
            order = "N,T" if self.batch_first else "T,N"
            raise ShapeError(
                f"{type(self).__name__}: expected x [{order},{self.input_size}] or "
                f"[T,{self.input_size}], got {x.type}",
                caller(),
            )

    def extra_repr(self) -> str:
        return (
            f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, "
            f"bias={self.bias}, batch_first={self.batch_first}, dropout={self.dropout}, "
            f"bidirectional={self.bidirectional}"
        )


def _loop(step: Step, start: State, shares: Tensor, reverse: bool) -> tuple[State, Tensor]:
    """(last state, h after each step) over the first axis of ``shares``."""

    def body(state: State, x: Tensor) -> tuple[State, Tensor]:
        after = step(state, x)
        return after, after[0]

    return scan(body, start, shares, reverse=reverse)


class RNN(_Layer):
    """h_t = tanh(W_ih x_t + b_ih + W_hh h_(t-1) + b_hh), or relu (Elman, 1990).

    x [T, N, input] -> (h of all steps [T, N, D hidden], last h [layers D, N, hidden]), batch first
    in x and output if ``batch_first``, or without N; D is 2 if ``bidirectional``. Each further
    layer reads the one before, with ``dropout`` between them in training. Parameters of layer k
    end in _lk, those backwards in time in _lk_reverse.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        dtype: object = "f32",
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype
        )
        self._set_nonlinearity(nonlinearity)

    def forward(self, x: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``hx``: the first h [layers D, N, hidden], zeros by default."""
        return self._run(x, hx)


class LSTM(_Layer):
    """Long short-term memory (Hochreiter and Schmidhuber, 1997).

    i, f, o = sigmoid and g = tanh of W_ih x + b_ih + W_hh h + b_hh;
    c' = f c + i g, h' = o tanh(c').
    x [T, N, input] -> (h of all steps [T, N, D hidden], (last h, last c) [layers D, N, hidden]);
    the rest as in `RNN`. Rows of the weights are i, f, g, o.
    """

    gates, states = 4, 2
    make_step = staticmethod(_lstm_step)

    def forward(
        self, x: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """``hx``: the first h and c, each [layers D, N, hidden], zeros by default."""
        return self._run(x, hx)


class GRU(_Layer):
    """Gated recurrent units (Cho et al., 2014).

    r, z = sigmoid(W_ih x + b_ih + W_hh h + b_hh), n = tanh(W_in x + b_in + r (W_hn h + b_hn)),
    h' = (1 - z) n + z h. Sequences and states as in `RNN`. Rows of the weights are r, z, n.
    """

    gates = 3
    make_step = staticmethod(_gru_step)

    def forward(self, x: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``hx``: the first h [layers D, N, hidden], zeros by default."""
        return self._run(x, hx)
