# expect: ShapeError line 4
import nir

nir.ones(3, 4) + nir.ones(5)
