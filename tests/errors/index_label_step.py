# expect: IndexRangeError line 12
import nir
from nir import nn
from nir.nn import functional as F

model = nn.Linear(4, 3)
optimizer = nir.optim.SGD(model.parameters(), lr=0.1)


@nir.jit(state=[model, optimizer], specs=("f32[B,4]", "i64[B]"))
def step(x, y):
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.detach()


step(nir.randn(2, 4), nir.tensor([2, -1]))
