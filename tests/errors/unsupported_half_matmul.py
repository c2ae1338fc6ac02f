# expect: UnsupportedError line 5
import nir

a = nir.ones(3, 3, dtype="f16")
b = a @ a
b.numpy()
