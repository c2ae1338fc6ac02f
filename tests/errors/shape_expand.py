# expect: ShapeError line 5
import nir

x = nir.ones(2, 3)
x.expand(2, 6)
