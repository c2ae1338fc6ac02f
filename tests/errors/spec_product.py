# expect: ParseError line 5
import nir


@nir.jit(specs=("f32[B*B]",))
def square(x):
    return x * x


square(nir.ones(4))
