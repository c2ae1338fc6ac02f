# expect: IndexRangeError line 6
import nir

x = nir.ones(4, 3)
i = nir.tensor([0, 4])
rows = x[i]
print(rows)
