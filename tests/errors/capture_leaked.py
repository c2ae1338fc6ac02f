# expect: TraceError line 15
import nir

leaked = []


@nir.jit
def f(x):
    leaked.append(x * 2)
    return x + 1


f(nir.ones(3))
y = leaked[0] + 1
y.numpy()
