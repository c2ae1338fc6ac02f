# expect: NotDifferentiable line 9
import nir


def f(x):
    return x.argmax()


nir.grad(f)(nir.ones(3))
