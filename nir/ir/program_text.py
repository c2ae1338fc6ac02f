"""Programs as text: every call, where its operands lie, and the user's lines. For reading only.

program @step(%x: f32[B,784], %w: f32[784,10]) -> (%out0: f32[B,10]) arena[64*B] {
  const0 = 40 bytes sha256:9f86d081884c7d65
  code nir_loop_1f = avx2 1234 bytes, avx512 1100 bytes
  b0 = input[%x] : 3136*B bytes
  b2 = arena[0] : 40*B bytes
  nir_matmul_f32(b0, b1, b2) {dims=[B, 10, 784], rows=B, cols=10} for matmul   @ model.py:14
  loop0 T times {
    nir_loop_1f(b3, b4) {...} for add   @ model.py:15
  }
}
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from nir.ir.dim import Dim, Poly
from nir.ir.printer import dim_text, location_token, name_text, type_text
from nir.ir.program import Bands, Branch, Buffer, Call, Loop, Program, Stage


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
    for i, c in enumerate(p.carries):
        yield (
            f"  carry{i} = loop{c.loop}: b{c.init}, then b{c.result} and b{c.spare} in turn : "
            f"{dim_text(c.nbytes)} bytes"
        )
    calls = [_call(c) for c in p.calls]
    width = max((len(c) for c in calls if len(c) <= 80), default=0)
    opening, closing = _braces(p)
    indent = "  "
    for i, (text, call) in enumerate(zip(calls, p.calls, strict=True)):
        for line in opening.get(i, ()):
            indent = indent[2:] if line.startswith("}") else indent
            yield indent + line
            indent += "  "
        where = ", ".join(map(location_token, sorted(call.locs)))
        yield f"{indent}{text:<{width}}   @ {where}" if where else f"{indent}{text}"
        for _ in range(closing.get(i + 1, 0)):
            indent = indent[2:]
            yield indent + "}"
    yield "}"


def _braces(p: Program) -> tuple[dict[int, list[str]], dict[int, int]]:
    """Lines in front of each call that begins a part of a control, and how many end behind it."""
    opening: dict[int, list[str]] = {}
    closing: dict[int, int] = {}
    for i, c in enumerate(p.controls):
        begin = opening.setdefault(c.first, [])
        closing[c.end] = closing.get(c.end, 0) + 1
        match c:
            case Bands(lines=lines, stages=stages):
                begin.append(f"bands{i} of {lines} lines, {', '.join(map(_stage, stages))} {{")
                continue
            case Branch(predicate=b):
                begin.append(f"branch{i} if b{b} {{")
            case Loop(trips=trips, predicate=None, reverse=reverse):
                assert trips is not None
                begin.append(f"loop{i} {dim_text(trips)} times{' in reverse' * reverse} {{")
            case Loop(trips=trips, predicate=b):
                most = f" at most {dim_text(trips)} times" if trips is not None else ""
                begin.append(f"loop{i}{most} {{")
        second = c.other if isinstance(c, Branch) else c.body
        if isinstance(c, Branch) or c.predicate is not None:
            word = "} else {" if isinstance(c, Branch) else f"}} while b{c.predicate} {{"
            if second == c.first:
                begin.append(word)
            elif second < c.end:
                opening.setdefault(second, []).insert(0, word)
    return opening, closing


def _stage(s: Stage) -> str:
    pointwise = s.extent == s.stride == 1
    window = "" if pointwise else f" reads {s.extent} from {s.stride}*i-{s.above}"
    kept = f" keeps {s.kept} of {s.bytes} bytes" if s.kept else ""
    return f"({s.height}x{s.width}{window}{kept})"


def _place(b: Buffer, names: dict[str, tuple[str, ...]]) -> str:
    match b.kind:
        case "arena":
            return f"arena[{dim_text(b.offset)}]" + _moves(b)
        case "const":
            place = f"const{b.index}"
        case "before" | "after":
            place = f"{b.kind}[carry{b.index}]"
        case "lines":
            place = f"lines[call {b.index}]"
        case _:
            place = f"{b.kind}[%{name_text(names[b.kind][b.index])}]"
    place = f"{place}+{dim_text(b.offset)}" if b.offset != 0 else place
    return place + _moves(b)


def _moves(b: Buffer) -> str:
    return "".join(f" + loop{m.loop}*{_factor(m.stride)}" for m in b.moves)


def _factor(d: Dim) -> str:
    return f"({dim_text(d)})" if isinstance(d, Poly) and len(d.terms) > 1 else dim_text(d)


def _call(c: Call) -> str:
    args = ", ".join(f"b{i}" for i in c.args)
    notes = [f"dims={_dims(c.dims)}"] if c.dims else []
    notes += [f"rows={dim_text(c.rows)}", f"cols={dim_text(c.cols)}"]
    notes += [f"row_grain={c.row_grain}"] if c.row_grain != 1 else []
    notes += [f"col_grain={c.col_grain}"] if c.col_grain else []
    notes += ["even"] if c.even else []
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
