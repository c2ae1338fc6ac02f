"""Programs as text: every call, where its operands lie, and the user's lines. For reading only.

program @step(%x: f32[B,784], %w: f32[784,10]) -> (%out0: f32[B,10]) arena[64*B] {
  const0 = 40 bytes sha256:9f86d081884c7d65
  code nir_loop_1f = avx2 1234 bytes, avx512 1100 bytes
  b0 = input[%x] : 3136*B bytes
  b2 = arena[0] : 40*B bytes
  nir_matmul_f32(b0, b1, b2) {dims=[B, 10, 784], rows=B, cols=10} for matmul   @ model.py:14
}
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from nir.ir.dim import Dim
from nir.ir.printer import dim_text, location_token, name_text, type_text
from nir.ir.program import Buffer, Call, Program


def print_program(program: Program) -> str:
    """The text of ``program``: the same for equal programs."""
    return "\n".join(_lines(program)) + "\n"


def _lines(p: Program) -> Iterator[str]:
    inputs = p.input_names or tuple(f"in{i}" for i in range(len(p.inputs)))
    outputs = p.output_names or tuple(f"out{i}" for i in range(len(p.outputs)))
    left = ", ".join(
        f"%{name_text(n)}: {type_text(t)}" for n, t in zip(inputs, p.inputs, strict=True)
    )
    right = ", ".join(
        f"%{name_text(n)}: {type_text(t)}" for n, t in zip(outputs, p.outputs, strict=True)
    )
    reuse = ", ".join(f"{d.input}->{d.output}" for d in p.donations)
    head = f"program @{name_text(p.name)}({left}) -> ({right}) arena[{dim_text(p.arena)}]"
    yield head + (f" reuse[{reuse}]" if reuse else "") + " {"
    for i, data in enumerate(p.constants):
        yield f"  const{i} = {len(data)} bytes sha256:{hashlib.sha256(data).hexdigest()[:16]}"
    for name, blobs in sorted(p.codes.items()):
        yield f"  code {name} = " + ", ".join(
            f"{isa} {len(blob)} bytes" for isa, blob in sorted(blobs.items())
        )
    places = {"input": inputs, "output": outputs}
    for i, buffer in enumerate(p.buffers):
        yield f"  b{i} = {_place(buffer, places)} : {dim_text(buffer.nbytes)} bytes"
    calls = [_call(c) for c in p.calls]
    width = max((len(c) for c in calls if len(c) <= 80), default=0)
    for text, call in zip(calls, p.calls, strict=True):
        where = ", ".join(map(location_token, sorted(call.locs)))
        yield f"  {text:<{width}}   @ {where}" if where else f"  {text}"
    yield "}"


def _place(b: Buffer, names: dict[str, tuple[str, ...]]) -> str:
    match b.kind:
        case "arena":
            return f"arena[{dim_text(b.offset)}]"
        case "const":
            place = f"const{b.index}"
        case _:
            place = f"{b.kind}[%{name_text(names[b.kind][b.index])}]"
    return f"{place}+{dim_text(b.offset)}" if b.offset != 0 else place


def _call(c: Call) -> str:
    args = ", ".join(f"b{i}" for i in c.args)
    notes = [f"dims={_dims(c.dims)}"] if c.dims else []
    notes += [f"rows={dim_text(c.rows)}", f"cols={dim_text(c.cols)}"]
    notes += [f"row_grain={c.row_grain}"] if c.row_grain != 1 else []
    notes += [f"col_grain={c.col_grain}"] if c.col_grain else []
    notes += [f"scratch={dim_text(c.scratch)}"] if c.scratch != 0 else []
    notes += [f"work={dim_text(c.work)}"] if c.work != 0 else []
    if c.epilogue is not None:
        e = c.epilogue
        inner = ", ".join(f"b{i}" for i in e.args)
        notes.append(f"epilogue={e.kernel}({inner}){_dims(e.dims) if e.dims else ''}")
    text = f"{c.kernel}({args}) {{{', '.join(notes)}}}"
    return f"{text} for {c.op}" if c.op else text


def _dims(dims: tuple[Dim, ...]) -> str:
    return f"[{', '.join(map(dim_text, dims))}]"
