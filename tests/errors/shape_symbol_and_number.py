# expect: ShapeError line 7
import nir


def add(x, y):
    scaled = x * 0.5
    return scaled + y


nir.trace(add, nir.spec("f32[B,4]"), nir.spec("f32[8,4]"))
