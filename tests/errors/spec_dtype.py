# expect: ParseError line 4
import nir

nir.trace(lambda x: x + 1, "float32[B,3]")
