# expect: DeviceError line 7
import nir
from nir import nn

nir.manual_seed(0)
model = nn.Linear(3, 2)
model.to("cuda:0")
