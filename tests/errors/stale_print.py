# expect: StaleTensorError line 12
import nir


@nir.jit(donate=("x", "y"))
def swap(x, y):
    return y * 1.5, x * 1.5


x, y = nir.ones(100) + 1, nir.ones(100) + 2
swap(x, y)
print(y)
