# expect: TraceError line 6
import nir


def f(x, y):
    return max(x, y)


nir.trace(f, nir.spec("f32[]"), nir.spec("f32[]"))
