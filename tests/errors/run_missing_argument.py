# expect: TraceError line 10
import nir


@nir.jit(specs=("f32[B]", "f32[B]"))
def add(x, y):
    return x + y


add(nir.ones(3))
