"""The executor and the system: threads, fork, memory, denormals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import runtime_harness as h
from runtime_harness import B

from nir.errors import NirError
from nir.ir.program import Buffer, Call, Program
from nir.ir.types import TensorType, f32, i64
from nir.runtime import (
    Executable,
    Storage,
    get_num_threads,
    memory_stats,
    set_num_threads,
)

pytestmark = h.needs_gcc

COLUMNS = 256


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = get_num_threads()
    yield
    set_num_threads(before)


def parallel_program() -> Program:
    return h.two_step(COLUMNS, work=1024 * B)


def python(script: str, *args: object, **env: str) -> str:
    """What ``script`` prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", script, *map(str, args)],
        capture_output=True, text=True, cwd=h.ROOT / "tests", timeout=120,
        env={**os.environ, "PYTHONPATH": str(h.ROOT), **env},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_any_number_of_threads_gives_the_same_bits(count: int) -> None:
    set_num_threads(count)
    assert get_num_threads() == count
    exe = Executable(parallel_program())
    rng = np.random.default_rng(count)
    for batch in (1, 5, 999, 1000, 4096):
        x, y = rng.standard_normal((2, batch, COLUMNS)).astype(np.float32)
        (out,) = h.run(exe, x, y)
        np.testing.assert_array_equal(out, (x + y) * np.float32(2))


def test_threads_share_a_call() -> None:
    # The kernel notes which thread ran each row, by the address of the scratch it was lent.
    source = """KERNEL { int64_t *o = p[0];
      for (int64_t r = r0; r < r1; ++r) {
        o[r] = (int64_t)ctx->scratch;
        for (volatile int i = 0; i < 20000; ++i) {}
      }
      return 0; }"""
    t = TensorType(i64, (64,))
    program = Program(
        "who", (), (t,), (Buffer("output", 0, 0, 512),),
        (Call("t_who", (0,), (), 64, 1, scratch=64, work=1 << 30),), 0,
        codes=h.gcc_codes({"t_who": source}),
    )  # fmt: skip
    exe = Executable(program)
    set_num_threads(2)
    most = max(len(set(exe.run([])[0].numpy().tolist())) for _ in range(200))
    assert most == 2
    set_num_threads(1)
    assert len(set(exe.run([])[0].numpy().tolist())) == 1


def test_one_executable_runs_on_many_threads_at_once() -> None:
    exe = Executable(parallel_program())
    failures: list[str] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(60):
            x, y = rng.standard_normal((2, rng.integers(0, 700), COLUMNS)).astype(np.float32)
            (out,) = h.run(exe, x, y)
            if not np.array_equal(out, (x + y) * np.float32(2)):
                failures.append(f"thread {seed}")

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert not failures


def test_a_run_releases_the_interpreter() -> None:
    source = """KERNEL { volatile float *o = p[0]; (void)ctx;
      for (int64_t i = 0; i < 200000000; ++i) o[0] = 1; return 0; }"""
    t = TensorType(f32, (1,))
    program = Program(
        "slow", (), (t,), (Buffer("output", 0, 0, 4),), (Call("t_slow", (0,)),), 0,
        codes=h.gcc_codes({"t_slow": source}),
    )  # fmt: skip
    exe = Executable(program)
    runner = threading.Thread(target=exe.run, args=([],))
    runner.start()
    ticks = 0
    while runner.is_alive():
        time.sleep(0.001)
        ticks += 1
    assert ticks > 5


def test_the_number_of_threads_comes_from_the_environment() -> None:
    show = "import nir.runtime as r; print(r.get_num_threads())"
    assert python(show, NIR_NUM_THREADS="5") == "5\n"
    assert python(show, NIR_NUM_THREADS="") == f"{len(os.sched_getaffinity(0))}\n"
    pinned = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]);" + show
    assert python(pinned, NIR_NUM_THREADS="") == "1\n"
    bad = """
import nir.runtime as r
from nir.errors import NirError
try:
    r.get_num_threads()
except NirError as e:
    print(e)
"""
    for value in ("0", "-1", "two", "99999999"):
        assert "NIR_NUM_THREADS: expected" in python(bad, NIR_NUM_THREADS=value)
    for count in (0, -3, 5000):
        with pytest.raises(NirError, match="number of threads"):
            set_num_threads(count)


