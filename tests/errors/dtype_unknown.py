# expect: DTypeError line 4
import nir

nir.zeros(3, dtype="f33")
