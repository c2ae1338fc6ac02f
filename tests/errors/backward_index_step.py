# expect: IndexRangeError line 12
import nir
from nir import nn

table = nn.Embedding(5, 3)
optimizer = nir.optim.SGD(table.parameters(), lr=0.1)


@nir.jit(state=[table, optimizer], specs=("i64[B]",))
def step(tokens):
    optimizer.zero_grad()
    loss = table(tokens).sum()
    loss.backward()
    optimizer.step()


step(nir.tensor([0, 4]))
step(nir.tensor([0, 5]))
