# expect: ShapeError line 6
import nir

w = nir.ones(3, requires_grad=True)
y = w * 2
y.backward(nir.ones(4))
