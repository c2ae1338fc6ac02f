# expect: UnsupportedError line 7
import nir
from nir import nn

model = nn.Sequential(nn.Linear(4, 8), nn.ReLU())

nir.compile(model, "f32[B,4]", target="gpu")
