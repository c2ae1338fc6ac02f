"""What compiling costs, counted: what was compiled before is found, and nothing is redone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nir
from nir.frontend.flush import compile_count
from nir.frontend.state import snapshot
from nir.ir.location import Location
from nir.nn import functional as F
from nir.runtime import Stored, object_cache

ROOT = Path(__file__).parent.parent
compiler = sys.modules["nir.compile"]  # nir.compile is a function

TRAIN = """
import sys
import numpy as np
import nir
from examples.resnet9 import ResNet9
from nir.nn import functional as F

if sys.argv[1:] == ["warm"]:
    # Nothing of this may run.
    for name in ("run_pipeline", "lower", "Batch", "blobs_of"):
        setattr(sys.modules["nir.compile"], name, None)
nir.manual_seed(0)
model = ResNet9()
optimizer = nir.optim.Adam(model.parameters(), lr=5e-4, weight_decay=1e-3)

@nir.jit(state=[model, optimizer], specs=("f32[B,3,32,32]", "i64[B]"))
def step(x, y):
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.detach()

rng = np.random.default_rng(0)
x = nir.tensor(rng.standard_normal((4, 3, 32, 32)).astype(np.float32))
y = nir.tensor(rng.integers(0, 10, 4))
losses = [step(x, y).item().hex() for _ in range(2)]
print(*losses, step.compiles, "llvmlite" in sys.modules, type(step.executable).__name__)
"""


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NIR_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("NIR_DUMP", raising=False)
    monkeypatch.delenv("NIR_VERIFY", raising=False)
    return tmp_path


def run_script(text: str, *args: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", text, *args],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_second_process_runs_no_pass_and_compiles_nothing(empty_cache: Path) -> None:
    cold = run_script(TRAIN)
    warm = run_script(TRAIN, "warm")
    assert cold[2:] == ["1", "True", "Executable"]
    assert warm[2:] == ["1", "False", "Stored"]
    assert warm[:2] == cold[:2]  # the same bits


def scaled(line: int, factor: float) -> nir.Graph:
    """The graph of a function whose only line is number ``line`` of scaled.py."""
    env: dict[str, object] = {}
    source = "\n" * (line - 1) + f"def fn(x, i): return (x * {factor}).exp()[i]"
    exec(compile(source, "scaled.py", "exec"), env)
    return nir.trace(env["fn"], "f32[N,4]", "i64[M]")


def test_a_program_found_on_disk_is_the_one_that_was_stored(empty_cache: Path) -> None:
    graph = scaled(3, 2.0)
    first, second = compiler.compile_graph(graph), compiler.compile_graph(graph)
    assert not isinstance(first, Stored) and isinstance(second, Stored)
    x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    index = np.array([2, 0])
    assert first(x, index).numpy().tobytes() == second(x, index).numpy().tobytes()
    assert second.text == first.text
    assert second.sites == first.sites
    assert str(second.peak_bytes) == str(first.peak_bytes)
    assert second.program.calls == first.program.calls
    assert second.codes(("avx2", "plain")) == first.codes(("avx2", "plain"))


def test_a_stored_program_has_the_lines_of_the_graph_it_is_used_for(empty_cache: Path) -> None:
    compiler.compile_graph(scaled(3, 2.0))
    moved = compiler.compile_graph(scaled(7, 2.0))
    assert isinstance(moved, Stored)
    lines = {loc for _, locs in moved.sites for loc in locs}
    assert lines == {Location("scaled.py", 7)}
    with pytest.raises(nir.NirError, match=r"scaled\.py:7"):
        moved(np.zeros((3, 4), np.float32), np.array([5]))


def test_a_miss_says_what_differs(empty_cache: Path) -> None:
    compiler.compile_graph(scaled(3, 2.0))
    machine = compiler.resolve_target("cpu")
    parts = compiler.program_parts(scaled(3, 3.0), machine)
    assert object_cache().why(parts) == "the entry most alike differs in graph"
    parts = compiler.program_parts(scaled(3, 2.0), machine)
    assert object_cache().why(parts) == "the entry is there"


@pytest.mark.parametrize("flag", ["NIR_DUMP", "NIR_VERIFY"])
def test_inspection_compiles_anew(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flag: str
) -> None:
    graph = scaled(3, 2.0)
    compiler.compile_graph(graph)
    monkeypatch.setenv(flag, str(tmp_path / "dump") if flag == "NIR_DUMP" else "1")
    assert not isinstance(compiler.compile_graph(graph), Stored)


def test_functions_of_this_process_are_not_stored(empty_cache: Path) -> None:
    def traced(x: nir.Tensor) -> nir.Tensor:
        return nir.host_call(np.cumsum, "f32[3]", x)

    graph = nir.trace(traced, "f32[3]")
    assert compiler.program_parts(graph, compiler.resolve_target("cpu")) is None


def test_an_epoch_compiles_two_programs(empty_cache: Path) -> None:
    model = nir.nn.Sequential(nir.nn.Linear(8, 16), nir.nn.BatchNorm1d(16), nir.nn.Linear(16, 3))
    optimizer = nir.optim.Adam(model.parameters(), lr=1e-2)
    schedule = nir.optim.CosineAnnealingLR(optimizer, T_max=5)
    specs = ("f32[B,8]", "i64[B]")

    @nir.jit(state=[model, optimizer], specs=specs)
    def train(x: nir.Tensor, y: nir.Tensor) -> nir.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    @nir.jit(state=[model], specs=specs)
    def evaluate(x: nir.Tensor, y: nir.Tensor) -> nir.Tensor:
        return (model(x).argmax(1) == y).sum()

    rng = np.random.default_rng(0)

    def batch(n: int) -> tuple[nir.Tensor, nir.Tensor]:
        x = rng.standard_normal((n, 8)).astype(np.float32)
        return nir.tensor(x), nir.tensor(rng.integers(0, 3, n))

    before = compile_count()
    for _ in range(3):
        model.train()
        for size in (32, 32, 32, 7):
            train(*batch(size)).item()
        schedule.step()
        model.eval()
        for size in (50, 21):
            evaluate(*batch(size)).item()
    # Besides the two, one flush made the initial weights: reading results and setting rates
    # compile nothing.
    assert compile_count() <= before + 3
    assert (train.compiles, evaluate.compiles) == (1, 1)
    assert train.why == ["first call"]


# ---- state that did not change is not walked again ----------------------------------------------


class Part:
    def __init__(self) -> None:
        self.rate = 0.5
        self.tags = ["a"]
        self.table = {"k": 1}
        self.names = {"x"}
        self.array = np.zeros(2)
        self.weight = nir.tensor([1.0, 2.0])


def change_attribute(p: Part) -> None:
    p.rate = 0.25


def change_list(p: Part) -> None:
    p.tags[0] = "b"


def append(p: Part) -> None:
    p.tags.append("b")


def change_dict(p: Part) -> None:
    p.table["k"] = 2


def rename_key(p: Part) -> None:
    p.table = {"j": p.table["k"]}


def change_set(p: Part) -> None:
    p.names.add("y")


def change_array(p: Part) -> None:
    p.array[1] = 5


def change_class(p: Part) -> None:
    p.__class__ = type("Other", (Part,), {})


def replace_tensor(p: Part) -> None:
    p.weight = nir.tensor([3.0, 4.0])


def add_tensor(p: Part) -> None:
    p.bias = nir.tensor([3.0])  # type: ignore[attr-defined]


CHANGES = (
    change_attribute, change_list, append, change_dict, rename_key, change_set, change_array,
    change_class, replace_tensor, add_tensor,
)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_view_of_state_notices_changes(change: object) -> None:
    part = Part()
    view = snapshot([part])
    assert view.holds()
    change(part)  # type: ignore[operator]
    assert not view.holds()
    fresh = snapshot([part])
    assert fresh.holds()
    # A walk sees the change too: other guards or other tensors.
    old = [(s.path, id(s.tensor)) for s in view.slots]
    assert view.facts != fresh.facts or old != [(s.path, id(s.tensor)) for s in fresh.slots]


def test_marks_are_one_object_until_a_type_changes() -> None:
    part = Part()
    view = snapshot([part])
    marks = view.marks()
    part.weight.copy_(nir.tensor([5.0, 6.0]))
    assert view.marks() == marks
    assert view.marks() is view.marks()
    part.weight.requires_grad_()
    assert view.marks() != marks


def test_a_changed_attribute_compiles_again_and_a_restored_one_does_not(empty_cache: Path) -> None:
    part = Part()

    @nir.jit(state=[part])
    def fn(x: nir.Tensor) -> nir.Tensor:
        return x * part.rate + part.weight

    x = nir.tensor([1.0, 1.0])
    assert fn(x).tolist() == [1.5, 2.5]
    part.rate = 2.0
    assert fn(x).tolist() == [3.0, 4.0]
    part.rate = 0.5
    assert fn(x).tolist() == [1.5, 2.5]
    assert fn.compiles == 2
    assert "rate: 0.5 -> 2.0" in fn.why[1]


def test_resnet9_in_nchw_has_no_transpose_call(empty_cache: Path) -> None:
    count = "print(step.executable.graph.count().get('transpose', 0))"
    assert run_script(TRAIN + count)[-1] == "0"
