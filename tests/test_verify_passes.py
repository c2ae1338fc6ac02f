"""NIR_VERIFY finds bugs in passes and names them: generated mutations and seeded rule bugs."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from mutate import mutations, overlaps
from pass_harness import CPU as _CPU
from pass_harness import conv_nchw, graph_of, linear, random_inputs

from nir.errors import NirError, VerifyError
from nir.frozen import replace
from nir.ir.dim import symbol
from nir.ir.graph import Builder, Graph
from nir.ir.interp import run
from nir.ir.op import Value
from nir.ir.program import Target
from nir.ir.types import f32, i32
from nir.ops import (
    Add,
    Cast,
    Constant,
    Max,
    Mul,
    ReducePartial,
    Scan,
    Slice,
    Sub,
    Sum,
    Transpose,
    Where,
)
from nir.ops.expr import Expr
from nir.ops.vjp import gradient
from nir.passes import (
    batch_norm_fold,
    cse,
    dce,
    decompose,
    fold,
    layout,
    pack,
    simplify,
    split_reductions,
)
from nir.passes.pipeline import PIPELINE, Pass, run_pipeline

B = symbol("B")
# With a limit that nothing keeps to, so that every pass has something to do.
CPU = replace(_CPU, memory=1)
# Mutations tried on each pass, among those that change a result.
WANTED = 8


# ---- a program on which every pass has something to do -----------------------------------------


def _recurrent(x: Any, w: Any) -> Any:
    """Three steps h' = tanh(x w + h w), with a result that nobody reads."""
    b = Builder("body")
    h, step, own = (Expr(b, b.input(v.type)) for v in (x, x, w))
    new = (step.matmul(own) + h.matmul(own)).tanh()
    body = b.build([new.value, (new * 2.0).value])
    steps = x.broadcast((3, *x.shape), (1, 2))
    return x.emit(Scan((x.value,), (steps.value,), (w.value,), body, 3, False))[0]


def _model(x: Any, w1: Any, w2: Any, bias: Any, mean: Any, var: Any, fc: Any, out: Any) -> Any:
    # Two large values, of which the first is read last: an order that keeps too much.
    wide = x.broadcast((16, *x.shape), (1, 2, 3, 4))
    first, second = wide.cum_sum(axis=4), wide.cum_sum(axis=3)
    small = second.max((0, 1, 2, 3, 4)) + first.max((0, 1, 2, 3, 4))
    (table,) = x.emit(Constant(data=np.linspace(-1, 1, 4, dtype=np.float32)))
    y = conv_nchw(x, w1, padding=1).relu() * 1.0
    y = y.transpose((0, 2, 3, 1)).conv2d(w2.transpose((2, 3, 1, 0)))
    scale = (table * 2.0).exp()
    y = y.batch_norm_inference(scale, bias, mean, var * var, eps=1e-3)
    y = (y.relu() + y.relu()).mean((1, 2))
    y = _recurrent(y, fc.slice((0, 0), (4, 4), (1, 1)))
    y = linear(y, fc, out)
    y = y * (y.full_like(2.0).sqrt() + 0.5)
    return (y.log_softmax(1) - y.tanh()).mean((0, 1)) + small.tanh() * 0.5


SPECS = (
    "f32[B,3,6,6]", "f32[4,3,3,3]", "f32[4,4,3,3]", "f32[4]", "f32[4]", "f32[4]", "f32[8,4]",
    "f32[8]",
)  # fmt: skip


def program() -> Graph:
    graph = gradient(graph_of(_model, *SPECS, name="program"), wrt=(1, 2, 3, 6, 7))
    op = graph.nodes[0]
    unused = replace(op, results=tuple(Value(10_000, v.type) for v in op.results))
    return graph.with_(nodes=(unused, *graph.nodes))


def inputs_of(graph: Graph) -> list[np.ndarray]:
    return random_inputs(graph, 7, {"B": 70})


