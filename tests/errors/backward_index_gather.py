# expect: IndexRangeError line 5
import nir

scores = nir.ones(2, 3, requires_grad=True)
chosen = scores.gather(1, nir.tensor([[0], [3]]))
chosen.sum().backward()
scores.grad.numpy()
