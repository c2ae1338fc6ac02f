# expect: ShapeError line 5
import nir

x = nir.ones(7)
a, b = x.split([3, 3])
