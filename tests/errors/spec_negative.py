# expect: ParseError line 5
import nir
from nir import nn

nir.compile(nn.ReLU(), "f32[-3]")
