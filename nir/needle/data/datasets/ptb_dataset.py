"""Penn Treebank, or any text of one sentence a line."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from nir.needle.autograd import Tensor


class Dictionary:
    """Words and their ids, in the order in which they were first seen."""

    def __init__(self) -> None:
        self.word2idx: dict[str, int] = {}
        self.idx2word: list[str] = []

    def add_word(self, word: str) -> int:
        """The id of ``word``, a new one if it is new."""
        if word not in self.word2idx:
            self.word2idx[word] = len(self.idx2word)
            self.idx2word.append(word)
        return self.word2idx[word]

    def __len__(self) -> int:
        return len(self.idx2word)


class Corpus:
    """The ids of the words in ``train.txt`` and ``test.txt`` of a folder."""

    def __init__(self, base_dir: str, max_lines: int | None = None) -> None:
        self.dictionary = Dictionary()
        self.train = self.tokenize(os.path.join(base_dir, "train.txt"), max_lines)
        self.test = self.tokenize(os.path.join(base_dir, "test.txt"), max_lines)

    def tokenize(self, path: str, max_lines: int | None = None) -> list[int]:
        """The ids of the words of a file, with <eos> at the end of each line."""
        ids = []
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file):
                if max_lines is not None and number >= max_lines:
                    break
                ids += [self.dictionary.add_word(w) for w in (*line.split(), "<eos>")]
        return ids


def batchify(data: Any, batch_size: int, device: Any, dtype: Any) -> np.ndarray:
    """(n, batch_size): each column a run of consecutive words; the remainder is left out."""
    count = len(data) // batch_size
    words = np.asarray(data[: count * batch_size], dtype=dtype)
    return words.reshape(batch_size, count).T


def get_batch(
    batches: np.ndarray, i: int, bptt: int, device: Any = None, dtype: Any = None
) -> tuple[Tensor, Tensor]:
    """(rows i to i + bptt, the rows one further on, flat), fewer at the end."""
    length = min(bptt, len(batches) - 1 - i)
    kind: dict[str, Any] = {"device": device, "dtype": dtype, "requires_grad": False}
    following = batches[i + 1 : i + 1 + length].reshape(-1)
    return Tensor(batches[i : i + length], **kind), Tensor(following, **kind)
