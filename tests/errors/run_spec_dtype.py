# expect: DTypeError line 10
import nir


@nir.jit(specs=("f32[B]",))
def double(x):
    return x * 2


double(nir.arange(3))