def _differ(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> bool:
    """Results differ by more than rounding ever explains."""
    pairs = zip(a, b, strict=True)
    return any(not np.allclose(p, q, rtol=1e-2, atol=1e-3, equal_nan=True) for p, q in pairs)


def with_bug(at: int, mutate: Callable[[Graph], Graph]) -> tuple[Pass, ...]:
    """The pipeline with ``mutate`` applied to the result of pass number ``at``."""
    p = PIPELINE[at]

    def broken(graph: Graph, target: Target) -> Graph:
        return mutate(p.run(graph, target))

    return (*PIPELINE[:at], replace(p, run=broken), *PIPELINE[at + 1 :])


def test_the_program_gives_every_pass_something_to_do() -> None:
    graph = program()
    busy = set()
    for p in PIPELINE:
        after = p.run(graph, CPU)
        if after is not graph:
            busy.add(p.name)
        graph = after
    # Images that are worth bands would take the interpreter minutes here: tests/test_pass_bands.py.
    assert busy == {p.name for p in PIPELINE} - {"bands"}


def test_the_program_verifies() -> None:
    graph = program()
    after = run_pipeline(graph, CPU, verify=inputs_of(graph))
    assert after.plan is not None


_FIRST = {p.name: i for i, p in reversed(list(enumerate(PIPELINE))) if p.name != "plan_memory"}


@pytest.mark.parametrize("name", sorted(_FIRST))
def test_generated_mutations_are_named(name: str) -> None:
    graph = program()
    inputs = inputs_of(graph)
    for p in PIPELINE[: _FIRST[name]]:
        graph = p.run(graph, CPU)
    p = PIPELINE[_FIRST[name]]
    after = p.run(graph, CPU)
    # What the pass made or changed; a pass that only drops ops may have dropped or merged wrongly.
    touched = set(after.nodes) - set(graph.nodes)
    candidates = list(mutations(after, touched or None))
    random.Random(name).shuffle(candidates)
    expected = run(after, inputs)
    found = 0
    for what, mutated in candidates:
        try:
            harmless = not _differ(expected, run(mutated, inputs))
        except (NirError, ValueError, IndexError, TypeError, ZeroDivisionError):
            harmless = False
        if harmless:
            continue
        bug = replace(p, run=lambda g, t, m=mutated: m)
        with pytest.raises(VerifyError) as error:
            run_pipeline(graph, CPU, verify=inputs, passes=(replace(bug, requires=frozenset()),))
        message = str(error.value)
        assert message.startswith(f"pass {name} "), f"{what}: {message}"
        if "changed a result" in message:
            assert "ulp" in message, what
            assert "test_verify_passes.py:" in message or "pass_harness.py:" in message, what
        found += 1
        if found == WANTED:
            break
    assert found >= 3, f"{name}: {len(candidates)} candidates, {found} that matter"


def test_overlaps_in_the_memory_plan_are_named() -> None:
    graph = program()
    inputs = inputs_of(graph)
    for p in PIPELINE[:-1]:
        graph = p.run(graph, CPU)
    planned = PIPELINE[-1].run(graph, CPU)
    candidates = list(overlaps(planned))
    random.Random(0).shuffle(candidates)
    assert len(candidates) >= WANTED
    for what, mutated in candidates[:WANTED]:
        bug = replace(PIPELINE[-1], run=lambda g, t, m=mutated: m, requires=frozenset())
        with pytest.raises(
            VerifyError, match=r"^pass plan_memory.* (overwritten by|written over|it overlaps) "
        ) as error:
            run_pipeline(graph, CPU, verify=inputs, passes=(bug,))
        assert ".py:" in str(error.value), what


def test_a_wrong_epilogue_operand_is_named() -> None:
    def f(x: Any, w: Any, a: Any, b: Any) -> Any:
        y = x.matmul(w)
        return (y + a.broadcast(y.shape, (1,))) * b.broadcast(y.shape, (1,))

    graph = graph_of(f, "f32[B,8]", "f32[8,16]", "f32[16]", "f32[16]")

    def swap(after: Graph) -> Graph:
        nodes = []
        for op in after.nodes:
            if op.name == "fused" and op.form == "epilogue":  # type: ignore[attr-defined]
                types = [v.type for v in op.operands]
                i, j = (k for k, t in enumerate(types) if t.shape == (16,))
                operands = list(op.operands)
                operands[i], operands[j] = operands[j], operands[i]
                op = replace(op, inputs=tuple(operands))  # type: ignore[call-arg]
            nodes.append(op)
        assert nodes != list(after.nodes)
        return after.with_(nodes=nodes)

    at = next(i for i, p in enumerate(PIPELINE) if p.name == "fuse")
    inputs = random_inputs(graph, 0)
    run_pipeline(graph, CPU, verify=inputs)
    with pytest.raises(VerifyError, match=r"^pass fuse changed a result: fused at .*py:.* ulp"):
        run_pipeline(graph, CPU, verify=inputs, passes=with_bug(at, swap))


# ---- bugs in rules, one for each class of rule -------------------------------------------------


def _rule(module: Any, cls: Any, wrong: Callable[..., Any]) -> Callable[[Any], None]:
    def seed(monkeypatch: Any) -> None:
        monkeypatch.setattr(module, "RULES", {**module.RULES, cls: (wrong,)})

    return seed


def _attr(module: Any, name: str, value: Any) -> Callable[[Any], None]:
    return lambda monkeypatch: monkeypatch.setattr(module, name, value)


def wrong_transpose(ctx: Any, op: Transpose) -> Any:
    """Composes permutations the wrong way round."""
    match ctx.producer(op.x):
        case Transpose(x=x, perm=inner):
            return [ctx.emit(Transpose(x, tuple(op.perm[a] for a in inner)))]
    return None


def wrong_slice(ctx: Any, op: Slice) -> Any:
    """Adds the starts without regard to the inner steps."""
    match ctx.producer(op.x):
        case Slice(x=x, starts=starts, steps=steps):
            at = tuple(s + o for s, o in zip(starts, op.starts, strict=True))
            step = tuple(a * b for a, b in zip(steps, op.steps, strict=True))
            return [ctx.emit(Slice(x, at, op.sizes, step))]
    return None


def wrong_fold(ctx: Any, op: Any) -> Any:
    return [ctx.full(1.0, op.result.type)] if isinstance(ctx.scalar(op.lhs), float) else None


def wrong_batch_norm(ctx: Any, op: Any) -> Any:
    """Forgets that eps belongs under the root."""
    return batch_norm_fold.fold_batch_norm(ctx, replace(op, eps=0.0))


def wrong_split(ctx: Any, op: Any) -> Any:
    """Joins the partial sums by their maximum."""
    if ctx.producer(op.x) is not None:
        return None
    part = ctx.emit(ReducePartial(op.x, "sum", 16, 1))
    return [ctx.emit(Max(part, (0,)))]


def wrong_pack(ctx: Any, op: Any) -> Any:
    """Forgets the transpose."""
    if op.rhs.type.layout:
        return None
    return [ctx.emit(replace(op, rhs=ctx.emit(pack.Pack(op.rhs)), transpose_rhs=False))]


def wrong_hoist(ctx: Any, op: Transpose) -> Any:
    """Cancels transposes that are not inverses."""
    match ctx.producer(op.x):
        case Transpose(x=x) if x.type == op.result.type:
            return [x]
    return None


def blind_key(op: Any) -> Any:
    return op.name, tuple(v.id for v in op.operands), tuple(v.type for v in op.results)


Fn = Callable[..., Any]
F = "f32[B,4]"
BUGS: dict[str, tuple[str, Callable[[Any], None], Fn, tuple[str, ...]]] = {
    "simplify arithmetic": (
        "simplify",
        _rule(simplify, Sub, lambda ctx, op: [ctx.emit(Add(op.lhs, op.rhs))]),
        lambda x, y: x - y,
        (F, F),
    ),
    "simplify x + 0": (
        "simplify",
        _rule(simplify, Add, lambda ctx, op: [op.lhs]),
        lambda x: x + 1.0,
        (F,),
    ),
    "simplify where": (
        "simplify",
        _rule(simplify, Where, lambda ctx, op: [op.y]),
        lambda x: x.gt(x.zeros_like()).where(x, -x),
        (F,),
    ),
    "simplify casts": (
        "simplify",
        _rule(
            simplify,
            Cast,
            lambda ctx, op: [ctx.producer(op.x).x] if ctx.producer(op.x).name == "cast" else None,
        ),
        lambda x: (x * 3.0).exp().cast(i32).cast(f32),
        (F,),
    ),
    "simplify transposes": (
        "simplify",
        _rule(simplify, Transpose, wrong_transpose),
        lambda x: x.transpose((1, 2, 0)).transpose((0, 2, 1)),
        ("f32[4,4,4]",),
    ),
    "simplify slices": (
        "simplify",
        _rule(simplify, Slice, wrong_slice),
        lambda x: x.slice((1,), (6,), (2,)).slice((1,), (2,), (1,)),
        ("f32[20]",),
    ),
    "simplify reductions": (
        "simplify",
        _rule(simplify, Sum, lambda ctx, op: [ctx.emit(simplify.Max(op.x, op.axes))]),
        lambda x: x.sum((1,)),
        (F,),
    ),
    "fold": (
        "fold",
        _rule(fold, Mul, wrong_fold),
        lambda x: x + x.full_like(2.0) * 3.0,
        (F,),
    ),
    "cse blind to attributes": (
        "cse",
        _attr(cse, "_key", blind_key),
        lambda x: x.cum_sum(0) - x.cum_sum(1),
        ("f32[4,4]",),
    ),
    "dce drops what is needed": (
        "dce",
        lambda m: m.setattr(dce, "sweep", lambda g: g.with_(nodes=g.nodes[1:])),
        lambda x: x.exp() + x,
        (F,),
    ),
    "decompose": (
        "decompose",
        lambda m: m.setattr(
            decompose.OPS["mean"], "decompose", lambda self, xs: (xs[0].sum(self.axes),)
        ),
        lambda x: x.mean((1,)),
        (F,),
    ),
    "layout": (
        "layout",
        _rule(layout, Transpose, wrong_hoist),
        lambda x: x.transpose((1, 2, 0)).exp().transpose((0, 2, 1)),
        ("f32[4,4,4]",),
    ),
    "batch_norm_fold": (
        "batch_norm_fold",
        _rule(batch_norm_fold, batch_norm_fold.BatchNormInference, wrong_batch_norm),
        lambda x, w, a, b, c, d: x.matmul(w).batch_norm_inference(a, b, c, d * d, eps=0.5),
        (F, "f32[4,8]", "f32[8]", "f32[8]", "f32[8]", "f32[8]"),
    ),
    "pack": (
        "pack",
        _rule(pack, pack.Matmul, wrong_pack),
        lambda x, w: x.matmul(w, transpose_rhs=True),
        (F, "f32[4,4]"),
    ),
    "split_reductions": (
        "split_reductions",
        _rule(split_reductions, Sum, wrong_split),
        lambda x: x.sum((0,)),
        (F,),
    ),
}


@pytest.mark.parametrize("name", BUGS)
def test_seeded_rule_bugs_are_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pass_name, seed, fn, specs = BUGS[name]
    graph = graph_of(fn, *specs)
    inputs = [a + np.float32(0.25) for a in random_inputs(graph, 3, {"B": 40})]
    # Alone, so that another pass cannot take the op away first.
    alone = [replace(p, requires=frozenset()) for p in PIPELINE if p.name == pass_name][:1]
    run_pipeline(graph, CPU, verify=inputs, passes=alone)
    seed(monkeypatch)
    with pytest.raises(VerifyError, match=f"^pass {pass_name} ") as error:
        run_pipeline(graph, CPU, verify=inputs, passes=alone)
    message = str(error.value)
    assert "test_verify_passes.py:" in message or "does not run" in message


# ---- the switches ------------------------------------------------------------------------------


def test_the_environment_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    at = next(i for i, p in enumerate(PIPELINE) if p.name == "fold")

    def mutate(graph: Graph) -> Graph:
        return next(g for what, g in mutations(graph) if what.startswith("add: is sub"))

    graph = graph_of(lambda x, y: x + y, F, F)
    broken = with_bug(at, mutate)
    monkeypatch.delenv("NIR_VERIFY", raising=False)
    run_pipeline(graph, CPU, passes=broken)
    monkeypatch.setenv("NIR_VERIFY", "1")
    with pytest.raises(VerifyError, match=r"^pass fold changed a result: sub at .*\.py:\d+"):
        run_pipeline(graph, CPU, passes=broken)
