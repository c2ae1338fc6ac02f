# expect: DTypeError line 6
import nir

a = nir.ones(2, 3)
b = nir.ones(3, 2, dtype="f64")
a @ b