# ---- fork ----------------------------------------------------------------------------------------


def test_fork_after_the_pool_started() -> None:
    set_num_threads(2)
    exe = Executable(parallel_program())
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 2000, COLUMNS)).astype(np.float32)
    expected = (x + y) * np.float32(2)
    stop = threading.Event()

    def busy() -> None:  # forks meet the pool and the locks in any state
        while not stop.is_set():
            h.run(exe, x, y)

    other = threading.Thread(target=busy)
    other.start()
    try:
        for _ in range(20):
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                same = all(np.array_equal(h.run(exe, x, y)[0], expected) for _ in range(5))
                os._exit(0 if same and get_num_threads() == 2 else 1)
            assert os.waitpid(child, 0)[1] == 0
            np.testing.assert_array_equal(h.run(exe, x, y)[0], expected)
    finally:
        stop.set()
        other.join()


# ---- memory --------------------------------------------------------------------------------------

COUNTER = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <stddef.h>
static atomic_long count;
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
long malloc_count(void) { return count; }
void *malloc(size_t n) { ++count; return __libc_malloc(n); }
void *calloc(size_t n, size_t m) { ++count; return __libc_calloc(n, m); }
void *realloc(void *p, size_t n) { ++count; return __libc_realloc(p, n); }
void *memalign(size_t a, size_t n) { ++count; return __libc_memalign(a, n); }
void *aligned_alloc(size_t a, size_t n) { ++count; return __libc_memalign(a, n); }
int posix_memalign(void **p, size_t a, size_t n) {
  ++count;
  *p = __libc_memalign(a, n);
  return !*p;
}
"""


SHOW = """
import ctypes
count = ctypes.CDLL(None).malloc_count
count.restype = ctypes.c_long
def show(core, inputs, many):
    def used(runs):
        before = count()
        core.repeat(inputs, runs)
        return count() - before
    core.repeat(inputs, 10)
    used(1)
    print(used(1), used(many))
"""


def mallocs(tmp_path: Path, script: str) -> list[tuple[int, int]]:
    """For each ``show(core, inputs, many)`` in ``script``: calls of malloc in one run, and many."""
    (tmp_path / "count.c").write_text(COUNTER)
    library = tmp_path / "count.so"
    subprocess.run(
        ["gcc", "-O1", "-shared", "-fPIC", tmp_path / "count.c", "-o", library], check=True
    )
    lines = python(SHOW + script, LD_PRELOAD=str(library)).splitlines()
    return [(int(one), int(many)) for one, many in map(str.split, lines)]


def test_runs_after_the_first_do_not_call_malloc(tmp_path: Path) -> None:
    script = """
import numpy as np
import runtime_harness as h
from runtime_harness import B
from nir.runtime import Executable, Storage, set_num_threads
set_num_threads(2)
for program in (h.two_step(), h.two_step(256, work=1024 * B)):
    exe = Executable(program)
    core = exe._core
    columns = program.inputs[0].shape[1]
    inputs = [Storage.from_numpy(np.ones((500, columns), np.float32)) for _ in range(2)]
    show(core, inputs, 1000)
"""
    for one, many in mallocs(tmp_path, script):
        # What is counted belongs to the call from Python, however many runs it makes.
        assert one == many and one < 50


def test_resident_memory_grows_by_the_arena() -> None:
    arena = 96 << 20
    script = f"""
