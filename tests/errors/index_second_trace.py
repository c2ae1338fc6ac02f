# expect: IndexRangeError line 13
# Both functions have one structure and share a program; the line must be the second one's.
import nir


@nir.jit
def first(x, i):
    return x[i] * 2


@nir.jit
def second(x, i):
    return x[i] * 2


first(nir.ones(4), nir.tensor([1, 2]))
second(nir.ones(4), nir.tensor([1, 7]))
