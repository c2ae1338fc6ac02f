# expect: DeviceError line 7
import nir


def add(x, y):
    z = y.exp()
    return x + z


nir.trace(add, nir.spec("f32[4]@cuda"), nir.spec("f32[4]"))
