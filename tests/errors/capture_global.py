# expect: TraceError line 9
import nir

scale = nir.tensor([1.0, 2.0, 3.0])


@nir.jit
def f(x):
    return x * scale


f(nir.ones(3))
