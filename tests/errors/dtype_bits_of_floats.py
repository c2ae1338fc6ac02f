# expect: DTypeError line 5
import nir

x = nir.ones(3)
y = x & x
