# expect: TraceError line 8
import nir


def make(bias):
    def f(x):
        y = x.relu()
        return y + bias

    return nir.jit(f)


make(nir.ones(3))(nir.ones(3))
