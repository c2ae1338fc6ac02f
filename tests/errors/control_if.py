# expect: TraceError line 7
import nir


@nir.jit
def f(x):
    if x.sum() > 0:
        return x
    return -x


f(nir.ones(3))
