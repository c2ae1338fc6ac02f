# expect: ShapeError line 11
import nir


@nir.jit(specs=("f32[B,4]", "f32[B]"))
def scale(x, w):
    return x * w.unsqueeze(1)


scale(nir.ones(3, 4), nir.ones(3))
scale(nir.ones(3, 4), nir.ones(2))
