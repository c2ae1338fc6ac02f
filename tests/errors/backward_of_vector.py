# expect: ShapeError line 6
import nir

w = nir.ones(3, requires_grad=True)
loss = w * 2
loss.backward()
