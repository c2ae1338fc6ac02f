"""Recurrent layers, the language model and the transformer: values and gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nir
import nir.needle as ndl
from nir.needle import nn
from nir.needle.apps.models import LanguageModel
from tests.peers import torch_or_skip

torch = torch_or_skip()
RTOL, ATOL = 1e-4, 1e-5
T, B, I, H = 6, 3, 4, 5  # noqa: E741


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def close(a: Any, b: Any) -> None:
    np.testing.assert_allclose(a.numpy(), b.detach().numpy(), RTOL, ATOL)


def take_weights(cells: list[Any], peer: Any, bias: bool) -> None:
    """Give our cells the weights of PyTorch's layers."""
    for k, cell in enumerate(cells):
        for name in ("ih", "hh"):
            weight = getattr(peer, f"weight_{name}_l{k}").detach().numpy().T
            getattr(cell, f"W_{name}").data = ndl.Tensor(weight, dtype="float32")
            if bias:
                own = getattr(peer, f"bias_{name}_l{k}").detach().numpy()
                getattr(cell, f"bias_{name}").data = ndl.Tensor(own, dtype="float32")


def compare_gradients(cells: list[Any], peer: Any, bias: bool) -> None:
    for k, cell in enumerate(cells):
        for name in ("ih", "hh"):
            close(getattr(cell, f"W_{name}").grad, getattr(peer, f"weight_{name}_l{k}").grad.T)
            if bias:
                theirs = getattr(peer, f"bias_{name}_l{k}").grad
                close(getattr(cell, f"bias_{name}").grad, theirs)


@pytest.mark.parametrize("length", [1, T])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_rnn(nonlinearity: str, bias: bool, length: int) -> None:
    peer = torch.nn.RNN(I, H, 2, bias=bias, nonlinearity=nonlinearity)
    layer = nn.RNN(I, H, 2, bias, nonlinearity)
    take_weights(layer.rnn_cells, peer, bias)
    x, h0 = array(length, B, I), array(2, B, H, seed=1)
    given, start = ndl.Tensor(x, dtype="float32"), ndl.Tensor(h0, dtype="float32")
    t, th = torch.tensor(x, requires_grad=True), torch.tensor(h0, requires_grad=True)
    out, last = layer(given, start)
    expected, expected_last = peer(t, th)
    close(out, expected)
    close(last, expected_last)
    ((out * out).sum() + last.sum()).backward()
    ((expected**2).sum() + expected_last.sum()).backward()
    compare_gradients(layer.rnn_cells, peer, bias)
    close(given.grad, t.grad)
    close(start.grad, th.grad)


@pytest.mark.parametrize("length", [1, T])
@pytest.mark.parametrize("bias", [True, False])
def test_lstm(bias: bool, length: int) -> None:
    peer, layer = torch.nn.LSTM(I, H, 2, bias=bias), nn.LSTM(I, H, 2, bias)
    take_weights(layer.lstm_cells, peer, bias)
    x, h0, c0 = array(length, B, I), array(2, B, H, seed=1), array(2, B, H, seed=2)
    given, t = ndl.Tensor(x, dtype="float32"), torch.tensor(x, requires_grad=True)
    out, (h, c) = layer(given, tuple(ndl.Tensor(s, dtype="float32") for s in (h0, c0)))
    expected, (th, tc) = peer(t, (torch.tensor(h0), torch.tensor(c0)))
    for mine, theirs in ((out, expected), (h, th), (c, tc)):
        close(mine, theirs)
    ((out * out).sum() + (h * c).sum()).backward()
    ((expected**2).sum() + (th * tc).sum()).backward()
    compare_gradients(layer.lstm_cells, peer, bias)
    close(given.grad, t.grad)


@pytest.mark.parametrize("layer", [nn.RNN(I, H), nn.LSTM(I, H)], ids=["rnn", "lstm"])
def test_a_state_that_is_not_given_is_zero(layer: Any) -> None:
    x = ndl.Tensor(array(T, B, I), dtype="float32")
    zeros = ndl.zeros(1, B, H)
    state = zeros if isinstance(layer, nn.RNN) else (zeros, zeros)
    np.testing.assert_allclose(layer(x)[0].numpy(), layer(x, state)[0].numpy(), 1e-6)


