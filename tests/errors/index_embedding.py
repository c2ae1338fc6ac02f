# expect: IndexRangeError line 7
import nir
from nir import nn

table = nn.Embedding(10, 4)
tokens = nir.tensor([[1, 2], [3, 10]])
rows = table(tokens)
(rows * 2).sum().item()
