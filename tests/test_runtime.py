"""The executor: binding, running, donation, errors."""

from __future__ import annotations

import numpy as np
import pytest
import runtime_harness as h
from runtime_harness import B

from nir.errors import (
    DTypeError,
    IndexRangeError,
    NirError,
    PackageError,
    ShapeError,
    StaleTensorError,
    UnsupportedError,
)
from nir.frozen import replace
from nir.ir.dim import ceildiv, floordiv, symbol
from nir.ir.program import Buffer, Call, Donation, Epilogue, Program
from nir.ir.types import DTYPES, TensorType, f32
from nir.runtime import Executable, HostKernel, Storage, _core, as_storage, memory_stats
from nir.runtime.encode import decode, encode

pytestmark = h.needs_gcc


def arrays(batch: int, columns: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(batch)
    a, b = rng.standard_normal((2, batch, columns)).astype(np.float32)
    return a, b


def test_one_program_serves_every_batch_size() -> None:
    exe = Executable(h.two_step())
    for batch in [*range(20), 64, 1000, 0, 1]:
        x, y = arrays(batch)
        (out,) = h.run(exe, x, y)
        assert out.shape == (batch, 4)
        np.testing.assert_array_equal(out, (x + y) * np.float32(2))


def test_threads_give_the_same_bits() -> None:
    wide = Executable(h.two_step(64, work=1024 * B))
    for batch in (1, 2, 3, 1000, 4097):
        x, y = arrays(batch, 64)
        (out,) = h.run(wide, x, y)
        np.testing.assert_array_equal(out, (x + y) * np.float32(2))


def test_results_do_not_alias_the_arena_or_each_other() -> None:
    exe = Executable(h.two_step())
    x, y = arrays(8)
    first = exe(x, y)
    second = exe(x + 1, y)
    np.testing.assert_array_equal(np.asarray(first), (x + y) * np.float32(2))
    np.testing.assert_array_equal(np.asarray(second), (x + 1 + y) * np.float32(2))


def test_columns_are_split_where_rows_are_few() -> None:
    columns = 1 << 16
    t = TensorType(f32, (B, columns))
    program = Program(
        "wide", (t, t), (t,),
        (
            Buffer("input", 0, 0, 4 * columns * B),
            Buffer("input", 1, 0, 4 * columns * B),
            Buffer("output", 0, 0, 4 * columns * B),
        ),
        (Call("t_add", (0, 1, 2), (columns,), B, columns, col_grain=100, work=12 * columns * B),),
        0, codes=h.gcc_codes({"t_add": h.ADD}),
    )  # fmt: skip
    for batch in (1, 3):
        x, y = arrays(batch, columns)
        (out,) = h.run(Executable(program), x, y)
        np.testing.assert_array_equal(out, x + y)


def test_scratch_and_epilogue() -> None:
    # Each thread fills its scratch, then the epilogue adds it to what the kernel wrote.
    kernel = """KERNEL {
      float *s = ctx->scratch, *o = p[0];
      for (int64_t r = r0; r < r1; ++r) {
        for (int64_t c = c0; c < c1; ++c) { s[c] = (float)(r * 10 + c); o[r * d[0] + c] = s[c]; }
        if (ctx->epilogue) {
          int32_t e = ctx->epilogue(ctx, ctx->epilogue_ptrs, ctx->epilogue_dims, r, r + 1, c0, c1);
          if (e) return e;
        }
      }
      return 0; }"""
    epilogue = """KERNEL {
      const float *b = p[1], *s = ctx->scratch; float *o = p[0];
      for (int64_t r = r0; r < r1; ++r) for (int64_t c = c0; c < c1; ++c)
        o[r * d[0] + c] += s[c] + b[c];
      return 0; }"""
    t = TensorType(f32, (B, 5))
    program = Program(
        "epi", (TensorType(f32, (5,)), t), (t,),
        (Buffer("input", 0, 0, 20), Buffer("output", 0, 0, 20 * B)),
        (
            Call(
                "t_k", (1,), (5,), B, 5, scratch=20, work=1 << 20,
                epilogue=Epilogue("t_e", (1, 0), (5,)),
            ),
        ),
        0, codes=h.gcc_codes({"t_k": kernel, "t_e": epilogue}),
    )  # fmt: skip
    bias = np.arange(5, dtype=np.float32)
    (out,) = h.run(Executable(program), bias, np.zeros((300, 5), np.float32))
    base = np.arange(300)[:, None] * 10 + np.arange(5)
    np.testing.assert_array_equal(out, (2 * base + bias).astype(np.float32))


def test_empty_iteration_spaces_call_no_kernel() -> None:
    crash = "KERNEL { (void)ctx; return 77; }"
    t = TensorType(f32, (B,))
    program = Program(
        "none", (t,), (t,), (Buffer("output", 0, 0, 4 * B),),
        (Call("t_no", (0,), (), B, 4), Call("t_no", (0,), (), 4, B)),
        0, codes=h.gcc_codes({"t_no": crash}),
    )  # fmt: skip
    (out,) = h.run(Executable(program), np.zeros(0, np.float32))
    assert out.shape == (0,)


# ---- symbols -------------------------------------------------------------------------------------


def test_symbols_are_solved_from_linear_forms() -> None:
    s = symbol("S")
    types = (TensorType(f32, (2 * B + 1, s)), TensorType(f32, (s, 3 * s - 2)))
    out = TensorType(f32, (B * s, ceildiv(B, 4) + floordiv(s * s, 3)))
    program = Program("sizes", types, (out,), (), (), 0, input_names=("x", "y"))
    exe = Executable(program)
    (storage,) = exe.run([Storage.empty("f32", (7, 5)), Storage.empty("f32", (5, 13))])
    assert storage.shape == (15, 1 + 25 // 3)
    with pytest.raises(
        ShapeError, match=r"input 0 \(%x\): expected f32\[2\*B\+1,S\], got f32\[8,5\].*no B >= 0"
    ):
        exe.run([Storage.empty("f32", (8, 5)), Storage.empty("f32", (5, 13))])
    with pytest.raises(
        ShapeError, match=r"input 1 \(%y\).*axis 1 is 12, expected 13, since S is 5 by input 0"
    ):
        exe.run([Storage.empty("f32", (7, 5)), Storage.empty("f32", (5, 12))])


def test_unsolvable_symbols_are_refused_by_name() -> None:
    program = Program("p", (TensorType(f32, (B * B,)),), (), (), (), 0)
    with pytest.raises(ShapeError, match="no input's shape gives the size B"):
        Executable(program)


def test_negative_and_overflowing_sizes_are_errors() -> None:
    shrink = Executable(
        Program("p", (TensorType(f32, (B,)),), (TensorType(f32, (B - 3,)),), (), (), 0)
    )
    assert shrink.run([Storage.empty("f32", (3,))])[0].shape == (0,)
    with pytest.raises(ShapeError, match=r"B\+?-3 = -1"):
        shrink.run([Storage.empty("f32", (2,))])
    huge = Executable(Program("p", (TensorType(f32, (B,)),), (), (), (), B * (1 << 62)))
    with pytest.raises(NirError, match="overflows"):
        huge.run([Storage.empty("f32", (9,))])
    large = Executable(Program("p", (TensorType(f32, (B,)),), (), (), (), B * (1 << 44)))
    with pytest.raises(NirError, match="cannot allocate"):
        large.run([Storage.empty("f32", (9,))])


# ---- wrong inputs --------------------------------------------------------------------------------


def test_wrong_inputs_say_what_was_expected_and_where() -> None:
    exe = Executable(h.two_step())
    x, y = arrays(8)
    with pytest.raises(
        ShapeError, match=r"two_step: input 1 \(%y\): expected f32\[B,4\], got f32\[7,4\]"
    ):
        exe(x, y[:7])
    with pytest.raises(ShapeError, match=r"axis 1 is 3, expected 4") as info:
        exe(x[:, :3], y)
    assert "test_runtime.py" in str(info.value.location)
    with pytest.raises(DTypeError, match=r"expected f32\[B,4\], got f64\[8,4\]"):
        exe(x.astype(np.float64), y)
    with pytest.raises(ShapeError, match="expected 2 inputs, got 1"):
        exe(x)
    with pytest.raises(ShapeError, match=r"got f32\[8\]"):
        exe(x[:, 0], y)
    # It still runs.
    np.testing.assert_array_equal(np.asarray(exe(x, y)), (x + y) * np.float32(2))


def test_unknown_kernels_and_levels_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    program = Program("p", (), (), (), (Call("nir_no_such", ()),), 0)
    with pytest.raises(UnsupportedError, match="nir_no_such"):
        Executable(program)
    with pytest.raises(UnsupportedError, match="no ISA level is called 'mmx'"):
        Executable(h.two_step(), isa="mmx")
    monkeypatch.setenv("NIR_ISA", "plain")
    assert Executable(h.two_step()).isa == "plain"


def test_index_errors_name_the_op_and_the_line() -> None:
    exe = Executable(h.gather_program(work=1 << 20))
    table = np.arange(40, dtype=np.float32).reshape(10, 4)
    index = np.arange(5000) % 10
    (out,) = h.run(exe, table, index)
    np.testing.assert_array_equal(out, table[index])
    # The lowest bad row is named, whichever thread meets which.
    for bad, named in ((3000, 3010), (40, 50), (4999, 50)):
        index[bad] = 10 + bad
        with pytest.raises(IndexRangeError, match=f"take: .*from -10 to 9, got {named}") as info:
            h.run(exe, table, index)
        assert str(info.value.location) == "model.py:7"
    index %= 10
    np.testing.assert_array_equal(h.run(exe, table, index)[0], table[index])


def test_buffers_outside_their_home_are_refused() -> None:
    t = TensorType(f32, (B,))
    for buffer in (
        Buffer("input", 0, 0, 4 * B + 1),
        Buffer("output", 0, 4, 4 * B),
        Buffer("arena", 0, 64, 65),
        Buffer("const", 0, 0, 5),
    ):
        program = Program("p", (t,), (t,), (buffer,), (), 128, constants=(b"1234",))
        with pytest.raises(ShapeError, match="buffer 0 ends at"):
            h.run(Executable(program), np.zeros(3, np.float32))


# ---- donation ------------------------------------------------------------------------------------


def test_donation_takes_over_memory_that_nobody_else_holds() -> None:
    exe = Executable(h.two_step(donate=True))
    x, y = arrays(64)
    expected = (x + y) * np.float32(2)
    a, b = Storage.from_numpy(x), Storage.from_numpy(y)
    address = a.address
    (out,) = exe.run([a, b], donate=[0])
    assert out.address == address
    assert a.stale and not b.stale
    np.testing.assert_array_equal(out.numpy(), expected)
    with pytest.raises(StaleTensorError, match="donated"):
        a.numpy()
    with pytest.raises(StaleTensorError, match=r"input 0 \(%x\).*donated"):
        exe.run([a, b])


@pytest.mark.parametrize(
    "how", ["numpy", "memoryview", "dlpack", "view", "twice", "foreign", "unasked"]
)
def test_donation_copies_where_the_memory_is_shared(how: str) -> None:
    exe = Executable(h.two_step(donate=True))
    x, _ = arrays(64)
    a = Storage.from_numpy(x, copy=how != "foreign")
    b = a if how == "twice" else Storage.from_numpy(x)
    view = {
        "numpy": lambda: a.numpy(),
        "memoryview": lambda: memoryview(a),
        "dlpack": lambda: np.from_dlpack(a),
        "view": lambda: a.view((4, 64)),
    }.get(how, lambda: None)()
    (out,) = exe.run([a, b], donate=[] if how == "unasked" else [0])
    assert not a.stale and out.address != a.address
    np.testing.assert_array_equal(a.numpy(), x)
    np.testing.assert_array_equal(out.numpy(), (x + x) * np.float32(2))
    if how in ("numpy", "memoryview", "dlpack", "view"):
        del view
        address = a.address
        (out,) = exe.run([a, b], donate=[0])
        assert out.address == address and a.stale


def test_a_failed_run_gives_back_what_it_did_not_touch() -> None:
    # One donated state is written before the gather that may fail, the other after it.
    t = TensorType(f32, (B, 4))
    gather = h.gather_program()
    program = Program(
        "step",
        (t, t, gather.inputs[1].with_(shape=(3,))),
        (t, t, TensorType(f32, (3, 4))),
        (
            Buffer("input", 0, 0, 16 * B),
            Buffer("output", 0, 0, 16 * B),
            Buffer("input", 1, 0, 16 * B),
            Buffer("output", 1, 0, 16 * B),
            Buffer("input", 2, 0, 24),
            Buffer("output", 2, 0, 48),
        ),
        (
            Call("t_add", (2, 2, 3), (4,), B, 4, op="early"),
            Call("t_gather", (0, 4, 5), (4, B), 3, 4, op="take"),
            Call("t_add", (0, 0, 1), (4,), B, 4, op="late"),
        ),
        0,
        codes=h.gcc_codes({"t_add": h.ADD, "t_gather": h.GATHER}),
        donations=(Donation(0, 0), Donation(1, 1)),
    )
    exe = Executable(program)
    x, y = arrays(6)
    state, other = Storage.from_numpy(x), Storage.from_numpy(y)
    bad, good = (Storage.from_numpy(np.array([0, 1, i])) for i in (6, 5))
    with pytest.raises(IndexRangeError):
        exe.run([state, other, bad], donate=[0, 1])
    assert not state.stale and other.stale
    np.testing.assert_array_equal(state.numpy(), x)
    address = state.address
    out = exe.run([state, Storage.from_numpy(y), good], donate=[0, 1])
    assert state.stale and out[0].address == address
    np.testing.assert_array_equal(out[0].numpy(), x + x)


# ---- storage -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["f64", "f32", "f16", "bf16", "i64", "i32", "i16", "i8", "u8", "bool"]
)
def test_storage_round_trips_every_dtype(name: str) -> None:
    dtype = DTYPES[name].numpy
    a = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype)
    s = Storage.from_numpy(a)
    assert (s.dtype, s.shape, s.nbytes) == (name, (2, 3), a.nbytes)
    assert s.address % 64 == 0
    np.testing.assert_array_equal(s.numpy(), a)
    assert s.numpy().dtype == dtype
    np.testing.assert_array_equal(np.asarray(s), a)
    if name != "bf16":
        np.testing.assert_array_equal(np.from_dlpack(s), a)
        np.testing.assert_array_equal(np.asarray(memoryview(s)), a)
        back = Storage.from_dlpack(a.__dlpack__())
        np.testing.assert_array_equal(back.numpy(), a)
        assert back.address == a.__array_interface__["data"][0]


