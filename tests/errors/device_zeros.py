# expect: DeviceError line 4
import nir

x = nir.zeros(3, device="tpu")
