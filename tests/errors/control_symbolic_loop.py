# expect: TraceError line 7
import nir


def f(x):
    total = 0
    for row in x:
        total = total + row
    return total


nir.trace(f, nir.spec("f32[B,4]"))
