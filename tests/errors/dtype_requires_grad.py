# expect: DTypeError line 5
import nir

x = nir.arange(3)
x.requires_grad_()
