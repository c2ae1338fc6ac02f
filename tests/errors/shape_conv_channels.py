# expect: ShapeError line 7
import nir
from nir import nn

conv = nn.Conv2d(3, 8, 3)
images = nir.ones(2, 1, 28, 28)
features = conv(images)
