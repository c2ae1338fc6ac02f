# expect: TraceError line 7
import nir


@nir.jit
def f(x):
    return nir.tensor(x.numpy()[::-1].copy())


f(nir.ones(3))
