# expect: ShapeError line 7
import nir
from nir.nn import functional as F

logits = nir.zeros(8, 10)
target = nir.zeros(7, dtype="i64")
loss = F.cross_entropy(logits, target)
