# expect: TraceError line 7
import nir


@nir.jit
def f(x):
    assert (x > 0).all()
    return x.log()


f(nir.ones(3))
