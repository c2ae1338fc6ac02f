# expect: ShapeError line 6
import nir
from nir import nn

model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(9, 2))
model(nir.ones(1, 4))
