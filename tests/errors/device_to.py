# expect: DeviceError line 5
import nir

x = nir.ones(3)
x.to("cuda")
