# expect: DeviceError line 6
import nir


def project(x, w):
    return x @ w


nir.trace(project, nir.spec("f32[B,4]"), nir.spec("f32[4,4]@cuda"))
