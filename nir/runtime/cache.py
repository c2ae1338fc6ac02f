"""The object cache: compiled kernels on disk, found again by what they were made from.

An entry is one file, named by the SHA-256 of its parts (names and texts: the kernel's IR, the ISA
level, versions). It is written under another name and renamed, so that readers and processes that
die half-way never meet half an entry; a checksum finds what the disk has damaged, and such an entry
is deleted and made anew. The folder is bounded: the entries used longest ago go first. A folder
that is missing or cannot be written is a cache that is always empty.

    file   "NIROBJ\\0\\1", CRC-32 of the rest u32, size of meta u32, meta, object
    meta   JSON: the SHA-256 of each part by its name
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import struct
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from nir import flags

_MAGIC = b"NIROBJ\0\1"
_HEADER = struct.Struct("<8sII")
_SUFFIX = ".nirobj"
_STALE_SECONDS = 3600.0  # a temporary file this old was left by a process that died
_KEPT = 0.8  # what a clean-up leaves of the limit
DEFAULT_LIMIT = 256 << 20


@dataclass(slots=True)
class CacheStats:
    """What happened in this process."""

    hits: int = 0
    misses: int = 0
    damaged: int = 0
    stored: int = 0


@dataclass(slots=True)
class ObjectCache:
    """Blobs by their parts, in ``directory``, at most ``limit`` bytes of them."""

    directory: Path
    limit: int = DEFAULT_LIMIT
    stats: CacheStats = field(default_factory=CacheStats)
    _bytes: int | None = None  # in the folder, as far as this process knows

    def lookup(self, parts: Mapping[str, str]) -> bytes | None:
        """The object made from ``parts``, or None."""
        path = self._path(parts)
        try:
            data = path.read_bytes()
        except OSError:
            self.stats.misses += 1
            return None
        found = _decode(data)
        if found is None:
            self.stats.damaged += 1
            self.stats.misses += 1
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        self.stats.hits += 1
        with contextlib.suppress(OSError):
            os.utime(path)  # the time of use: what clean-up goes by
        return found[1]

    def store(self, parts: Mapping[str, str], blob: bytes) -> None:
        """Keep ``blob``. Where the folder cannot be written, nothing is kept."""
        data = _encode(parts, blob)
        if len(data) > self.limit:
            return
        path = self._path(parts)
        temporary = self.directory / f"tmp-{os.getpid()}-{secrets.token_hex(8)}"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            temporary.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            return
        self.stats.stored += 1
        if self._bytes is not None:
            self._bytes += len(data)
        if self._bytes is None or self._bytes > self.limit:
            self._clean()

    def why(self, parts: Mapping[str, str]) -> str:
        """Why ``parts`` are not found: which of them differ from the entry that is most alike."""
        if self._path(parts).exists():
            return "the entry is there"
        wanted = _digests(parts)
        best: tuple[int, list[str]] | None = None
        for path, _, _ in self._entries():
            meta = _read_meta(path)
            if meta is None:
                continue
            changed = sorted(k for k in {**wanted, **meta} if wanted.get(k) != meta.get(k))
            if best is None or len(changed) < best[0]:
                best = len(changed), changed
        if best is None:
            return f"the cache in {self.directory} is empty"
        return f"the entry most alike differs in {', '.join(best[1])}"

    def size(self) -> int:
        """Bytes in the folder."""
        return sum(size for _, size, _ in self._entries())

    def clear(self) -> None:
        """Delete all entries."""
        for path, _, _ in self._entries():
            with contextlib.suppress(OSError):
                path.unlink()
        self._bytes = 0

    def _path(self, parts: Mapping[str, str]) -> Path:
        return self.directory / (key_of(parts) + _SUFFIX)

    def _entries(self) -> list[tuple[Path, int, float]]:
        """(path, bytes, time of use) of every entry; deletes what dead processes left."""
        out = []
        now = time.time()
        try:
            listing = list(os.scandir(self.directory))
        except OSError:
            return []
        for entry in listing:
            with contextlib.suppress(OSError):
                info = entry.stat()
                if entry.name.endswith(_SUFFIX):
                    out.append((Path(entry.path), info.st_size, info.st_mtime))
                elif entry.name.startswith("tmp-") and now - info.st_mtime > _STALE_SECONDS:
                    os.unlink(entry.path)
        return out

    def _clean(self) -> None:
        entries = sorted(self._entries(), key=lambda e: e[2])
        total = sum(size for _, size, _ in entries)
        if total > self.limit:
            for path, size, _ in entries:
                if total <= self.limit * _KEPT:
                    break
                with contextlib.suppress(OSError):
                    path.unlink()
                total -= size
        self._bytes = total


def key_of(parts: Mapping[str, str]) -> str:
    """The name of an entry: SHA-256 over the parts' names and digests."""
    return hashlib.sha256(json.dumps(_digests(parts), sort_keys=True).encode()).hexdigest()


@cache
def _cache_at(directory: Path) -> ObjectCache:
    return ObjectCache(directory)


def object_cache() -> ObjectCache:
    """The cache of this process, in NIR_CACHE_DIR."""
    return _cache_at(flags.cache_dir())


def _digests(parts: Mapping[str, str]) -> dict[str, str]:
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in parts.items()}


def _encode(parts: Mapping[str, str], blob: bytes) -> bytes:
    meta = json.dumps(_digests(parts), sort_keys=True).encode()
    rest = struct.pack("<I", len(meta)) + meta + blob
    return _MAGIC + struct.pack("<I", zlib.crc32(rest)) + rest


def _decode(data: bytes) -> tuple[dict[str, str], bytes] | None:
    """(digests of the parts, object), or None if the entry is damaged."""
    if len(data) < _HEADER.size:
        return None
    magic, crc, size = _HEADER.unpack_from(data)
    if magic != _MAGIC or zlib.crc32(memoryview(data)[12:]) != crc:
        return None
    end = _HEADER.size + size
    if end > len(data):
        return None
    try:
        meta: dict[str, str] = json.loads(data[_HEADER.size : end])
    except ValueError:
        return None
    return meta, data[end:]


def _read_meta(path: Path) -> dict[str, str] | None:
    try:
        found = _decode(path.read_bytes())
    except OSError:
        return None
    return None if found is None else found[0]
