# expect: ShapeError line 5
import nir

x = nir.arange(12)
x.view(-1, -1)
