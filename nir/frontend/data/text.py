"""Text as numbers: vocabularies, word- and character-level corpora, and batches for training.

ptb = nir.data.PTB("ptb")
for x, y in ptb.batches("train", batch_size=20, steps=35):  # i64[T,B] each
    ...
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nir.errors import IndexRangeError, NirError
from nir.frontend.data.readers import find_file, read_file
from nir.frontend.tensor import Tensor

_SPLITS = ("train", "valid", "test")


class Vocabulary:
    """Symbols (words or characters) and their numbers, which are given in the order of adding."""

    def __init__(self, symbols: Iterable[str] = (), unknown: str | None = None) -> None:
        """``unknown``: the symbol that stands for all that are not in the vocabulary."""
        self.symbols: list[str] = []
        self._numbers: dict[str, int] = {}
        self.unknown = unknown
        for symbol in symbols:
            self.add(symbol)

    def add(self, symbol: str) -> int:
        """The symbol's number; a new one if it has none."""
        number = self._numbers.setdefault(symbol, len(self.symbols))
        if number == len(self.symbols):
            self.symbols.append(symbol)
        return number

    def __len__(self) -> int:
        return len(self.symbols)

    def __contains__(self, symbol: str) -> bool:
        return symbol in self._numbers

    def __getitem__(self, symbol: str) -> int:
        """The symbol's number, or that of ``unknown``; NirError if the vocabulary has neither."""
        number = self._numbers.get(symbol)
        if number is None and self.unknown is not None:
            number = self._numbers.get(self.unknown)
        if number is None:
            raise NirError(f"{symbol!r} is none of the {len(self)} symbols of the vocabulary")
        return number

    def encode(self, symbols: Iterable[str]) -> np.ndarray:
        """The numbers, i64[N]; of a string, its characters'."""
        return np.fromiter((self[s] for s in symbols), np.int64)

    def decode(self, numbers: Any) -> list[str]:
        """The symbols of numbers (an array or Tensor, flattened). IndexRangeError out of range."""
        flat = np.asarray(numbers).reshape(-1)
        bad = flat[(flat < 0) | (flat >= len(self))]
        if len(bad):
            raise IndexRangeError(
                f"decode: expected numbers from 0 to {len(self) - 1}, got {bad[0]}"
            )
        return [self.symbols[i] for i in flat]


