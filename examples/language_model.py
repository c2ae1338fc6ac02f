"""Trains a language model and lets it write.

    python -m examples.language_model --data FOLDER --model lstm   words of Penn Treebank
    python -m examples.language_model --text FILE --model lstm     characters of any text

FOLDER holds train.txt, or without it valid.txt to train on, and test.txt to test on. Of FILE the
last tenth is for the test. --model is rnn, lstm or transformer; --short trains a small model on a
part of the text, in seconds.

Training is truncated backpropagation through time: a batch goes on in the text where the batch
before it ended, so a recurrent model takes over its state and gradients stop there. Perplexity is
exp of the mean loss, the number of symbols that a uniform guess would choose between.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import nir
from nir import data, nn
from nir.nn import functional as F

# What a model carries from one segment of text to the next: an RNN h, an LSTM h and c, each
# f32[layers,B,dim]; a transformer nothing.
State = tuple[nir.Tensor, ...]


@dataclass(frozen=True)
class Size:
    """A model and how it is trained."""

    dim: int  # of embeddings and hidden states
    layers: int
    drop: float
    batch: int
    steps: int  # of a segment; a transformer sees no more than these
    rate: float
    epochs: int
    symbols: int = 10**9  # at most, from the end of the training text; of the test text a quarter


FULL = {
    "words": Size(200, layers=2, drop=0.5, batch=10, steps=35, rate=2e-3, epochs=8),
    "characters": Size(200, layers=2, drop=0.1, batch=32, steps=64, rate=5e-3, epochs=3),
}
SHORT = {
    "words": Size(64, layers=1, drop=0.2, batch=10, steps=20, rate=1e-2, epochs=2, symbols=40_000),
    "characters": Size(96, layers=1, drop=0.0, batch=32, steps=64, rate=5e-3, epochs=1,
                       symbols=100_000),
}  # fmt: skip
# What a text goes on from unless told, and how long it is.
PROMPTS = {"words": ("<eos>", 100), "characters": ("\n", 400)}


class Recurrent(nn.Module):
    """i64[T,B] and a state -> logits f32[T,B,symbols] and the state after the last symbol."""

    def __init__(self, kind: type[nn.Module], symbols: int, size: Size) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, size.dim)
        self.drop = nn.Dropout(size.drop)
        self.body = kind(size.dim, size.dim, size.layers, dropout=size.drop)
        self.head = nn.Linear(size.dim, symbols)
        self.shape, self.states = (size.layers, size.dim), 2 if kind is nn.LSTM else 1

    def forward(self, x: nir.Tensor, state: State) -> tuple[nir.Tensor, State]:
        hx = state if self.states == 2 else state[0]
        y, after = self.body(self.drop(self.embed(x)), hx)
        return self.head(self.drop(y)), after if self.states == 2 else (after,)

    def start(self, batch: int) -> State:
        """The state before the first symbol."""
        layers, dim = self.shape
        return (nir.zeros(layers, batch, dim),) * self.states


class Transformer(nn.Module):
    """i64[T,B] -> logits f32[T,B,symbols], each from the symbols up to its own. The state is ()."""

    def __init__(self, symbols: int, size: Size) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, size.dim)
        self.positions = nn.LearnedPositionalEmbedding(size.steps, size.dim, size.drop)
        layer = nn.TransformerEncoderLayer(
            size.dim, 4, 4 * size.dim, size.drop, activation="gelu", norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, size.layers, nn.LayerNorm(size.dim))
        self.head = nn.Linear(size.dim, symbols)

    def forward(self, x: nir.Tensor, state: State) -> tuple[nir.Tensor, State]:
        return self.head(self.body(self.positions(self.embed(x)), is_causal=True)), state

    def start(self, batch: int) -> State:
        return ()


MODELS = {
    "rnn": lambda symbols, size: Recurrent(nn.RNN, symbols, size),
    "lstm": lambda symbols, size: Recurrent(nn.LSTM, symbols, size),
    "transformer": Transformer,
}


# ---- training ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Epoch:
    """Mean losses in nats for each symbol."""

    train_loss: float
    test_loss: float
    seconds: float  # of training


def train(
    model: Recurrent | Transformer,
    train_set: data.SequenceBatches,
    test_set: data.SequenceBatches,
    size: Size,
) -> Iterator[Epoch]:
    """Yields what each epoch came to."""
    optimizer = nir.optim.Adam(model.parameters(), lr=size.rate)
    schedule = nir.optim.CosineAnnealingLR(optimizer, T_max=size.epochs)
    # T stays symbolic: the last segment of a text is shorter.
    segment = f"i64[T,{size.batch}]"
    specs = (segment, segment, model.start(size.batch))

    def loss_of(x: nir.Tensor, y: nir.Tensor, state: State) -> tuple[nir.Tensor, State]:
        logits, after = model(x, state)
        return F.cross_entropy(logits.flatten(0, 1), y.flatten()), after

    @nir.jit(state=[model, optimizer], specs=specs)
    def step(x: nir.Tensor, y: nir.Tensor, state: State) -> tuple[nir.Tensor, State]:
        optimizer.zero_grad()
        loss, after = loss_of(x, y, state)
        loss.backward()
        nir.optim.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach(), tuple(s.detach() for s in after)

    evaluate = nir.jit(loss_of, state=[model], specs=specs)

    for _ in range(size.epochs):
        start = time.perf_counter()
        train_loss = mean_loss(step, train_set, model.train().start(size.batch))
        seconds = time.perf_counter() - start
        test_loss = mean_loss(evaluate, test_set, model.eval().start(size.batch))
        yield Epoch(train_loss, test_loss, seconds)
        schedule.step()


def mean_loss(function: Callable[..., Any], batches: data.SequenceBatches, state: State) -> float:
    """The mean of ``function``'s loss over a text, with the state carried along."""
    total = seen = 0
    for x, y in batches:
        loss, state = function(x, y, state)
        total, seen = total + loss.item() * len(y), seen + len(y)
    return total / seen


