# expect: ShapeError line 5
import nir

x = nir.ones(3)
y = x @ nir.tensor(2.0)
