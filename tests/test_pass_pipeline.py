"""The pipeline: its order is checked, facts are checked, dumps are written, time is near-linear."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pass_harness import CPU, graph_of, linear, random_inputs, resnet9_loss, resnet9_step

from nir.errors import UnsupportedError, VerifyError
from nir.frozen import replace
from nir.ir.graph import Graph
from nir.ir.interp import run
from nir.ir.program import Target
from nir.passes import rewrite
from nir.passes.pipeline import PASSES, PIPELINE, Pass, check_order, run_pipeline

F = "f32[B,4]"


def by_name(name: str) -> Pass:
    return next(p for p in PIPELINE if p.name == name)


def test_every_pass_has_a_name_for_the_command_line() -> None:
    assert list(PASSES) == list(dict.fromkeys(p.name for p in PIPELINE))
    graph = graph_of(lambda x: x * 1, F)
    assert PASSES["simplify"](graph, CPU).nodes == ()


def test_the_order_is_checked() -> None:
    with pytest.raises(VerifyError, match="fuse requires covered, split, which no pass before"):
        check_order([by_name("fuse")])
    with pytest.raises(VerifyError, match="pass fuse requires split"):
        check_order([by_name("decompose"), by_name("fuse")])
    # A pass that breaks a fact takes it away again.
    order = [by_name(n) for n in ("decompose", "split_reductions", "layout", "fuse")]
    with pytest.raises(VerifyError, match="pass fuse requires split"):
        check_order(order)


def test_a_pass_that_does_not_keep_its_word_is_named() -> None:
    lazy = replace(by_name("decompose"), run=lambda g, t: g)
    graph = graph_of(lambda x: x.mean((0,)), F)
    with pytest.raises(VerifyError, match=r"pass decompose ensures 'covered', and mean breaks it"):
        run_pipeline(graph, CPU, passes=[lazy])


def test_a_pass_that_changes_the_signature_is_named() -> None:
    other = graph_of(lambda x: x.sum((0,)), F)
    bad = replace(by_name("simplify"), run=lambda g, t: other)
    with pytest.raises(VerifyError, match="pass simplify changed the signature"):
        run_pipeline(graph_of(lambda x: -x, F), CPU, passes=[bad])


def test_an_unsupported_op_keeps_its_own_error() -> None:
    graph = graph_of(lambda x: x.cum_sum(0), "f32[B,4]")
    with pytest.raises(UnsupportedError, match=r"cum_sum\(f32\[B,4\]\): target cpu"):
        run_pipeline(graph, Target("cpu"))


def test_dumps_follow_the_passes_that_changed_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIR_DUMP", str(tmp_path))
    graph = graph_of(lambda x, w, b: linear(x, w, b).relu().mean((0, 1)), F, "f32[8,4]", "f32[8]")
    run_pipeline(graph, CPU)
    files = sorted(path.name for path in tmp_path.glob("*/*.nir"))
    names = [name.split("-", 1)[1].removesuffix(".nir") for name in files]
    assert names[0] == "traced"
    order = iter(p.name for p in PIPELINE)
    assert all(name in order for name in names[1:])  # a subsequence
    assert {"decompose", "pack", "fuse", "plan_memory"} <= set(names)
    assert "batch_norm_fold" not in names


def test_a_lowered_graph_lowers_to_itself() -> None:
    once = run_pipeline(resnet9_loss(), CPU)
    for name in ("simplify", "fold", "cse", "dce", "layout", "decompose", "unpack", "fuse"):
        assert PASSES[name](once, CPU).nodes == once.nodes, name
    # Packs are for weights that are bound or a loop's own; beside a product they are taken back.
    assert PASSES["unpack"](PASSES["pack"](once, CPU), CPU).count() == once.count()


def test_the_pipeline_is_deterministic() -> None:
    assert run_pipeline(resnet9_step(), CPU) == run_pipeline(resnet9_step(), CPU)


def test_resnet9_trains_the_same_after_every_pass() -> None:
    graph = resnet9_step()
    inputs = [abs(a) for a in random_inputs(graph, 0, {"B": 3})]
    after = run_pipeline(graph, CPU, verify=inputs)
    loss, *_ = run(graph, inputs)
    lowered, *_ = run(after, inputs)
    assert abs(loss - lowered) <= 1e-5 * abs(loss)
    # Images, weights and activations are read as they lie.
    assert "transpose" not in after.count()


def test_the_interpreter_target_needs_no_kernels() -> None:
    graph = graph_of(lambda x, w: x.matmul(w).softmax(1), F, "f32[4,4]")
    after = run_pipeline(graph, Target("interp"), verify=random_inputs(graph))
    assert after.plan is not None


# ---- time --------------------------------------------------------------------------------------


def _deep(blocks: int) -> Graph:
    """A chain of blocks, eight ops each, with something for every pass."""

    def f(x: Any, w: Any) -> Any:
        for _ in range(blocks):
            y = (x.transpose((1, 0)) * 1.0).relu().transpose((1, 0))
            x = y - x.mean((1,)).broadcast(x.shape, (0,)) + (y.full_like(2.0) + 1.0)
        return x.matmul(w)

    return graph_of(f, F, "f32[4,4]")


@pytest.mark.parametrize("name", [n for n in PASSES if n not in ("fuse", "plan_memory")])
def test_rule_applications_grow_linearly(name: str, monkeypatch: pytest.MonkeyPatch) -> None:

    counts = []
    for blocks in (100, 400):
        calls = 0
        original = rewrite._Driver._apply

        def counting(self: Any, rule: Any, node: Any, original: Any = original) -> bool:
            nonlocal calls
            calls += 1
            return original(self, rule, node)

        with monkeypatch.context() as m:
            m.setattr(rewrite._Driver, "_apply", counting)
            graph = _deep(blocks)
            for p in PIPELINE[: [p.name for p in PIPELINE].index(name)]:
                graph = p.run(graph, CPU)
            calls = 0
            PASSES[name](graph, CPU)
        counts.append(calls)
    assert counts[1] <= 4.4 * counts[0] + 10
