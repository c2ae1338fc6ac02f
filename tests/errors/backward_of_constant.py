# expect: NotDifferentiable line 6
import nir

w = nir.ones(3)
loss = (w * 2).sum()
loss.backward()
