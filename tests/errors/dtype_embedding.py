# expect: DTypeError line 6
import nir
from nir import nn

table = nn.Embedding(10, 4)
rows = table(nir.ones(3))
