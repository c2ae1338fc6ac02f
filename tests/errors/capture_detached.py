# expect: TraceError line 9
import nir

weight = nir.ones(3, requires_grad=True)


@nir.jit
def f(x):
    return x * weight.detach()


f(nir.ones(3))
