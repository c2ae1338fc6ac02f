"""Packages: saving, loading in another process, and what a damaged file gives."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runtime_harness as h
from runtime_harness import B

import nir
from nir.deploy import load
from nir.errors import NirError, PackageError, UnsupportedError
from nir.frozen import replace
from nir.ir.needs import needs
from nir.ir.program import Buffer, Call, Program
from nir.ir.types import TensorType, f32
from nir.runtime import Executable, HostKernel, Storage, _core
from nir.runtime.encode import VERSION, encode

pytestmark = h.needs_gcc

LEVELS = ("avx512", "avx2", "plain")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("package") / "two.nirp"
    Executable(h.two_step()).save(path)
    return path


def test_a_loaded_package_computes_the_same(package: Path) -> None:
    exe = load(package, verify=True)
    rng = np.random.default_rng(0)
    for batch in (0, 1, 33):
        x, y = rng.standard_normal((2, batch, 4)).astype(np.float32)
        np.testing.assert_array_equal(np.asarray(exe(x, y)), (x + y) * np.float32(2))
    about = exe.metadata
    assert about["inputs"] == [["x", "f32[B,4]"], ["y", "f32[B,4]"]]
    assert about["outputs"] == [["out", "f32[B,4]"]]
    assert exe.program.calls == h.two_step().calls
    assert exe.inputs == h.two_step().inputs
    assert exe.needs == needs(h.two_step())
    assert exe.graph is None


@pytest.mark.parametrize("isa", LEVELS)
def test_every_level_is_in_it(package: Path, isa: str) -> None:
    if not _core.has_isa(isa):
        pytest.skip(f"this CPU has no {isa}")
    exe = load(package, isa=isa)
    assert exe.isa == isa
    x = np.ones((3, 4), np.float32)
    np.testing.assert_array_equal(np.asarray(exe(x, x)), np.full((3, 4), 4, np.float32))


def test_errors_of_a_package_name_the_users_line(tmp_path: Path) -> None:
    path = tmp_path / "gather.nirp"
    Executable(h.gather_program()).save(path)
    with pytest.raises(NirError, match=r"take: .*got 12\n  at model.py:7"):
        load(path)(np.zeros((10, 4), np.float32), np.array([3, 12]))


def test_another_process_loads_it_without_llvmlite(package: Path) -> None:
    script = """
import sys, numpy as np
import nir
from nir.deploy import load
exe = load(sys.argv[1])
x = np.ones((2, 4), np.float32)
assert (np.asarray(exe(x, 3 * x)) == 8).all()
assert "llvmlite" not in sys.modules and "torch" not in sys.modules
print("fine")
"""
    out = subprocess.run(
        [sys.executable, "-c", script, package], capture_output=True, text=True,
        env={**os.environ, "PATH": ""}, cwd=h.ROOT, check=True,
    )  # fmt: skip
    assert out.stdout == "fine\n"


def large(path: Path, megabytes: int) -> bytes:
    """A package with so many megabytes of weights; returns them."""
    weights = np.random.default_rng(0).integers(0, 255, megabytes << 20, np.uint8).tobytes()
    t = TensorType(f32, (B,))
    program = Program(
        "large", (t,), (t,),
        (
            Buffer("input", 0, 0, 4 * B),
            Buffer("const", 0, len(weights) - 64, 4),
            Buffer("output", 0, 0, 4 * B),
        ),
        (Call("t_scale", (0, 1, 2), (1,), B, 1),),
        0, constants=(weights,), codes=h.gcc_codes({"t_scale": h.SCALE}),
    )  # fmt: skip
    Executable(program).save(path)
    return weights


def test_loading_maps_the_weights_instead_of_reading_them(tmp_path: Path) -> None:
    path = tmp_path / "large.nirp"
    weights = large(path, 100)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    load(path)  # the first load in a process warms imports
    before, start = resident(), time.perf_counter()
    exe = load(path)
    seconds, grown = time.perf_counter() - start, resident() - before
    assert grown < 5 << 20
    assert seconds < 0.1, "milliseconds when the machine is idle"
    scale = np.frombuffer(weights[-64:-60], np.float32)
    x = np.arange(3, dtype=np.float32)
    np.testing.assert_array_equal(np.asarray(exe(x)), x * scale)

    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    load(path)  # large weights are checked only when that is asked for
    with pytest.raises(PackageError, match="checksum"):
        load(path, verify=True)


def test_saving_is_atomic_and_deterministic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "two.nirp"
    Executable(h.two_step()).save(path)
    first = path.read_bytes()
    Executable(h.two_step()).save(path)
    assert path.read_bytes() == first
    assert os.listdir(tmp_path) == ["two.nirp"]

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        Executable(h.two_step(columns=5)).save(path)
    assert os.listdir(tmp_path) == ["two.nirp"] and path.read_bytes() == first


def test_what_cannot_be_saved_is_refused(tmp_path: Path, package: Path) -> None:
    t = TensorType(f32, (B,))
    host = HostKernel(lambda x: [x], [t], [t])
    buffers = (Buffer("input", 0, 0, 4 * B), Buffer("output", 0, 0, 4 * B))
    call = Call("mine", (0, 1), host.dims, op="host_call", locs=h.LINE)
    program = Program("host", (t,), (t,), buffers, (call,), 0)
    with pytest.raises(UnsupportedError, match=r"host_call: a package cannot.*\n  at model.py:16"):
        Executable(program, hosts={"mine": host}).save(tmp_path / "no.nirp")
    only = replace(h.two_step(), codes=h.gcc_codes({"t_add": h.ADD, "t_scale": h.SCALE}, "plain"))
    with pytest.raises(UnsupportedError, match="no code of t_add, t_scale for ISA level avx512"):
        Executable(only, isa="plain").save(tmp_path / "no.nirp")
    with pytest.raises(UnsupportedError, match="copy the file"):
        load(package).save(tmp_path / "no.nirp")
    assert not os.listdir(tmp_path)


# ---- damage --------------------------------------------------------------------------------------


def refused(path: Path, data: bytes) -> bool:
    """Whether loading ``data`` gives an error of nir's (and nothing else goes wrong)."""
    path.write_bytes(data)
    try:
        load(path)
    except (PackageError, UnsupportedError) as error:
        assert str(error)
        return True
    except NirError:
        return True
    return False


