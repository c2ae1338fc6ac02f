# expect: IndexRangeError line 6
import nir

x = nir.ones(4)
print(x[nir.tensor([1, 2])] + 1)
y = x[nir.tensor([1, 5])] + 1
print(y)
