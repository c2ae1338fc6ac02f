# expect: ShapeError line 5
import nir

x = nir.ones(2, 3, 4)
x.permute(0, 2)
