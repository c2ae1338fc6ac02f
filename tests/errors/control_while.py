# expect: TraceError line 6
import nir


def f(x):
    while x.max() > 1:
        x = x / 2
    return x


nir.trace(f, nir.spec("f32[4]"))