def test_cells_are_steps_of_layers() -> None:
    x = ndl.Tensor(array(2, B, I), dtype="float32")
    rnn, lstm = nn.RNN(I, H), nn.LSTM(I, H)
    h: Any = None
    for step in ndl.split(x, 0):
        h = rnn.rnn_cells[0](step, h)
    np.testing.assert_allclose(h.numpy(), rnn(x)[0].numpy()[1], 1e-5, 1e-6)
    state: Any = None
    for step in ndl.split(x, 0):
        state = lstm.lstm_cells[0](step, state)
    np.testing.assert_allclose(state[1].numpy(), lstm(x)[1][1].numpy()[0], 1e-5, 1e-6)
    bare = nn.LSTMCell(I, H, bias=False)
    assert bare.bias_ih is None and len(bare.parameters()) == 2


def test_a_cell_of_the_users_is_used() -> None:
    class Halving(nn.RNNCell):
        def forward(self, X: Any, h: Any = None) -> Any:
            return super().forward(X, h) * 0.5

    layer = nn.RNN(I, H)
    cell = layer.rnn_cells[0] = Halving(I, H)
    x = ndl.Tensor(array(3, B, I), dtype="float32")
    h = ndl.zeros(B, H)
    for step in ndl.split(x, 0):
        h = cell(step, h)
    out, last = layer(x)
    np.testing.assert_allclose(out.numpy()[-1], h.numpy(), 1e-5, 1e-6)
    np.testing.assert_allclose(last.numpy()[0], h.numpy(), 1e-5, 1e-6)


def test_draws_come_in_needles_order() -> None:
    np.random.seed(7)
    cell = nn.LSTMCell(3, 2)
    np.random.seed(7)
    bound = 1 / np.sqrt(2)
    for name, shape in (("W_ih", (3, 8)), ("W_hh", (2, 8)), ("bias_ih", (8,)), ("bias_hh", (8,))):
        drawn = (2 * np.random.rand(*shape) - 1) * bound
        np.testing.assert_allclose(getattr(cell, name).numpy(), drawn, 1e-5, 1e-6)


def test_embedding() -> None:
    layer = nn.Embedding(10, 4)
    ids = np.array([[1, 2], [2, 9]], np.float32)
    out = layer(ndl.Tensor(ids))
    table = torch.tensor(layer.weight.numpy(), requires_grad=True)
    expected = table[torch.tensor(ids).long()]
    close(out, expected)
    (out * out).sum().backward()
    (expected**2).sum().backward()
    close(layer.weight.grad, table.grad)


@pytest.mark.parametrize("kind", ["rnn", "lstm"])
def test_language_model(kind: str) -> None:
    """Logits, state, loss and every gradient beside the same model in PyTorch."""
    words, width = 11, 4
    model = LanguageModel(width, words, H, 2, kind)
    embed, head = torch.nn.Embedding(words, width), torch.nn.Linear(H, words)
    peer = (torch.nn.RNN if kind == "rnn" else torch.nn.LSTM)(width, H, 2)
    model.embedding.weight.data = ndl.Tensor(embed.weight.detach().numpy(), dtype="float32")
    model.linear.weight.data = ndl.Tensor(head.weight.detach().numpy().T, dtype="float32")
    model.linear.bias.data = ndl.Tensor(head.bias.detach().numpy(), dtype="float32")
    cells = model.seq_model.rnn_cells if kind == "rnn" else model.seq_model.lstm_cells
    take_weights(cells, peer, True)
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, words, (T, B)), rng.integers(0, words, T * B)
    logits, state = model(ndl.Tensor(x.astype(np.float32)))
    out, peer_state = peer(embed(torch.tensor(x)))
    expected = head(out.reshape(T * B, H))
    close(logits, expected)
    if kind == "lstm":
        close(state[0], peer_state[0])
        close(state[1], peer_state[1])
    else:
        close(state, peer_state)
    loss = nn.SoftmaxLoss()(logits, ndl.Tensor(y))
    theirs = torch.nn.functional.cross_entropy(expected, torch.tensor(y))
    np.testing.assert_allclose(loss.numpy().reshape(()), theirs.item(), 1e-5)
    loss.backward()
    theirs.backward()
    close(model.embedding.weight.grad, embed.weight.grad)
    close(model.linear.weight.grad, head.weight.grad.T)
    close(model.linear.bias.grad, head.bias.grad)
    compare_gradients(cells, peer, True)


