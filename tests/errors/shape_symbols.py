# expect: ShapeError line 6
import nir


def add(x, y):
    return x + y


nir.trace(add, nir.spec("f32[B,4]"), nir.spec("f32[C,4]"))
