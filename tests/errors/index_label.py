# expect: IndexRangeError line 6
import nir
from nir.nn import functional as F

logits = nir.randn(3, 10)
loss = F.cross_entropy(logits, nir.tensor([0, 9, 10]))
loss.item()
