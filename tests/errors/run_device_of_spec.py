# expect: DeviceError line 10
import nir


@nir.jit(specs=("f32[4]@cuda",))
def double(x):
    return x * 2


double(nir.ones(4))
