# expect: ShapeError line 5
import nir

a, b = nir.ones(2, 3), nir.ones(2, 4)
nir.cat([a, b], 0)
