# expect: StaleTensorError line 12
import nir


@nir.jit(donate=("x",))
def double(x):
    return x * 2


x = nir.ones(1000) + 1
double(x)
print(x.numpy())