def test_storage_keeps_what_it_wraps_and_what_wraps_it() -> None:
    a = np.arange(1000, dtype=np.float32)
    s = as_storage(a)
    address = a.__array_interface__["data"][0]
    assert s.address == address
    del a
    view = s.numpy()
    del s
    np.testing.assert_array_equal(view, np.arange(1000))
    frozen = np.arange(3.0)
    frozen.flags.writeable = False
    assert not as_storage(frozen).numpy().flags.writeable
    with pytest.raises(BufferError):
        memoryview(as_storage(np.arange(3).astype("f4"))).cast("B")[0:0].obj.__dlpack__(stream=1)


def test_storage_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(DTypeError, match="complex"):
        Storage.from_numpy(np.zeros(3, np.complex64))
    with pytest.raises(DTypeError):
        Storage.from_numpy(np.zeros(3, ">f4"))
    with pytest.raises(DTypeError, match="f31"):
        Storage.empty("f31", (3,))
    with pytest.raises(ShapeError, match="negative"):
        Storage.empty("f32", (-3,))
    with pytest.raises(NirError):
        Storage.empty("f32", (1 << 62, 1 << 62))
    with pytest.raises(ShapeError, match="sizes differ"):
        Storage.empty("f32", (3,)).view((4,))
    with pytest.raises(ShapeError, match="rank"):
        Storage.empty("f32", (1,) * 17)
    with pytest.raises(BufferError, match="dense"):
        Storage.from_dlpack(np.zeros((4, 4), np.float32).T.__dlpack__())


