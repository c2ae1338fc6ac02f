# expect: NotDifferentiable line 7
import nir

w = nir.ones(3, requires_grad=True)
loss = (w * w).sum()
loss.backward()
loss.backward()
