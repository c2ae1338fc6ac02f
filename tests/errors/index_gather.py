# expect: IndexRangeError line 6
import nir

x = nir.ones(4, 3)
i = nir.tensor([[0], [1], [2], [3]])
picked = x.gather(1, i)
total = picked.sum()
total.item()
