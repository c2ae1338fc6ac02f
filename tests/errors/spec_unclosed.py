# expect: ParseError line 5
import nir
from nir import nn

nir.compile(nn.Linear(3, 2), "f32[B,3")
