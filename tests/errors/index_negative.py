# expect: IndexRangeError line 6
import nir

x = nir.ones(4, 3)
i = nir.tensor([0, -5])
rows = x.index_select(0, i)
rows.numpy()
