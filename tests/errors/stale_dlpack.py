# expect: StaleTensorError line 14
import numpy as np

import nir


@nir.jit(donate=("x",))
def double(x):
    return x * 2


x = nir.ones(1000) + 1
double(x)
np.from_dlpack(x)
