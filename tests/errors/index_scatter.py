# expect: IndexRangeError line 6
import nir

x = nir.zeros(4)
i = nir.tensor([0, 1, 4])
y = x.index_add(0, i, nir.ones(3))
y.numpy()
