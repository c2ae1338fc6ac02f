# expect: ShapeError line 5
import nir

x = nir.ones(4)
nir.where(x > 0, x, nir.zeros(3))
