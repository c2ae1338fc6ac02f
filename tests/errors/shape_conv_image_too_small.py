# expect: ShapeError line 6
import nir
from nir import nn

conv = nn.Conv2d(3, 8, 7)
features = conv(nir.ones(2, 3, 5, 5))
