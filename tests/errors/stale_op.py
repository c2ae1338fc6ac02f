# expect: StaleTensorError line 12
import nir


@nir.jit(donate=("x",))
def double(x):
    return x * 2


x = nir.ones(1000) + 1
y = double(x)
z = y + x
