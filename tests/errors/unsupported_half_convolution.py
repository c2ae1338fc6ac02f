# expect: UnsupportedError line 7
import nir
from nir.nn import functional as F


def features(x, w):
    y = F.conv2d(x, w, padding=1)
    return y.relu()


nir.compile(features, "bf16[B,3,8,8]", "bf16[4,3,3,3]")
