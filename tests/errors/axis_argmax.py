# expect: ShapeError line 5
import nir

x = nir.ones(3)
x.argmax(1)