def test_torch_tensors_share_memory() -> None:
    torch = pytest.importorskip("torch")
    t = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    s = as_storage(t)
    assert s.address == t.data_ptr() and s.shape == (3, 4)
    back = torch.from_dlpack(s)
    assert back.data_ptr() == t.data_ptr()
    half = torch.from_dlpack(Storage.from_numpy(as_storage(t.to(torch.bfloat16)).numpy()))
    assert half.dtype == torch.bfloat16 and torch.equal(half.float(), t)


# ---- host kernels --------------------------------------------------------------------------------


def test_functions_of_the_host_are_kernels() -> None:
    t = TensorType(f32, (B, 2))
    seen = []

    def function(x: np.ndarray) -> list[np.ndarray]:
        seen.append(np.float32(1e-38) * np.float32(0.01) != 0)  # denormals are the host's own
        if x.shape[0] == 3:
            raise KeyError("three")
        return [np.sort(x, axis=0)]

    host = HostKernel(function, [t], [t])
    program = Program(
        "host", (t,), (t,), (Buffer("input", 0, 0, 8 * B), Buffer("output", 0, 0, 8 * B)),
        (Call("sorted", (0, 1), host.dims, op="host_call"),), 0,
    )  # fmt: skip
    exe = Executable(program, hosts={"sorted": host})
    x = np.array([[3, 1], [2, 5]], np.float32)
    np.testing.assert_array_equal(h.run(exe, x)[0], np.sort(x, axis=0))
    with pytest.raises(KeyError, match="three"):
        h.run(exe, np.zeros((3, 2), np.float32))
    np.testing.assert_array_equal(h.run(exe, x)[0], np.sort(x, axis=0))
    assert all(seen)


