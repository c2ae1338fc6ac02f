"""The object cache: hits, damage, bounds, and processes that share it or die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nir.runtime import ObjectCache, object_cache
from nir.runtime.cache import key_of

ROOT = Path(__file__).resolve().parent.parent


def parts(kernel: str = "define k", isa: str = "avx512", version: str = "1") -> dict[str, str]:
    return {"kernel": kernel, "isa": isa, "codegen": version}


def files(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def test_what_is_stored_is_found_again(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path / "deep" / "cache")
    assert cache.lookup(parts()) is None
    cache.store(parts(), b"blob")
    assert cache.lookup(parts()) == b"blob"
    assert ObjectCache(cache.directory).lookup(parts()) == b"blob"
    for other in (parts("define l"), parts(isa="avx2"), parts(version="2")):
        assert cache.lookup(other) is None
    assert (cache.stats.hits, cache.stats.misses, cache.stats.stored) == (1, 4, 1)
    cache.store(parts(), b"")
    assert cache.lookup(parts()) == b""
    cache.clear()
    assert cache.lookup(parts()) is None and cache.size() == 0


def test_keys_depend_on_every_part_and_on_nothing_else() -> None:
    assert key_of({"a": "1", "b": "2"}) == key_of({"b": "2", "a": "1"})
    keys = {
        key_of(p) for p in ({"a": "12"}, {"a1": "2"}, {"a": "1", "b": "2"}, {"a": "2", "b": "1"})
    }
    assert len(keys) == 4


def test_a_miss_says_which_part_differs(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path)
    assert cache.why(parts()).endswith("is empty")
    cache.store(parts(), b"blob")
    assert cache.why(parts()) == "the entry is there"
    assert cache.why(parts(isa="avx2")) == "the entry most alike differs in isa"
    assert cache.why(parts(version="2")) == "the entry most alike differs in codegen"
    assert cache.why(parts("define l", "avx2")) == "the entry most alike differs in isa, kernel"
    assert cache.why({**parts(), "more": "1"}) == "the entry most alike differs in more"
    cache.store(parts(isa="avx2"), b"blob")
    assert cache.why(parts("define l", "avx2")) == "the entry most alike differs in kernel"


def test_damaged_entries_are_deleted_and_made_anew(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path)
    cache.store(parts(), b"blob" * 10)
    (entry,) = tmp_path.iterdir()
    good = entry.read_bytes()
    damaged = [good[:n] for n in range(len(good))]
    damaged += [good[:i] + bytes([good[i] ^ 4]) + good[i + 1 :] for i in range(len(good))]
    for data in [*damaged, b"", os.urandom(1000)]:
        entry.write_bytes(data)
        assert cache.lookup(parts()) is None
        assert files(tmp_path) == []
    assert cache.stats.damaged == len(damaged) + 2
    cache.store(parts(), b"blob")
    assert cache.lookup(parts()) == b"blob"


def test_the_entries_used_longest_ago_go_first(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path, limit=20_000)
    old = time.time() - 10_000
    for i in range(10):
        cache.store(parts(str(i)), bytes(1500))
        os.utime(cache._path(parts(str(i))), (old + i, old + i))
    assert cache.lookup(parts("0")) is not None  # used now: the youngest
    for i in range(10, 16):
        cache.store(parts(str(i)), bytes(1500))
    assert cache.size() <= 20_000
    assert cache.lookup(parts("0")) is not None
    assert cache.lookup(parts("1")) is None
    assert cache.lookup(parts("15")) is not None
    cache.store(parts("huge"), bytes(30_000))
    assert cache.lookup(parts("huge")) is None and cache.size() <= 20_000


@pytest.mark.parametrize("kind", ["file", "no permission", "missing parent"])
def test_a_folder_that_cannot_be_used_is_an_empty_cache(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "cache"
    if kind == "file":
        directory.write_text("not a folder")
    elif kind == "missing parent":
        (tmp_path / "file").write_text("")
        directory = tmp_path / "file" / "cache"
    else:
        directory.mkdir()

        def refuse(*_: object) -> int:
            raise PermissionError("read-only")

        monkeypatch.setattr(Path, "write_bytes", refuse)
    cache = ObjectCache(directory)
    cache.store(parts(), b"blob")
    assert cache.lookup(parts()) is None
    assert cache.stats.stored == 0
    assert "empty" in cache.why(parts())


def test_a_read_only_folder_still_serves_hits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ObjectCache(tmp_path).store(parts(), b"blob")

    def refuse(*_: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(os, "utime", refuse)
    assert ObjectCache(tmp_path).lookup(parts()) == b"blob"


WORKER = """
import random, sys
from pathlib import Path
from nir.runtime.cache import ObjectCache
cache = ObjectCache(Path(sys.argv[1]), limit=60_000)
rng = random.Random(int(sys.argv[2]))
print("ready", flush=True)
for i in range(int(sys.argv[3])):
    n = rng.randrange(60)
    p = {"kernel": str(n), "isa": "plain"}
    found = cache.lookup(p)
    assert found is None or found == bytes([n]) * (100 * n), (n, len(found))
    if found is None:
        cache.store(p, bytes([n]) * (100 * n))
"""


def start(directory: Path, seed: int, rounds: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(directory), str(seed), str(rounds)],
        cwd=ROOT, stdout=subprocess.PIPE,
    )  # fmt: skip


def test_processes_share_a_cache(tmp_path: Path) -> None:
    workers = [start(tmp_path, seed, 2000) for seed in range(3)]
    assert [w.wait() for w in workers] == [0, 0, 0]
    for w in workers:
        assert w.stdout is not None
        w.stdout.close()
    assert ObjectCache(tmp_path).size() <= 120_000
    assert not [f for f in files(tmp_path) if f.startswith("tmp-")]


def test_a_process_that_is_killed_leaves_no_half_entry(tmp_path: Path) -> None:
    for seed in range(6):
        worker = start(tmp_path, seed, 10**9)
        assert worker.stdout is not None
        worker.stdout.readline()
        time.sleep(0.05 + 0.02 * seed)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        worker.stdout.close()
    cache = ObjectCache(tmp_path, limit=60_000)
    for n in range(60):
        found = cache.lookup({"kernel": str(n), "isa": "plain"})
        assert found is None or found == bytes([n]) * (100 * n)
    assert cache.stats.damaged == 0
    # What dead processes left is deleted once it is old.
    (tmp_path / "tmp-1-dead").write_bytes(b"half")
    old = time.time() - 7200
    for name in files(tmp_path):
        if name.startswith("tmp-"):
            os.utime(tmp_path / name, (old, old))
    cache.store(parts(), b"blob")
    assert not [f for f in files(tmp_path) if f.startswith("tmp-")]


def test_the_folder_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIR_CACHE_DIR", str(tmp_path))
    assert object_cache().directory == tmp_path
    assert object_cache() is object_cache()
