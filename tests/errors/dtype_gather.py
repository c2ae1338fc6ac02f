# expect: DTypeError line 6
import nir

x = nir.ones(2, 3)
index = nir.zeros(2, 1)
x.gather(1, index)
