# expect: NotDifferentiable line 9
import nir


def f(n):
    return (n * 2).sum()


nir.grad(f)(nir.arange(3))
