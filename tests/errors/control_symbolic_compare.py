# expect: TraceError line 6
import nir


def f(x):
    if x.shape[0] > 8:
        return x.mean(0)
    return x.sum(0)


nir.trace(f, "f32[B,4]")
