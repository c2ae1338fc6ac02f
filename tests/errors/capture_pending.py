# expect: TraceError line 8
import nir

offset = nir.ones(3) * 2


def f(x):
    return x - offset


nir.trace(f, nir.spec("f32[3]"))
