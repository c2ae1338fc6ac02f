"""PTB, character text, vocabularies, and batches of long sequences."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nir
from nir import data
from nir.errors import IndexRangeError, NirError

SHARED = Path(__file__).parents[2] / "shared" / "data"


def shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.txt").write_text(" the cat sat \n the <unk> sat down \n\n")
    (tmp_path / "ptb.valid.txt").write_text("the dog sat\n")
    (tmp_path / "test.txt.gz").write_bytes(gzip.compress(b"down the cat\n"))
    return tmp_path


# ---- vocabularies --------------------------------------------------------------------------------


def test_vocabulary() -> None:
    v = data.Vocabulary(["b", "a", "b"])
    assert v.symbols == ["b", "a"] and len(v) == 2 and "a" in v and "c" not in v
    assert v.add("c") == 2 and v.add("a") == 1 and v["c"] == 2
    assert v.encode("abc").tolist() == [1, 0, 2]
    assert v.decode(np.array([[1, 0], [2, 1]])) == ["a", "b", "c", "a"]
    assert v.decode(nir.tensor([2, 2])) == ["c", "c"]
    with pytest.raises(NirError, match="'d' is none of the 3 symbols"):
        v["d"]
    with pytest.raises(IndexRangeError, match="from 0 to 2, got 3"):
        v.decode([0, 3])
    with pytest.raises(IndexRangeError, match="from 0 to 2, got -1"):
        v.decode([-1])


def test_a_symbol_may_stand_for_the_unknown_ones() -> None:
    assert data.Vocabulary(["a", "?"], unknown="?").encode("abc").tolist() == [0, 1, 1]


# ---- corpora -------------------------------------------------------------------------------------


def test_ptb(folder: Path) -> None:
    ptb = data.PTB(folder)
    assert ptb.vocabulary.symbols == ["the", "cat", "sat", "<eos>", "<unk>", "down"]
    assert ptb["train"].tolist() == [0, 1, 2, 3, 0, 4, 2, 5, 3]
    assert ptb["valid"].tolist() == [0, 4, 2, 3]  # "dog" is unknown to the training split
    assert ptb["test"].tolist() == [5, 0, 1, 3]
    assert ptb["test"].dtype == np.int64
    assert ptb.decode(ptb["train"]) == "the cat sat\nthe <unk> sat down\n"
    assert data.PTB(folder, ["train"], max_lines=1)["train"].tolist() == [0, 1, 2, 3]
    assert data.PTB(folder, ["valid"]).vocabulary.symbols == ["the", "dog", "sat", "<eos>"]


def test_char_text(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("banana é\n", encoding="utf-8")
    text = data.CharText(path, valid=0.25)
    assert text.vocabulary.symbols == ["\n", " ", "a", "b", "n", "é"]
    assert text["train"].tolist() == [3, 2, 4, 2, 4, 2, 1] and text["valid"].tolist() == [5, 0]
    assert text.decode(text.encode("né a")) == "né a"
    assert text["valid"].dtype == np.int64
    assert len(data.CharText(path, valid=0)["train"]) == 9


# ---- batches -------------------------------------------------------------------------------------


def test_batches_are_contiguous_columns_and_next_symbols() -> None:
    batches = data.SequenceBatches(np.arange(23), batch_size=2, steps=4)  # 2 columns of 11
    assert len(batches) == 3
    found = list(batches.arrays())
    assert [x.tolist() for x, _ in found] == [
        [[0, 11], [1, 12], [2, 13], [3, 14]],
        [[4, 15], [5, 16], [6, 17], [7, 18]],
        [[8, 19], [9, 20]],
    ]
    for x, y in found:
        assert (y == x + 1).all()
    (x, y), *_ = batches
    assert isinstance(x, nir.Tensor) and x.type == y.type and str(x.type) == "i64[4,2]"
    even = data.SequenceBatches(np.arange(23), batch_size=2, steps=4, drop_last=True)
    assert len(even) == 2 and [x.shape for x, _ in even.arrays()] == [(4, 2), (4, 2)]
    exact = data.SequenceBatches(np.arange(9), batch_size=1, steps=4)
    assert len(exact) == 2 and [len(x) for x, _ in exact.arrays()] == [4, 4]


def test_batches_of_a_corpus(folder: Path) -> None:
    ptb = data.PTB(folder)
    (x, y), *rest = ptb.batches("train", batch_size=2, steps=3).arrays()
    assert not rest
    assert x.T.tolist() == [[0, 1, 2], [0, 4, 2]] and y.T.tolist() == [[1, 2, 3], [4, 2, 5]]


# ---- real data -----------------------------------------------------------------------------------


def test_penn_treebank() -> None:
    ptb = data.PTB(shared("ptb"), ("valid", "test"))
    words = 70390, 78669
    lines = 3370, 3761
    assert [len(ptb[s]) for s in ("valid", "test")] == [
        w + n for w, n in zip(words, lines, strict=True)
    ]
    end = ptb.vocabulary["<eos>"]
    assert [(ptb[s] == end).sum() for s in ("valid", "test")] == list(lines)
    assert ptb.vocabulary.symbols[:3] == ["consumers", "may", "want"]
    start = ptb.decode(ptb["valid"][:14])
    assert start == "consumers may want to move their telephones a little closer to the tv set"
    total = sum(x.size for x, _ in ptb.batches("valid", 20, 35).arrays())
    assert total == 20 * (len(ptb["valid"]) // 20 - 1)


def test_shakespeare() -> None:
    path = shared("tinyshakespeare") / "input.txt"
    text = data.CharText(path)
    raw = path.read_text()
    assert text.decode(np.concatenate([text["train"], text["valid"]])) == raw
    assert len(text.vocabulary) == 65 and len(text["valid"]) == len(raw) // 10
    assert text.decode(text["train"][:14]) == "First Citizen:"
    with pytest.raises(NirError, match="'é' is none of the 65 symbols"):
        text.encode("é")


# ---- errors --------------------------------------------------------------------------------------


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda p: data.PTB(p),
            r"expected a file train.txt or train.txt.gz or ptb.train.txt or .*, found none",
        ),
        (lambda p: data.PTB(p, ()), r"PTB: expected splits out of .*, got \(\)"),
        (lambda p: data.PTB(p, ("dev",)), r"PTB: expected splits out of .*, got \('dev',\)"),
        (
            lambda p: data.PTB(_write(p / "test.txt", b" \n\n").parent, ["test"]),
            r"test\.txt: expected words, got only blank lines",
        ),
        (
            lambda p: data.PTB(_write(p / "test.txt.gz", b"words").parent, ["test"]),
            r"test\.txt\.gz: expected a gzip file",
        ),
        (
            lambda p: (
                _write(p / "train.txt", b"a b"),
                data.PTB(_write(p / "test.txt", b"a c").parent, ["train", "test"]),
            ),
            r"test\.txt: 'c' is none of the 3 symbols of the vocabulary of train, which has no",
        ),
        (lambda p: data.CharText(p / "none.txt"), r"none\.txt: expected a file: No such file"),
        (
            lambda p: data.CharText(_write(p / "a.txt", b"")),
            r"a\.txt: expected text, got an empty file",
        ),
        (
            lambda p: data.CharText(_write(p / "a.txt", b"ab\xff")),
            r"a\.txt: expected UTF-8 text, got byte 0xff at 2",
        ),
        (lambda p: data.CharText(p, valid=1), r"expected a share valid in \[0, 1\), got 1"),
        (
            lambda p: data.CharText(_write(p / "a.txt", b"abc"))["test"],
            r"CharText: expected a part out of \('train', 'valid'\), got 'test'",
        ),
        (
            lambda p: data.SequenceBatches(np.arange(5), 3, 2),
            "expected at least 6 symbols for 3 columns, got 5",
        ),
        (lambda p: data.SequenceBatches([1, 2], 0, 2), "batch_size and steps of at least 1"),
    ],
)
def test_errors_name_the_file_and_what_is_wrong(
    call: Callable[[Path], Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(NirError, match=message):
        call(tmp_path)
