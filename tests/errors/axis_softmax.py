# expect: ShapeError line 5
import nir

scores = nir.ones(2, 3)
p = scores.softmax(-3)
