# expect: DTypeError line 6
import numpy as np

import nir

nir.tensor(np.ones(3, np.complex64))
