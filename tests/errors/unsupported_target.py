# expect: UnsupportedError line 4
import nir

nir.compile(lambda x: x + 1, nir.spec("f32[4]"), target="abacus")
