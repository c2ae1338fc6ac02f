# expect: ShapeError line 5
import nir

x = nir.ones(3)
nir.cat([x, x], 1)