def test_programs_do_not_grow_with_the_sequence() -> None:
    def calls(length: int) -> int:
        layer = nn.LSTM(I, H)
        compiled = nir.compile(layer, f"f32[{length},{B},{I}]")
        return len(compiled.program.calls)

    assert calls(100) == calls(400)


# ---- transformer ---------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
def test_attention(causal: bool) -> None:
    q, k, v = (array(2, 3, T, 4, seed=s) for s in range(3))
    result, probs = nn.MultiHeadAttention(causal=causal)(*(ndl.Tensor(a) for a in (q, k, v)))
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(torch.tensor(a) for a in (q, k, v)), is_causal=causal
    )
    close(result, expected)
    np.testing.assert_allclose(probs.numpy().sum(-1), np.ones((2, 3, T)), 1e-5)
    if causal:
        assert (np.triu(probs.numpy()[0, 0], 1) == 0).all()


def test_parts_of_attention() -> None:
    layer = nn.MultiHeadAttention()
    a, b = array(2, 3, 4, 5), array(2, 3, 6, 5, seed=1)
    product = layer.matmul(ndl.Tensor(a), ndl.Tensor(b))
    np.testing.assert_allclose(product.numpy(), a @ b.swapaxes(2, 3), 1e-4, 1e-5)
    soft = layer.softmax(ndl.Tensor(a * 1000)).numpy()
    expected = torch.tensor(a * 1000).softmax(-1).numpy()
    np.testing.assert_allclose(soft, expected, 1e-4, 1e-5)
    mask = layer.create_causal_mask(3, 4, ndl.cpu())
    mask = mask if isinstance(mask, np.ndarray) else mask.numpy()
    low = -np.finfo(np.float32).max
    assert mask.shape == (1, 1, 3, 4) and mask[0, 0, 0].tolist() == [0, 0, low, low]


def test_a_transformer_layer_beside_pytorchs_pieces() -> None:
    layer = nn.TransformerLayer(8, 2, 4, 16)
    x = array(2, T, 8)
    given, t = ndl.Tensor(x, dtype="float32"), torch.tensor(x, requires_grad=True)
    attention, F = layer.attention, torch.nn.functional

    def weight(p: Any) -> Any:
        return torch.tensor(p.numpy())

    def heads(projection: Any) -> Any:
        y = F.layer_norm(t, (8,)) @ weight(projection.weight)
        return y.reshape(2, T, 2, 4).transpose(1, 2)

    mixed = F.scaled_dot_product_attention(
        heads(attention.q_projection), heads(attention.k_projection),
        heads(attention.v_projection), is_causal=True,
    )  # fmt: skip
    h = t + mixed.transpose(1, 2).reshape(2, T, 8) @ weight(attention.out_projection.weight)
    first, second = (m for m in layer.feed_forward.fn.modules if isinstance(m, nn.Linear))
    inner = F.relu(F.layer_norm(h, (8,)) @ weight(first.weight) + weight(first.bias))
    expected = h + inner @ weight(second.weight) + weight(second.bias)
    y = layer(given)
    close(y, expected)
    c = array(2, T, 8, seed=4)
    y.backward(ndl.Tensor(c, dtype="float32"))
    expected.backward(torch.tensor(c))
    close(given.grad, t.grad)


def test_transformer_takes_both_orders_of_axes() -> None:
    np.random.seed(0)
    a = nn.Transformer(8, 16, 2, num_head=2, dim_head=4, sequence_len=10)
    np.random.seed(0)
    b = nn.Transformer(8, 16, 2, num_head=2, dim_head=4, sequence_len=10, batch_first=True)
    x = array(T, B, 8)
    y, zeros = a(ndl.Tensor(x, dtype="float32"))
    z, _ = b(ndl.Tensor(x.swapaxes(0, 1).copy(), dtype="float32"))
    np.testing.assert_allclose(y.numpy(), z.numpy().swapaxes(0, 1), 1e-5, 1e-5)
    assert zeros.shape == y.shape and (zeros.numpy() == 0).all()