# ---- the encoding --------------------------------------------------------------------------------


def test_encoding_round_trips() -> None:
    program = h.two_step(donate=True)
    back = decode(encode(program), program.constants)
    for name in (
        "name",
        "inputs",
        "outputs",
        "buffers",
        "calls",
        "arena",
        "constants",
        "donations",
    ):
        assert getattr(back, name) == getattr(program, name), name
    assert back.input_names == ("x", "y")
    assert encode(program) == encode(h.two_step(donate=True))


def test_profiles_cover_every_call() -> None:
    exe = Executable(h.two_step())
    x, y = arrays(1000)
    profile = exe.profile([Storage.from_numpy(x), Storage.from_numpy(y)], runs=3)
    assert [c.op for c in profile.calls] == ["add", "mul"]
    assert profile.seconds > 0
    assert set(profile.by_line()) == {"model.py:16"}
    assert "t_add" in str(profile)


def test_codes_are_emitted_for_the_level_that_runs() -> None:
    asked = []
    codes = h.gcc_codes({"t_add": h.ADD, "t_scale": h.SCALE})

    def emit(isa: str) -> dict[str, bytes]:
        asked.append(isa)
        return {name: levels[isa] for name, levels in codes.items()}

    exe = Executable(replace(h.two_step(), codes={}), emit=emit)
    assert asked == [exe.isa]
    assert exe.codes(["plain", "avx2"])["t_add"].keys() >= {"plain", "avx2", exe.isa}
    x, y = arrays(3)
    np.testing.assert_array_equal(np.asarray(exe(x, y)), (x + y) * np.float32(2))
    with pytest.raises(UnsupportedError, match="t_add, t_scale for ISA level neon"):
        Executable(
            replace(h.two_step(), codes=h.gcc_codes({"t_add": h.ADD, "t_scale": h.SCALE}, exe.isa))
        ).codes(["neon", "avx2"])