# ---- writing -------------------------------------------------------------------------------------


def draw(logits: nir.Tensor, temperature: nir.Tensor) -> nir.Tensor:
    """A symbol from softmax(logits / temperature), i64[], of logits f32[symbols].

    The largest of the logits plus Gumbel noise is distributed so (Gumbel, 1954).
    """
    noise = -(-nir.rand(*logits.shape).log()).log()
    return (logits / temperature + noise).argmax(0)


def write_recurrent(
    model: Recurrent, prompt: np.ndarray, length: int, temperature: float
) -> list[int]:
    """``length`` symbols after ``prompt``: one compiled step for each, which carries the state."""
    state, warmth = model.start(1), nir.tensor(temperature)

    @nir.jit(state=[model], specs=("i64[T,1]", state, warmth))
    def step(x: nir.Tensor, state: State, warmth: nir.Tensor) -> tuple[nir.Tensor, State]:
        logits, after = model(x, state)
        return draw(logits[-1, 0], warmth).reshape(1, 1), after

    x, out = nir.tensor(prompt.reshape(-1, 1)), []
    for _ in range(length):
        x, state = step(x, state, warmth)
        out.append(x.item())
    return out


def write_transformer(
    model: Transformer, prompt: np.ndarray, length: int, temperature: float
) -> list[int]:
    """``length`` symbols after ``prompt``, each from a window of the last ones before it."""
    window = np.zeros((model.positions.max_length, 1), np.int64)
    warmth = nir.tensor(temperature)

    @nir.jit(state=[model])
    def step(window: nir.Tensor, last: nir.Tensor, warmth: nir.Tensor) -> nir.Tensor:
        logits, _ = model(window, ())
        return draw(logits[:, 0].index_select(0, last)[0], warmth)

    text = prompt.tolist()
    for _ in range(length):
        seen = text[-len(window) :]
        window[: len(seen), 0] = seen  # no symbol sees what stands in the window after it
        text.append(step(window, np.array([len(seen) - 1]), warmth).item())
    return text[len(prompt) :]


WRITERS = {"rnn": write_recurrent, "lstm": write_recurrent, "transformer": write_transformer}


# ---- the program ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """A text in two parts, i64[N] each, and how its symbols are written."""

    unit: str
    train: np.ndarray
    test: np.ndarray
    vocabulary: data.Vocabulary
    split: Callable[[str], Sequence[str]]
    decode: Callable[[list[int]], str]


def load_words(folder: str) -> Text:
    """Penn Treebank from ``folder``."""
    name = "train" if any(Path(folder).glob("*train.txt*")) else "valid"
    ptb = data.PTB(folder, (name, "test"))
    return Text("words", ptb[name], ptb["test"], ptb.vocabulary, str.split, ptb.decode)


def load_characters(file: str) -> Text:
    text = data.CharText(file)
    parts = text["train"], text["valid"]
    return Text("characters", *parts, text.vocabulary, list, text.decode)


def main(argv: Sequence[str] | None = None) -> tuple[list[Epoch], str]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("-d", "--data", help="a folder with Penn Treebank's text files")
    source.add_argument("-t", "--text", help="a text file, to be read as characters")
    parser.add_argument("-m", "--model", choices=MODELS, default="lstm")
    parser.add_argument("-e", "--epochs", type=int)
    parser.add_argument("-s", "--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="a small model, a part of the text")
    parser.add_argument("-p", "--prompt", help="what the text written at the end goes on from")
    parser.add_argument("-n", "--length", type=int, help="how many symbols to write")
    parser.add_argument("--temperature", type=float, default=0.8)
    args = parser.parse_args(argv)

    text = load_words(args.data) if args.data else load_characters(args.text)
    size = (SHORT if args.short else FULL)[text.unit]
    size = replace(size, epochs=args.epochs or size.epochs)
    nir.manual_seed(args.seed)
    model = MODELS[args.model](len(text.vocabulary), size)
    train_set, test_set = (
        data.SequenceBatches(part, size.batch, size.steps)
        for part in (text.train[-size.symbols :], text.test[: size.symbols // 4])
    )
    count = sum(p.numel() for p in model.parameters())
    print(f"{args.model}, {count:,} parameters, {len(text.vocabulary):,} different {text.unit}: "
          f"{train_set.rows.size:,} to train on, {test_set.rows.size:,} to test")  # fmt: skip
    history = []
    for epoch in train(model, train_set, test_set, size):
        history.append(epoch)
        print(
            f"epoch {len(history)}/{size.epochs}  "
            f"train perplexity {math.exp(epoch.train_loss):.2f}  "
            f"test perplexity {math.exp(epoch.test_loss):.2f}  {epoch.seconds:.1f} s  "
            f"{train_set.rows.size / epoch.seconds:,.0f} {text.unit}/s",
            flush=True,
        )

    prompt, length = PROMPTS[text.unit]
    start = text.vocabulary.encode(text.split(args.prompt or prompt))
    write = WRITERS[args.model]
    written = write(model.eval(), start, args.length or length, args.temperature)
    shown = text.decode([*start, *written])
    print(shown)
    return history, shown


if __name__ == "__main__":
    main()