class SequenceBatches:
    """Batches (x, y) of i64[T,B] from one long sequence, y the symbols that follow those of x.

    The sequence is cut into ``batch_size`` pieces of equal length, one for each column (what is
    left over is dropped), and column b of a batch goes on where that of the batch before ended: a
    recurrent state may be carried along. T is ``steps``; the last batch has fewer unless
    ``drop_last``. Raises NirError where the sequence is too short.
    """

    def __init__(
        self, tokens: Any, batch_size: int, steps: int, *, drop_last: bool = False
    ) -> None:
        if batch_size < 1 or steps < 1:
            raise NirError(
                f"SequenceBatches: expected batch_size and steps of at least 1, "
                f"got {batch_size} and {steps}"
            )
        tokens = np.asarray(tokens)
        length = len(tokens) // batch_size
        if length < 2:
            raise NirError(
                f"SequenceBatches: expected at least {2 * batch_size} symbols for {batch_size} "
                f"columns, got {len(tokens)}"
            )
        columns = tokens[: length * batch_size].reshape(batch_size, length)
        self.rows = np.ascontiguousarray(columns.T)
        self.batch_size, self.steps, self.drop_last = batch_size, steps, drop_last

    def __len__(self) -> int:
        whole, rest = divmod(len(self.rows) - 1, self.steps)
        return whole + bool(rest and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in self.arrays():
            yield Tensor(x), Tensor(y)

    def arrays(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The batches as numpy arrays."""
        for i in range(len(self)):
            first = i * self.steps
            last = min(first + self.steps, len(self.rows) - 1)
            yield self.rows[first:last], self.rows[first + 1 : last + 1]


class _Corpus:
    """Parts of a text as arrays of numbers, by name."""

    vocabulary: Vocabulary

    def __init__(self, vocabulary: Vocabulary, parts: dict[str, np.ndarray]) -> None:
        self.vocabulary, self.parts = vocabulary, parts

    def __getitem__(self, part: str) -> np.ndarray:
        """The numbers of a part, i64[N]."""
        if part not in self.parts:
            raise NirError(
                f"{type(self).__name__}: expected a part out of {tuple(self.parts)}, got {part!r}"
            )
        return self.parts[part]

    def batches(
        self, part: str, batch_size: int, steps: int, *, drop_last: bool = False
    ) -> SequenceBatches:
        """Batches i64[T,B] of a part and of the symbols that follow."""
        return SequenceBatches(self[part], batch_size, steps, drop_last=drop_last)


class PTB(_Corpus):
    """Penn Treebank, or any text in its form: words between blanks, one sentence a line.

    Reads {split}.txt or ptb.{split}.txt, each with or without .gz, from ``folder``. Every sentence
    ends in "<eos>"; blank lines are none. The vocabulary is that of the first of ``splits``, in
    order of appearance; a word of the others that it lacks becomes "<unk>". ``max_lines`` reads the
    start of each file only. Raises NirError for a file that is missing, empty or not UTF-8, and for
    an unknown word where there is no "<unk>".
    """

    end, unknown = "<eos>", "<unk>"

    def __init__(
        self,
        folder: str | Path,
        splits: Sequence[str] = _SPLITS,
        max_lines: int | None = None,
    ) -> None:
        if not splits or not set(splits) <= set(_SPLITS):
            raise NirError(f"PTB: expected splits out of {_SPLITS}, got {tuple(splits)}")
        vocabulary = Vocabulary()
        parts = {}
        for i, split in enumerate(splits):
            path = find_file(folder, f"{split}.txt", f"ptb.{split}.txt")
            words = _words(path, max_lines, self.end)
            if i == 0:
                vocabulary = Vocabulary(words, self.unknown)
            try:
                parts[split] = vocabulary.encode(words)
            except NirError as error:
                raise NirError(f"{path}: {error} of {splits[0]}, which has no '<unk>'") from None
        super().__init__(vocabulary, parts)

    def decode(self, numbers: Any) -> str:
        """Words with blanks between them, and a new line after each sentence."""
        words = self.vocabulary.decode(numbers)
        lines = " ".join(words).split(self.end)
        return "\n".join(line.strip() for line in lines)


class CharText(_Corpus):
    """A text file as characters: parts "train" and, of its last share ``valid``, "valid".

    The vocabulary is the sorted characters of the whole text. Raises NirError for a file that is
    missing, empty or not UTF-8.
    """

    def __init__(self, path: str | Path, valid: float = 0.1) -> None:
        if not 0 <= valid < 1:
            raise NirError(f"CharText: expected a share valid in [0, 1), got {valid}")
        text = _text(Path(path))
        vocabulary = Vocabulary(sorted(set(text)))
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        # Code points in order are symbols in order, so that a character's number is its rank.
        tokens = np.searchsorted(np.unique(codes), codes).astype(np.int64)
        cut = len(tokens) - int(len(tokens) * valid)
        super().__init__(vocabulary, {"train": tokens[:cut], "valid": tokens[cut:]})

    def encode(self, text: str) -> np.ndarray:
        """The numbers of the characters, i64[N]. NirError for one that the vocabulary lacks."""
        return self.vocabulary.encode(text)

    def decode(self, numbers: Any) -> str:
        """The characters of numbers (an array or Tensor, flattened)."""
        return "".join(self.vocabulary.decode(numbers))


def _words(path: Path, max_lines: int | None, end: str) -> list[str]:
    lines = _text(path).split("\n")[:max_lines]
    words = [word for line in lines if line.strip() for word in (*line.split(), end)]
    if not words:
        raise NirError(f"{path}: expected words, got only blank lines")
    return words


def _text(path: Path) -> str:
    raw = read_file(path)
    if not raw:
        raise NirError(f"{path}: expected text, got an empty file")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NirError(
            f"{path}: expected UTF-8 text, got byte {raw[error.start]:#04x} at {error.start}"
        ) from None
