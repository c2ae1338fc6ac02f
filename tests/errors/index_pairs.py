# expect: IndexRangeError line 6
import nir

x = nir.ones(4, 3)
i, j = nir.tensor([0, 3]), nir.tensor([2, 3])
picked = x[i, j]
picked.tolist()
