# expect: UnsupportedError line 7
import nir


@nir.jit(specs=("f16[B]",))
def running(x):
    return x.cumsum(0)


running(nir.ones(4, dtype="f16"))
