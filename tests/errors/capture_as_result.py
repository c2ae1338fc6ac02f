# expect: TraceError line 12
import nir

kept = nir.ones(2)


@nir.jit
def f(x):
    return x, kept


f(nir.ones(2))
