# expect: ShapeError line 5
import nir

rows = [nir.ones(3), nir.ones(4)]
m = nir.stack(rows)
