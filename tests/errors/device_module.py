# expect: DeviceError line 6
import nir
from nir import nn

model = nn.Linear(3, 2)
model.to("cuda:0")
