"""Attention, transformer layers and embeddings of positions beside PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from backend_harness import close, compiled, outputs, reference

import nir
from nir import nn
from nir.errors import DTypeError, IndexRangeError, NirError, ShapeError
from nir.nn import functional as F
from tests.peers import torch_or_skip

torch = torch_or_skip()
TF = torch.nn.functional

TOLERANCE = {"f32": 3e-5, "f64": 1e-11}
TORCH = {"f32": torch.float32, "f64": torch.float64}
NUMPY = {"f32": np.float32, "f64": np.float64}


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def mask(*shape: int, seed: int = 1) -> np.ndarray:
    """bool with a True in every row."""
    m = np.random.default_rng(seed).random(shape) < 0.5
    m[..., 0] = True
    return m


def floats(allowed: np.ndarray) -> np.ndarray:
    """A float mask: -inf where not allowed, and some number elsewhere."""
    return np.where(allowed, array(*allowed.shape, seed=3), -np.inf)


def first(out: Any) -> Any:
    return out[0] if isinstance(out, tuple) else out


def compare(
    ours: Callable[..., Any],
    theirs: Callable[..., Any],
    inputs: list[np.ndarray],
    masks: dict[str, np.ndarray],
    dtype: str,
    **options: Any,
) -> None:
    """All outputs, and gradients of a random linear function of the first by inputs and weights."""

    def cast(a: np.ndarray) -> np.ndarray:
        return a.astype(NUMPY[dtype]) if a.dtype.kind == "f" else a

    unique = {id(x): cast(x) for x in inputs}
    a = {i: nir.Tensor(x, requires_grad=True) for i, x in unique.items()}
    b = {i: torch.from_numpy(x.copy()).requires_grad_() for i, x in unique.items()}
    y = ours(
        *(a[id(x)] for x in inputs), **{k: nir.Tensor(cast(m)) for k, m in masks.items()}, **options
    )
    z = theirs(
        *(b[id(x)] for x in inputs),
        **{k: torch.from_numpy(cast(m)) for k, m in masks.items()},
        **options,
    )
    v = array(*first(z).shape, seed=9).astype(NUMPY[dtype])
    (first(y) * nir.Tensor(v)).sum().backward()
    (first(z) * torch.from_numpy(v)).sum().backward()
    pairs = [("output", first(y), first(z))]
    if isinstance(y, tuple):
        assert len(y) == len(z) == 2 and (y[1] is None) == (z[1] is None)
        pairs += [("weights", y[1], z[1])] if y[1] is not None else []
    pairs += [(f"gradient of input {n}", a[i].grad, b[i].grad) for n, i in enumerate(unique)]
    if isinstance(theirs, torch.nn.Module):
        own = dict(ours.named_parameters())
        pairs += [
            (f"gradient of {name}", own[name].grad, p.grad) for name, p in theirs.named_parameters()
        ]
    for what, mine, other in pairs:
        assert tuple(mine.shape) == tuple(other.shape), what
        np.testing.assert_allclose(
            mine.numpy(), other.detach().numpy(), TOLERANCE[dtype], TOLERANCE[dtype], err_msg=what
        )


def twins(name: str, *args: Any, dtype: str, **options: Any) -> tuple[nn.Module, Any]:
    """Our layer and torch's, with random weights of torch's, biases included."""
    ours = getattr(nn, name)(*args, dtype=dtype, **options)
    theirs = getattr(torch.nn, name)(*args, dtype=TORCH[dtype], **options)
    return load(ours, theirs), theirs


def load(ours: nn.Module, theirs: Any) -> nn.Module:
    with torch.no_grad():
        for i, p in enumerate(theirs.parameters()):
            p += torch.from_numpy(0.2 * array(*p.shape, seed=i)).to(p.dtype)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    ours.load_state_dict(theirs.state_dict())
    return ours


# ---- the function --------------------------------------------------------------------------------

# (leading axes, queries, keys, options, mask)
DOT_PRODUCTS: list[tuple[tuple[int, ...], int, int, dict[str, Any], np.ndarray | None]] = [
    ((2, 3), 4, 4, {}, None),
    ((2, 3), 4, 4, {"is_causal": True}, None),
    ((2, 3), 4, 6, {"is_causal": True, "scale": 0.7}, None),
    ((2, 3), 6, 4, {"is_causal": True}, None),
    ((2, 3), 4, 5, {}, mask(4, 5)),
    ((2, 3), 4, 5, {}, mask(2, 1, 4, 5)),
    ((2, 3), 4, 5, {}, mask(2, 3, 1, 5)),
    ((2, 3), 4, 5, {}, floats(mask(2, 3, 4, 5))),
    ((), 4, 5, {}, None),
    ((), 4, 5, {}, mask(4, 5)),
    ((3,), 4, 4, {"is_causal": True}, None),
    ((3,), 4, 5, {}, floats(mask(3, 4, 5))),
    ((2, 2, 3), 4, 5, {}, mask(2, 1, 1, 4, 5)),
]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", DOT_PRODUCTS, ids=lambda c: f"{c[:4]}".replace(" ", ""))
def test_scaled_dot_product_attention(case: Any, dtype: str) -> None:
    lead, t, s, options, given = case
    inputs = [array(*lead, t, 8), array(*lead, s, 8, seed=1), array(*lead, s, 5, seed=2)]
    masks = {} if given is None else {"attn_mask": given}
    compare(
        F.scaled_dot_product_attention, TF.scaled_dot_product_attention, inputs, masks, dtype,
        **options,
    )  # fmt: skip


def test_grouped_queries() -> None:
    inputs = [array(2, 6, 4, 8), array(2, 2, 5, 8, seed=1), array(2, 2, 5, 8, seed=2)]
    compare(
        F.scaled_dot_product_attention, TF.scaled_dot_product_attention, inputs, {}, "f64",
        enable_gqa=True,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_a_query_that_sees_no_key_gets_zero_and_no_nan(kind: str) -> None:
    allowed = mask(4, 5)
    allowed[2] = False
    given = allowed if kind == "bool" else floats(allowed)
    q, k, v = (nir.Tensor(array(1, 2, n, 3), requires_grad=True) for n in (4, 5, 5))
    out = F.scaled_dot_product_attention(q, k, v, nir.Tensor(given))
    out.sum().backward()
    assert (out.numpy()[:, :, 2] == 0).all() and (out.numpy()[:, :, 1] != 0).all()
    assert all(np.isfinite(x.grad.numpy()).all() for x in (q, k, v))
    assert (q.grad.numpy()[:, :, 2] == 0).all()


def test_a_float_mask_has_a_gradient() -> None:
    q, k, v, m = array(2, 4, 3), array(2, 5, 3, seed=1), array(2, 5, 3, seed=2), array(4, 5, seed=4)
    ours, theirs = nir.Tensor(m, requires_grad=True), torch.from_numpy(m.copy()).requires_grad_()
    (F.scaled_dot_product_attention(*map(nir.Tensor, (q, k, v)), ours) ** 2).sum().backward()
    out = TF.scaled_dot_product_attention(*map(torch.from_numpy, (q, k, v)), theirs)
    (out**2).sum().backward()
    np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), 1e-11, 1e-11)


def test_dropout_of_the_weights() -> None:
    q, k, v = nir.zeros(1, 1, 200, 4), nir.zeros(1, 1, 300, 4), nir.ones(1, 1, 300, 1)
    draw = nir.Generator().manual_seed(0)
    out = F.scaled_dot_product_attention(q, k, v, dropout_p=0.25, generator=draw).numpy()
    kept = out * 300 * 0.75  # the keys kept for each query
    np.testing.assert_allclose(kept, kept.round(), atol=1e-3)
    assert abs(kept.mean() - 225) < 1.5 and kept.std() > 3
    again = nir.Generator().manual_seed(0)
    np.testing.assert_array_equal(
        F.scaled_dot_product_attention(q, k, v, dropout_p=0.25, generator=again).numpy(), out
    )


# ---- MultiheadAttention --------------------------------------------------------------------------

T, S, N, E, H = 4, 6, 3, 8, 2
CAUSAL = ~np.tril(np.ones((T, T), bool))
HIDDEN = {"attn_mask": ~mask(T, S), "key_padding_mask": ~mask(N, S, seed=5)}
# (kind, options of the layer, masks, options of the call)
HEADS: list[tuple[str, dict[str, Any], dict[str, np.ndarray], dict[str, Any]]] = [
    ("self", {}, {}, {}),
    ("self", {"batch_first": True}, {}, {"need_weights": False}),
    ("self", {"bias": False}, {"attn_mask": CAUSAL}, {"average_attn_weights": False}),
    ("self", {}, {"attn_mask": CAUSAL}, {"is_causal": True, "need_weights": False}),
    ("self", {"batch_first": True}, {"attn_mask": ~mask(N * H, T, T)}, {}),
    ("cross", {}, HIDDEN, {}),
    ("cross", {"batch_first": True}, HIDDEN, {"need_weights": False}),
    ("cross", {}, {k: floats(~m) for k, m in HIDDEN.items()}, {}),
    ("memory", {"bias": False}, {}, {"need_weights": False}),
    ("memory", {"batch_first": True}, {"key_padding_mask": HIDDEN["key_padding_mask"]}, {}),
    ("cross", {"kdim": 5, "vdim": 7}, {}, {}),
    ("cross", {"kdim": 5, "vdim": 7, "bias": False, "batch_first": True}, HIDDEN, {}),
]


def sequences(kind: str, options: dict[str, Any], batched: bool = True) -> list[np.ndarray]:
    sizes = [(T, E), (S, options.get("kdim", E)), (S, options.get("vdim", E))]
    shapes = [(N, t, e) if options.get("batch_first") else (t, N, e) for t, e in sizes]
    q, k, v = (array(*s, seed=i) for i, s in enumerate(shapes if batched else sizes))
    return {"self": [q, q, q], "memory": [q, k, k], "cross": [q, k, v]}[kind]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", HEADS, ids=[str(i) for i in range(len(HEADS))])
def test_multihead_attention(case: Any, dtype: str) -> None:
    kind, options, masks, call = case
    ours, theirs = twins("MultiheadAttention", E, H, dtype=dtype, **options)
    compare(ours, theirs, sequences(kind, options), masks, dtype, **call)
    # Dropout is off in evaluation.
    ours, theirs = twins("MultiheadAttention", E, H, dropout=0.5, dtype=dtype, **options)
    compare(ours.eval(), theirs.eval(), sequences(kind, options), masks, dtype, **call)


@pytest.mark.parametrize("batch_first", [False, True])
def test_multihead_attention_without_a_batch(batch_first: bool) -> None:
    ours, theirs = twins("MultiheadAttention", E, H, batch_first=batch_first, dtype="f64")
    compare(ours, theirs, sequences("self", {}, False), {"attn_mask": CAUSAL}, "f64")
    hidden = {"key_padding_mask": HIDDEN["key_padding_mask"][0]}
    compare(ours.eval(), theirs.eval(), sequences("cross", {}, False), hidden, "f64")


def test_is_causal_without_a_mask_is_the_causal_mask() -> None:
    layer = nn.MultiheadAttention(E, H)
    x = nir.Tensor(array(T, N, E), dtype="f32")
    one, _ = layer(x, x, x, is_causal=True)
    two, _ = layer(x, x, x, attn_mask=nir.Tensor(CAUSAL))
    np.testing.assert_allclose(one.numpy(), two.numpy(), 1e-5, 1e-6)


def test_dropout_in_training_changes_from_call_to_call() -> None:
    nir.manual_seed(0)
    layer, x = nn.MultiheadAttention(E, H, dropout=0.5), nir.Tensor(array(T, N, E), dtype="f32")
    one, two = (layer(x, x, x)[0].numpy() for _ in range(2))
    assert (one != two).any()
    np.testing.assert_array_equal(*(layer.eval()(x, x, x)[0].numpy() for _ in range(2)))


# ---- transformer layers --------------------------------------------------------------------------

STYLES: list[dict[str, Any]] = [
    {},
    {"norm_first": True, "activation": "gelu", "batch_first": True},
    {"bias": False, "layer_norm_eps": 1e-3},
]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("style", STYLES, ids=str)
def test_encoder_layer(style: dict[str, Any], dtype: str) -> None:
    args = ("TransformerEncoderLayer", E, H, 12)
    masks = {"src_mask": CAUSAL, "src_key_padding_mask": HIDDEN["key_padding_mask"][:, :T]}
    x = sequences("self", style)[:1]
    ours, theirs = twins(*args, dropout=0.0, dtype=dtype, **style)
    compare(ours, theirs, x, {}, dtype)
    ours, theirs = twins(*args, dropout=0.4, dtype=dtype, **style)
    compare(ours.eval(), theirs.eval(), x, masks, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("style", STYLES, ids=str)
def test_decoder_layer(style: dict[str, Any], dtype: str) -> None:
    args = ("TransformerDecoderLayer", E, H, 12)
    masks = {
        "tgt_mask": CAUSAL,
        "memory_mask": HIDDEN["attn_mask"],
        "tgt_key_padding_mask": HIDDEN["key_padding_mask"][:, :T],
        "memory_key_padding_mask": HIDDEN["key_padding_mask"],
    }
    x = sequences("memory", style)[:2]
    ours, theirs = twins(*args, dropout=0.0, dtype=dtype, **style)
    compare(ours, theirs, x, masks, dtype)
    ours, theirs = twins(*args, dropout=0.4, dtype=dtype, **style)
    compare(ours.eval(), theirs.eval(), x, {}, dtype)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor:UserWarning")
def test_stacks() -> None:
    def encoder(lib: Any, **kw: Any) -> Any:
        layer = lib.TransformerEncoderLayer(E, H, 12, dropout=0.0, **kw)
        return lib.TransformerEncoder(layer, 3, norm=lib.LayerNorm(E, **kw))

    def decoder(lib: Any, **kw: Any) -> Any:
        layer = lib.TransformerDecoderLayer(E, H, 12, dropout=0.0, batch_first=True, **kw)
        return lib.TransformerDecoder(layer, 2)

    for make, inputs, masks in (
        (encoder, sequences("self", {})[:1], {"mask": CAUSAL}),
        (decoder, sequences("memory", {"batch_first": True})[:2], {"tgt_mask": CAUSAL}),
    ):
        theirs = make(torch.nn, dtype=torch.float64)
        ours = load(make(nn, dtype="f64"), theirs)
        compare(ours, theirs, inputs, masks, "f64")
    # Layers of a stack are copies, not one layer used again.
    first, second = nn.TransformerEncoder(nn.TransformerEncoderLayer(E, H), 2).layers
    assert first.linear1.weight is not second.linear1.weight


def test_activation_may_be_a_function() -> None:
    theirs = torch.nn.TransformerEncoderLayer(E, H, 12, 0.0, TF.silu, dtype=torch.float64)
    ours = load(nn.TransformerEncoderLayer(E, H, 12, 0.0, F.silu, dtype="f64"), theirs)
    compare(ours, theirs, [array(T, N, E)], {}, "f64")


def test_training_step_compiles_for_every_batch_size() -> None:
    """A causal encoder layer and its gradients, compiled, beside the interpreter."""
    layer = nn.TransformerEncoderLayer(E, H, 16, dropout=0.0, batch_first=True, norm_first=True)

    def step(x: nir.Tensor) -> Any:
        layer(x, is_causal=True).square().mean().backward()
        return [p.grad for p in layer.parameters()]

    graph = nir.trace(step, nir.spec(f"f32[B,5,{E}]"), state=[layer])
    weights = [p.numpy() for p in layer.parameters()]
    program = compiled(graph)
    for batch in (1, 4):
        inputs = [array(batch, 5, E, seed=batch).astype(np.float32), *weights]
        found = outputs(program, inputs)
        assert close(graph, inputs, reference(graph, inputs), found) is None


# ---- positions -----------------------------------------------------------------------------------


def test_sinusoidal_positions() -> None:
    for dim in (6, 7):
        layer = nn.SinusoidalPositionalEmbedding(50, dim, batch_first=True, dtype="f64")
        assert list(layer.state_dict()) == [] and list(layer.parameters()) == []
        got = layer(nir.zeros(2, 50, dim, dtype="f64")).numpy()
        for position in (0, 1, 49):
            for feature in range(dim):
                angle = position / 10000 ** (feature // 2 * 2 / dim)
                want = (math.cos if feature % 2 else math.sin)(angle)
                assert abs(got[:, position, feature] - want).max() < 1e-12


def test_learned_positions() -> None:
    layer = nn.LearnedPositionalEmbedding(5, 4, dtype="f64")
    x = array(3, 2, 4)
    out = layer(nir.Tensor(x))
    np.testing.assert_allclose(out.numpy(), x + layer.weight.numpy()[:3, None])
    out.sum().backward()
    np.testing.assert_array_equal(layer.weight.grad.numpy()[:, 0], [2, 2, 2, 0, 0])


def test_positions_of_symbolic_length() -> None:
    layer = nn.LearnedPositionalEmbedding(4, 2, batch_first=True)
    program = nir.compile(layer, nir.spec("f32[1,T,2]"))
    for length in (1, 4):
        got = program(np.zeros((1, length, 2), np.float32))
        np.testing.assert_array_equal(got[0], layer.weight.numpy()[:length])
    with pytest.raises(IndexRangeError, match="expected an index from -4 to 3, got 4"):
        program(np.zeros((1, 5, 2), np.float32))


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: nn.MultiheadAttention(6, 4), ShapeError, "embed_dim divisible by 4 heads, got 6"),
        (
            lambda: nn.MultiheadAttention(4, 2)(*[nir.zeros(3, 2, 5)] * 3),
            ShapeError,
            r"expected query, key and value \[T, N, E\] or \[T, E\] with features \(4, 4, 4\)",
        ),
        (
            lambda: nn.MultiheadAttention(4, 2)(*[nir.zeros(3, 2, 4)] * 3, nir.zeros(3, 3)),
            ShapeError,
            r"expected key_padding_mask \[2,3\], got f32\[3,3\]",
        ),
        (
            lambda: nn.MultiheadAttention(4, 2)(
                *[nir.zeros(3, 2, 4)] * 3, attn_mask=nir.zeros(2, 3)
            ),
            ShapeError,
            r"expected attn_mask \[3,3\] or \[4,3,3\], got f32\[2,3\]",
        ),
        (
            lambda: F.scaled_dot_product_attention(
                *[nir.zeros(1, 2, 3, 4)] * 3, nir.zeros(3, 3, dtype="i64")
            ),
            DTypeError,
            r"expected a mask of bool or float, got i64\[3,3\]",
        ),
        (
            lambda: F.scaled_dot_product_attention(
                nir.zeros(2, 3, 4), nir.zeros(1, 3, 4), nir.zeros(1, 3, 4)
            ),
            ShapeError,
            "leading axes differ: query",
        ),
        (
            lambda: nn.TransformerEncoderLayer(4, 2, activation="tanh"),
            NirError,
            "expected activation 'relu', 'gelu' or a function, got 'tanh'",
        ),
        (
            lambda: nn.LearnedPositionalEmbedding(4, 2)(nir.zeros(5, 1, 2)),
            ShapeError,
            r"expected \[T, N, D\] with T <= 4 and D = 2",
        ),
    ],
)
def test_errors(call: Callable[[], Any], kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        call()
