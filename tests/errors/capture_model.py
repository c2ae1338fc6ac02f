# expect: TraceError line 10
import nir
from nir import nn

model = nn.Linear(3, 2)


@nir.jit
def f(x):
    return model(x)


f(nir.ones(1, 3))
