# expect: DTypeError line 7
import numpy as np

import nir

square = nir.compile(lambda x: x * x, nir.spec("f32[B,3]"))
square(np.ones((2, 3)))
