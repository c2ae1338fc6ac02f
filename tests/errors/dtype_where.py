# expect: DTypeError line 5
import nir

x = nir.ones(3)
nir.where(x, x, 0.0)
