# expect: TraceError line 7
import nir


def f(x):
    total = x.sum(0)
    for i in range(x.shape[0]):
        total = total + x[i]
    return total


nir.trace(f, "f32[B,4]")
