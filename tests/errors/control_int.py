# expect: TraceError line 6
import nir


def f(x, n):
    for _ in range(int(n)):
        x = x * 2
    return x


nir.trace(f, nir.spec("f32[4]"), nir.spec("i64[]"))
