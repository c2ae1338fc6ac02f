# expect: DTypeError line 5
import nir

x = nir.arange(6)
x.mean()
