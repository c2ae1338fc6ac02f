# expect: DeviceError line 4
import nir

x = nir.tensor([1.0, 2.0], device="cuda:1")
