# expect: ShapeError line 6
import nir

a = nir.ones(2, 3, 4)
b = nir.ones(5, 4, 6)
c = a @ b