def test_damaged_blobs_are_refused() -> None:
    program = h.two_step()
    image, entry = h.gcc_image(h.ADD)
    good = h.make_blob(image, "plain", entry)
    assert _core.check_blob(good)[1] == "plain"
    bad = [good[:n] for n in range(0, len(good), 7)]
    bad += [good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :] for i in range(len(good))]
    bad += [good + b"\0", h.make_blob(image, entry=len(image)), h.make_blob(image, text=0)]
    bad += [h.make_blob(b""), h.make_blob(image, text=len(image) + 1)]
    for blob in bad:
        with pytest.raises(PackageError):
            _core.check_blob(blob)
    foreign = h.make_blob(image, "plain", entry, arch=2)
    other = h.make_blob(image, "avx512", entry)
    for blob in (foreign, other):
        codes = {**program.codes, "t_add": {"plain": blob}}
        with pytest.raises(PackageError, match="t_add"):
            Executable(replace(program, codes=codes), isa="plain")


def test_code_pages_are_shared_and_given_back() -> None:
    source = h.ADD.replace("(void)ctx;", "(void)ctx; /* pages */ if (d[0] == -12345) return 9;")
    program = replace(h.two_step(), codes=h.gcc_codes({"t_add": source, "t_scale": h.SCALE}))
    before = memory_stats()["code_bytes"]
    first = Executable(program)
    grown = memory_stats()["code_bytes"]
    second = Executable(program)
    assert grown > before and memory_stats()["code_bytes"] == grown
    del first
    assert memory_stats()["code_bytes"] == grown
    x, y = arrays(2)
    np.testing.assert_array_equal(np.asarray(second(x, y)), (x + y) * np.float32(2))
    del second
    assert memory_stats()["code_bytes"] == before


def test_in_place_gives_back_the_donated_storage_itself() -> None:
    exe = Executable(h.two_step(donate=True))
    x, y = arrays(3)
    (expected,) = exe.run([Storage.from_numpy(x), Storage.from_numpy(y)])
    a, b = Storage.from_numpy(x), Storage.from_numpy(y)
    (out,) = exe.run([a, b], donate=[0], in_place=True)
    assert out is a and not a.stale
    np.testing.assert_array_equal(a.numpy(), expected.numpy())
    held = a.numpy()  # a view: the memory is not the run's to overwrite
    (out,) = exe.run([a, b], donate=[0], in_place=True)
    assert out is not a and not a.stale
    np.testing.assert_array_equal(held, expected.numpy())
