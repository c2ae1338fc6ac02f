# expect: ShapeError line 5
import nir

x = nir.ones(2, 3)
x[0, 1, 2]
