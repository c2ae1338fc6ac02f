"""The machine's roofs, measured: what its arithmetic and its memory give to loops that do no more.

- fma: chains of fused multiply-adds on twelve vector registers, in GFLOP/s;
- triad: a[i] = b[i] + s * c[i] on arrays that no cache holds, counted as three streams, in GB/s:
  the better of ordinary stores, which read a line before they write it, and streaming ones;
- read: the sum of such an array, in GB/s.

The loops are LLVM IR for this machine's own processor; each is the best of several tries, and
threads run it on memory of their own.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

_CHAINS = 12  # four cycles of latency on two ports take eight
_ELEMENTS = 1 << 24  # 64 MiB for each array and thread
_FMA_TRIPS = 2_000_000
_TRIES = 15

_FMA = """
declare <W x float> @llvm.fma.vWf32(<W x float>, <W x float>, <W x float>)
define void @fma(ptr %out, i64 %n, float %a, float %b) {
entry:
  %a0 = insertelement <W x float> poison, float %a, i32 0
  %av = shufflevector <W x float> %a0, <W x float> poison, <W x i32> zeroinitializer
  %b0 = insertelement <W x float> poison, float %b, i32 0
  %bv = shufflevector <W x float> %b0, <W x float> poison, <W x i32> zeroinitializer
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %i1, %loop ]
PHIS
STEPS
  %i1 = add i64 %i, 1
  %more = icmp ult i64 %i1, %n
  br i1 %more, label %loop, label %done
done:
STORES
  ret void
}
"""

_STREAM = """
define void @NAME(ptr %a, ptr %b, ptr %c, i64 %n, float %s) {
entry:
  %s0 = insertelement <W x float> poison, float %s, i32 0
  %sv = shufflevector <W x float> %s0, <W x float> poison, <W x i32> zeroinitializer
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %i1, %loop ]
  %pb = getelementptr float, ptr %b, i64 %i
  %pc = getelementptr float, ptr %c, i64 %i
  %pa = getelementptr float, ptr %a, i64 %i
  %vb = load <W x float>, ptr %pb, align 64
  %vc = load <W x float>, ptr %pc, align 64
  %m = fmul <W x float> %vc, %sv
  %r = fadd <W x float> %vb, %m
  store <W x float> %r, ptr %pa, align 64 HINT
  %i1 = add i64 %i, W
  %more = icmp ult i64 %i1, %n
  br i1 %more, label %loop, label %done
done:
  ret void
}
"""

_READ = """
define void @read(ptr %out, ptr %b, i64 %n) {
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %i1, %loop ]
PHIS
STEPS
  %i1 = add i64 %i, STRIDE
  %more = icmp ult i64 %i1, %n
  br i1 %more, label %loop, label %done
done:
STORES
  ret void
}
"""


@dataclass(frozen=True)
class Roof:
    """GFLOP/s and GB/s that ``threads`` threads reach together."""

    threads: int
    fma: float
    triad: float
    read: float

    def __str__(self) -> str:
        return (
            f"{self.threads} thread{'s' * (self.threads > 1)}: FMA {self.fma:.0f} GFLOP/s, "
            f"triad {self.triad:.1f} GB/s, read {self.read:.1f} GB/s"
        )


def _lines(template: str) -> str:
    return "\n".join(template.replace("#", str(k)) for k in range(_CHAINS))


def _source(width: int) -> str:
    phis = _lines("  %x# = phi <W x float> [ zeroinitializer, %entry ], [ %y#, %loop ]")
    stores = _lines(
        "  %q# = getelementptr <W x float>, ptr %out, i64 #\n  store <W x float> %y#, ptr %q#"
    )
    fma = _lines(
        "  %y# = call <W x float> @llvm.fma.vWf32(<W x float> %x#, <W x float> %av, "
        "<W x float> %bv)"
    )
    read = "\n".join(
        f"  %j{k} = add i64 %i, {k * width}\n  %p{k} = getelementptr float, ptr %b, i64 %j{k}\n"
        f"  %v{k} = load <W x float>, ptr %p{k}, align 64\n"
        f"  %y{k} = fadd <W x float> %x{k}, %v{k}"
        for k in range(_CHAINS)
    )
    text = _FMA.replace("PHIS", phis).replace("STEPS", fma).replace("STORES", stores)
    text += _STREAM.replace("NAME", "triad").replace("HINT", "")
    text += _STREAM.replace("NAME", "triad_streaming").replace("HINT", ", !nontemporal !0")
    text += _READ.replace("PHIS", phis).replace("STEPS", read).replace("STORES", stores)
    text = text.replace("STRIDE", str(_CHAINS * width))
    return text.replace("W x", f"{width} x").replace("vWf32", f"v{width}f32").replace(
        "%i, W", f"%i, {width}"
    ) + "\n!0 = !{i32 1}\n"  # fmt: skip


class _Loops:
    """The loops as functions; a call gives up the interpreter's lock."""

    def __init__(self) -> None:
        import llvmlite.binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        features = llvm.get_host_cpu_features()
        self.width = 16 if features.get("avx512f") else 8
        machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=features.flatten(), opt=2
        )
        module = llvm.parse_assembly(_source(self.width))
        module.verify()
        self._engine = llvm.create_mcjit_compiler(module, machine)
        self._engine.finalize_object()
        p, n, f = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
        self.fma = self._function("fma", p, n, f, f)
        self.read = self._function("read", p, p, n)
        self.triads = [self._function(name, p, p, p, n, f) for name in ("triad", "triad_streaming")]

    def _function(self, name: str, *types: type) -> Callable[..., None]:
        return ctypes.CFUNCTYPE(None, *types)(self._engine.get_function_address(name))


def _aligned(count: int) -> np.ndarray:
    raw = np.ones(count + 16, np.float32)
    skip = -raw.ctypes.data % 64 // 4
    return raw[skip : skip + count]


def _fastest(pool: ThreadPoolExecutor, tasks: Sequence[Callable[[], None]]) -> float:
    """Seconds that ``tasks`` take together, one on each thread."""
    best = float("inf")
    for _ in range(_TRIES):
        start = time.perf_counter()
        for done in [pool.submit(task) for task in tasks]:
            done.result()
        best = min(best, time.perf_counter() - start)
    return best


def measure(threads: int) -> Roof:
    """The roofs of ``threads`` threads. Takes a second and 192 MiB for each of them."""
    loops = _Loops()
    step = _CHAINS * loops.width
    count = _ELEMENTS // step * step
    arrays = [[_aligned(count) for _ in range(3)] for _ in range(threads)]
    at = [[a.ctypes.data for a in own] for own in arrays]

    def tasks(run: Callable[..., None]) -> list[Callable[[], None]]:
        return [lambda a=a, b=b, c=c: run(a, b, c) for a, b, c in at]  # type: ignore[misc]

    with ThreadPoolExecutor(threads) as pool:
        fma = _fastest(pool, tasks(lambda a, b, c: loops.fma(a, _FMA_TRIPS, 0.5, 1.0)))
        triads = [
            _fastest(pool, tasks(lambda a, b, c, t=t: t(a, b, c, count, 0.5))) for t in loops.triads
        ]
        read = _fastest(pool, tasks(lambda a, b, c: loops.read(a, b, count)))
    everything = threads * count * 4e-9
    return Roof(
        threads,
        fma=threads * 2e-9 * step * _FMA_TRIPS / fma,
        triad=3 * everything / min(triads),
        read=everything / read,
    )


if __name__ == "__main__":
    for threads in (1, 2):
        print(measure(threads))
