# expect: IndexRangeError line 8
import nir


@nir.jit(specs=("f32[V,4]", "i64[B]"))
def look_up(table, tokens):
    scaled = table * 0.5
    rows = scaled[tokens]
    return rows.relu().sum(1)


look_up(nir.ones(10, 4), nir.tensor([1, 2, 9]))
look_up(nir.ones(10, 4), nir.tensor([1, 2, 10]))
