# expect: StaleTensorError line 12
import nir


@nir.jit(donate=("total",))
def add(total, x):
    return total + x.sum()


total = nir.zeros(()) + 1
for _ in range(2):
    add(total, nir.ones(3))
