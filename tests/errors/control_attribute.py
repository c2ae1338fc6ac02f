# expect: TraceError line 18
import nir
from nir import nn


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * 2


model = Counting()
run = nir.jit(model, state=[model])
run(nir.ones(3))
