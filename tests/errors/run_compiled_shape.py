# expect: ShapeError line 8
import numpy as np

import nir

square = nir.compile(lambda x: x * x, nir.spec("f32[B,3]"))
square(np.ones((2, 3), np.float32))
square(np.ones((2, 2), np.float32))
