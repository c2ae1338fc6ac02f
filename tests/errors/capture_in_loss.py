# expect: TraceError line 11
import nir
from nir import nn

model = nn.Linear(3, 2)
target = nir.zeros(4, 2)


@nir.jit(state=[model])
def loss(x):
    difference = model(x) - target
    return (difference * difference).mean()


loss(nir.ones(4, 3))
