# expect: TraceError line 7
import nir


@nir.jit
def f(x):
    scale = x.max().item()
    return x / scale


f(nir.ones(3))