def fix_checksums(data: bytearray, deep: bool) -> bytes:
    """Make the checksums fit again; with ``deep`` those inside of program and blobs too."""
    if len(data) < 64:
        return bytes(data)
    (count,) = struct.unpack_from("<I", data, 12)
    count = min(count, (len(data) - 64) // 32)
    for i in range(count):
        at = 64 + 32 * i
        kind, _, _, _, offset, size = struct.unpack_from("<IIIIQQ", data, at)
        if offset + size > len(data):
            continue
        if deep and kind == 1 and size >= 24:
            struct.pack_into("<I", data, offset + 12, zlib.crc32(data[offset + 24 : offset + size]))
        if deep and kind == 5 and size >= 64:
            struct.pack_into("<I", data, offset + 48, zlib.crc32(data[offset + 64 : offset + size]))
            struct.pack_into("<I", data, offset + 52, zlib.crc32(data[offset : offset + 52]))
        struct.pack_into("<I", data, at + 12, zlib.crc32(data[offset : offset + size]))
    struct.pack_into("<I", data, 24, zlib.crc32(data[64 : 64 + 32 * count]))
    struct.pack_into("<I", data, 60, zlib.crc32(data[:60]))
    return bytes(data)


def test_every_flipped_byte_is_found(package: Path, tmp_path: Path) -> None:
    good = package.read_bytes()
    covered = bytearray(len(good))
    covered[:64] = b"\1" * 64
    (count,) = struct.unpack_from("<I", good, 12)
    for i in range(count):
        offset, size = struct.unpack_from("<QQ", good, 64 + 32 * i + 16)
        for lo, hi in ((64 + 32 * i, 96 + 32 * i), (offset, offset + size)):
            covered[lo:hi] = b"\1" * (hi - lo)
    assert sum(covered) > len(good) * 0.8
    rng = random.Random(1)
    for at in range(len(good)):
        if covered[at]:
            data = bytearray(good)
            data[at] ^= 1 << rng.randrange(8)
            assert refused(tmp_path / "bad.nirp", data), at


def test_truncated_and_foreign_files_are_refused(package: Path, tmp_path: Path) -> None:
    good = package.read_bytes()
    path = tmp_path / "bad.nirp"
    for n in [*range(0, 700, 13), *range(700, len(good), 97), len(good) - 1]:
        assert refused(path, good[:n]), n
        assert refused(path, fix_checksums(bytearray(good[:n]), deep=True)), n
    assert refused(path, good + b"\0")
    rng = random.Random(2)
    for n in (0, 1, 63, 64, 65, 1000, 100_000):
        assert refused(path, rng.randbytes(n))
        assert refused(path, fix_checksums(bytearray(good[:12] + rng.randbytes(n)), deep=False))
    for other in (b"PK\3\4" + bytes(100), b"\x7fELF" + bytes(100)):
        with pytest.raises(PackageError, match="not a nir package"):
            path.write_bytes(other)
            load(path)
    with pytest.raises(PackageError, match="No such file"):
        load(tmp_path / "none.nirp")
    with pytest.raises(PackageError):
        load(tmp_path)
    newer = bytearray(good)
    struct.pack_into("<I", newer, 8, 2)
    path.write_bytes(fix_checksums(newer, deep=False))
    with pytest.raises(PackageError, match="package version 2; this nir reads version 1"):
        load(path)


def test_damage_behind_good_checksums_never_crashes(package: Path, tmp_path: Path) -> None:
    # In another process, so that a crash would be seen as one. Loaded, bound, never run: a file
    # whose checksums are made to fit is no accident, and its code is not made safe by checks.
    good = package.read_bytes()
    rng = random.Random(3)
    for i in range(1500):
        data = bytearray(good)
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(0, len(data) if i % 2 else 1500)
            kind = rng.randrange(3)
            if kind == 0:
                data[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
            else:
                word = rng.choice((0, 1, 1 << 31, (1 << 32) - 1, rng.getrandbits(32)))
                data[at : at + 4] = struct.pack("<I", word)[: len(data) - at]
        (tmp_path / f"{i}.nirp").write_bytes(fix_checksums(data, deep=True))
    script = """
import sys
from pathlib import Path
from nir.errors import NirError
from nir.runtime import load
outcome = {"refused": 0, "loaded": 0}
for path in sorted(Path(sys.argv[1]).glob("*.nirp")):
    try:
        exe = load(path, verify=True)
        repr(exe)
        exe.sites
        outcome["loaded"] += 1
    except NirError:
        outcome["refused"] += 1
print(outcome["refused"], outcome["loaded"])
"""
    out = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", script, tmp_path],
        capture_output=True, text=True, cwd=h.ROOT,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    refused_count, loaded = map(int, out.stdout.split())
    assert refused_count > 300 and refused_count + loaded == 1500


def test_random_programs_never_crash_the_reader() -> None:
    good = encode(h.two_step(donate=True))
    constants = [Storage.from_numpy(np.zeros(4, np.uint8))]
    codes = {k: dict(v) for k, v in h.two_step().codes.items()}
    inputs = [Storage.empty("f32", (3, 4)), Storage.empty("f32", (3, 4))]
    rng = random.Random(4)
    outcomes = set()
    for _ in range(20_000):
        body = bytearray(good[24:])
        for _ in range(rng.choice((1, 1, 2, 5))):
            at = rng.randrange(len(body))
            body[at] = rng.choice((0, 1, 2, 255, body[at] ^ (1 << rng.randrange(8))))
        if rng.random() < 0.1:
            body = body[: rng.randrange(len(body))]
        data = struct.pack("<8sIIQ", b"NIRPROG\0", VERSION, zlib.crc32(body), 24 + len(body)) + body
        try:
            exe = _core.Executable(data, constants, codes, {})
            outcomes.add("loaded")
            assert exe.sites() is not None
            exe.bind(inputs)
            outcomes.add("bound")
        except NirError as error:
            outcomes.add(type(error).__name__)
    assert {"loaded", "bound", "PackageError", "ShapeError", "UnsupportedError"} <= outcomes


def test_bound_inputs_become_weights(tmp_path: Path) -> None:
    path = tmp_path / "bound.nirp"
    weights = np.arange(12, dtype=np.float32).reshape(3, 4)
    exe = Executable(h.gather_program())
    with pytest.raises(NirError, match=r"input 0 \(%table\): expected f32\[N,4\] to bind"):
        exe.save(path, {0: Storage.from_numpy(weights)})
    program = h.gather_program()
    table = TensorType(f32, (3, 4))
    fixed = replace(
        program,
        inputs=(table, program.inputs[1]),
        buffers=(Buffer("input", 0, 0, 48), *program.buffers[1:]),
        calls=(replace(program.calls[0], dims=(4, 3)),),
    )
    Executable(fixed).save(path, {0: Storage.from_numpy(weights)})
    loaded = load(path)
    assert [name for name, _ in loaded.metadata["inputs"]] == ["index"]
    np.testing.assert_array_equal(np.asarray(loaded(np.array([2, 0]))), weights[[2, 0]])


def test_a_compiled_model_is_the_same_from_its_package(tmp_path: Path) -> None:
    path = tmp_path / "mlp.nirp"
    nir.manual_seed(0)
    model = nir.nn.Sequential(nir.nn.Linear(16, 20), nir.nn.ReLU(), nir.nn.Linear(20, 3))
    compiled = nir.compile(model.eval(), "f32[B,16]")
    compiled.save(path)
    x = np.random.default_rng(0).standard_normal((9, 16)).astype(np.float32)
    expected = compiled(nir.tensor(x)).numpy()
    for isa in LEVELS:
        if _core.has_isa(isa):
            np.testing.assert_array_equal(np.asarray(load(path, isa=isa)(x)), expected)
    loaded = load(path)
    assert loaded.graph is not None and "matmul" in loaded.text
    assert all(locs for _, locs in loaded.sites)


@pytest.mark.parametrize("use", [lambda c, p: c.save(p), lambda c, _: c.peak_bytes])
def test_the_interpreter_has_no_program_to_save_or_measure(use: Any, tmp_path: Path) -> None:
    compiled = nir.compile(lambda x: x + 1, "f32[2]", target="interp")
    with pytest.raises(UnsupportedError, match=r'compiles no program; compile for target "cpu"'):
        use(compiled, tmp_path / "never.nirp")
    assert not list(tmp_path.iterdir())
