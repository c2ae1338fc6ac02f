# expect: ShapeError line 14
import nir
from nir import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(784, 100)
        self.second = nn.Linear(10, 100)

    def forward(self, x):
        h = self.first(x).relu()
        return self.second(h)


nir.compile(Net(), nir.spec("f32[B,784]"))
