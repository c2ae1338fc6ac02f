# expect: TraceError line 7
import nir


@nir.jit
def f(x):
    return x[x > 0]


f(nir.ones(3))
