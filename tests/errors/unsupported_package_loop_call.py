# expect: UnsupportedError line 8
import numpy as np

import nir


def step(total, x):
    total = total + nir.host_call(np.sin, "f32[]", x)
    return total, total


program = nir.compile(lambda xs: nir.scan(step, nir.zeros(()), xs), "f32[5]")
program.save("/nonexistent/loop.nirp")
