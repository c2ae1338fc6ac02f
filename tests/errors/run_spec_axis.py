# expect: ShapeError line 11
import nir


@nir.jit(specs=("f32[B,4]",))
def double(x):
    return x * 2


double(nir.ones(2, 4))
double(nir.ones(2, 5))
