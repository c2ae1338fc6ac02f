# expect: ShapeError line 6
import nir

x = nir.ones(8, 16)
w = nir.ones(12, 10)
y = (x * 2) @ w
