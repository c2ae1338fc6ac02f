# expect: UnsupportedError line 8
import numpy as np

import nir


def ordered(x):
    return nir.host_call(np.sort, "f32[3]", x)


program = nir.compile(ordered, "f32[3]")
program.save("/nonexistent/ordered.nirp")