import os
import numpy as np
import runtime_harness as h
from nir.frozen import replace
from nir.ir.program import Buffer, Call, Program
from nir.ir.types import TensorType, f32
from nir.runtime import Executable
fill = '''KERNEL {{ (void)ctx; (void)c0; (void)c1; float *a = p[0], *o = p[1];
  for (int64_t r = r0; r < r1; ++r) a[r] = 1;
  o[0] = a[r1 - 1]; return 0; }}'''
t = TensorType(f32, (1,))
program = Program("fill", (), (t,), (Buffer("arena", 0, 0, {arena}), Buffer("output", 0, 0, 4)),
                  (Call("t_fill", (0, 1), (), {arena} // 4, 1),), {arena},
                  codes=h.gcc_codes({{"t_fill": fill}}))
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE")
exes = [Executable(program) for _ in range(3)]
before = resident()
exes[0].run([])
print(resident() - before)
for exe in exes * 3:
    exe.run([])
print(resident() - before)
"""
    first, later = map(int, python(script).split())
    assert arena <= first <= arena * 1.05
    # Executables take turns with one arena, and runs leave nothing behind.
    assert later <= first + (2 << 20)


def test_freed_memory_is_bounded_and_given_back() -> None:
    script = """
from nir.runtime import Storage, memory_stats, trim_memory
before = memory_stats()["live_bytes"]
for size in range(1, 400):
    Storage.empty("u8", (size << 20,))
print(memory_stats()["live_bytes"] - before, memory_stats()["cached_bytes"])
trim_memory()
print(memory_stats()["cached_bytes"])
"""
    grown, cached, trimmed = map(int, python(script).split())
    # As much as was ever in use at once, 399 MiB rounded up by at most an eighth.
    assert grown == 0 and 0 < cached <= 450 << 20 and trimmed == 0


def test_outputs_are_recycled() -> None:
    exe = Executable(h.two_step())
    x = Storage.from_numpy(np.ones((100, 4), np.float32))
    for _ in range(3):
        exe.run([x, x])
    before = memory_stats()["allocations"]
    # The arena and the output are of one size here, and may change places.
    assert len({exe.run([x, x])[0].address for _ in range(100)}) <= 3
    assert memory_stats()["allocations"] == before


# ---- floating point ------------------------------------------------------------------------------


def test_denormals_are_flushed_on_every_thread_and_only_in_runs() -> None:
    set_num_threads(2)
    exe = Executable(parallel_program())
    x = np.full((4000, COLUMNS), 1e-40, np.float32)
    for _ in range(20):
        (out,) = h.run(exe, x, x)
        assert not out.any()
    assert np.float32(1e-40) * np.float32(2) != 0, "the caller's mode is its own again"


def test_denormals_survive_a_failed_run() -> None:
    exe = Executable(h.gather_program())
    with pytest.raises(NirError):
        h.run(exe, np.ones((3, 4), np.float32), np.array([7]))
    assert np.float32(1e-40) * np.float32(2) != 0


def test_a_busy_neighbour_costs_time_but_no_result() -> None:
    spin = [sys.executable, "-c", "while True: pass"]
    neighbours = [subprocess.Popen(spin) for _ in os.sched_getaffinity(0)]
    try:
        set_num_threads(2)
        exe = Executable(parallel_program())
        rng = np.random.default_rng(0)
        x, y = rng.standard_normal((2, 1000, COLUMNS)).astype(np.float32)
        storages = [Storage.from_numpy(x), Storage.from_numpy(y)]
        set_num_threads(1)
        alone = min(exe._core.repeat(storages, 20) for _ in range(10))
        set_num_threads(2)
        shared = min(exe._core.repeat(storages, 20) for _ in range(10))
        # An unbounded spin would cost time slices for each of the 40 calls: milliseconds each.
        assert shared < 3 * alone + 0.02
        np.testing.assert_array_equal(h.run(exe, x, y)[0], (x + y) * np.float32(2))
    finally:
        for n in neighbours:
            n.kill()
            n.wait()
