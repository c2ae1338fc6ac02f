# expect: ShapeError line 4
import nir

nir.grad(lambda x: x * 2)(nir.ones(3))
