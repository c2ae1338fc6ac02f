"""The command line on files: print, run, opt, diff, and errors with exit status 2."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import networkx
import numpy as np
import pytest

from nir import flags
from nir.__main__ import main
from nir.compile import compile_graph
from nir.errors import NirError
from nir.ir.text import parse_graph, read_graph

TEXT = """# written by hand
graph @mlp(%x: f32[B,4], %w: f32[4,3], %"b[0]": f32[3]) -> f32[B,3] {
  %h  = matmul(%x, %w) : f32[B,3]                                   @ model.py:14
  %bb = broadcast(%"b[0]") {shape=[B, 3], axes=[1]} : f32[B,3]      @ model.py:14
  %s  = add(%h, %bb) : f32[B,3]                                     @ model.py:14
  %n  = neg(%s) : f32[B,3]                                          @ model.py:15
  %nn = neg(%n) : f32[B,3]                                          @ model.py:15
  %y  = relu(%nn) : f32[B,3]
  return %y
}
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "mlp.nir"
    path.write_text(TEXT)
    return str(path)


def test_print(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["print", file]) == 0
    shown = capsys.readouterr().out
    assert "  %1 = broadcast(" in shown and "@ mlp.nir:8\n" in shown
    assert parse_graph(shown) == parse_graph(TEXT)
    assert main(["print", "--counts", file]) == 0
    assert capsys.readouterr().out == "6 ops: 1 add, 1 broadcast, 1 matmul, 2 neg, 1 relu\n"


def test_run(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, w, b = np.ones((2, 4)), np.arange(12).reshape(4, 3), np.array([-100.0, 0, 100])
    inputs, output = str(tmp_path / "x.npz"), str(tmp_path / "y.npz")
    arrays = {"x": x, "w": w, "b[0]": b}
    np.savez(inputs, **{k: a.astype(np.float32) for k, a in arrays.items()})
    assert main(["run", file, "--inputs", inputs, "--output", output]) == 0
    assert capsys.readouterr().out == (
        "out0 %5: f32[2, 3]\n[[  0.  22. 126.]\n [  0.  22. 126.]]\n"
    )
    with np.load(output) as found:
        np.testing.assert_array_equal(found["out0"], np.maximum(x @ w + b, 0))
    assert main(["run", file, "--random", "3", "--size", "B=5"]) == 0
    assert capsys.readouterr().out.startswith("out0 %5: f32[5, 3]\n")


def test_opt(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["opt", file, "--passes", "simplify,dce"]) == 0
    assert "neg" not in capsys.readouterr().out
    out = str(tmp_path / "out.nir")
    assert main(["opt", file, "-o", out, "--isa", "avx2"]) == 0
    lowered = read_graph(out)
    assert lowered.plan is not None and "fused" in lowered.count()
    results = []
    for args in ([file], [out], [out, "--arena"]):
        assert main(["run", *args, "--random", "0"]) == 0
        results.append(capsys.readouterr().out.split("\n", 1)[1])
    assert results[0] == results[1] == results[2]


def test_opt_verifies_and_dumps(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIR_VERIFY", "1")
    monkeypatch.setenv("NIR_DUMP", str(tmp_path / "dump"))
    assert main(["opt", file, "-o", str(tmp_path / "out.nir")]) == 0
    names = [f.name for f in sorted((tmp_path / "dump").glob("*/*.nir"))]
    assert names[0] == "000-traced.nir" and names[-1].endswith("-plan_memory.nir")


def test_diff(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.nir"
    other.write_text(TEXT.replace("%nn", "%again").replace("model.py", "elsewhere.py"))
    assert main(["diff", file, str(other)]) == 0
    assert capsys.readouterr().out == "equal\n"
    other.write_text(TEXT.replace("relu", "tanh"))
    assert main(["diff", file, str(other)]) == 1
    assert capsys.readouterr().out == (
        "- %5 = relu(%4) : f32[B,3]\n+ %5 = tanh(%4) : f32[B,3]\n- return %5\n+ return %5\n"
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["print", "nowhere.nir"], "FileNotFoundError: "),
        (["run", "FILE"], "NirError: run: expected --inputs or --random for 3 inputs"),
        (["run", "FILE", "--random", "0", "--size", "B"], "NirError: --size: expected NAME=NUMBER"),
        (["run", "FILE", "--random", "0", "--arena"], "VerifyError: @mlp has no memory plan"),
        (["run", "FILE", "--inputs", "EMPTY"], "NirError: EMPTY: expected arrays x, w, b[0], got"),
        (["opt", "FILE", "--passes", "simplify,nope"], "NirError: --passes: expected some of"),
        (
            ["print", "BAD"],
            "ParseError: line 3, column 9: expected the name of an op",
        ),
        (["print", "WRONG"], "VerifyError: @mlp: matmul: "),
    ],
)
def test_errors(
    arguments: list[str],
    message: str,
    file: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "bad.nir").write_text(TEXT.replace("matmul", "matmil"))
    (tmp_path / "wrong.nir").write_text(TEXT.replace("%w: f32[4,3]", "%w: f32[5,3]"))
    empty = str(tmp_path / "empty.npz")
    np.savez(empty)
    paths = {"FILE": file, "EMPTY": empty, "BAD": str(tmp_path / "bad.nir")}
    paths["WRONG"] = str(tmp_path / "wrong.nir")
    assert main([paths.get(a, a) for a in arguments]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(message.replace("EMPTY", empty))
    assert shown.out == ""


def test_profile(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lowered, package = str(tmp_path / "lowered.nir"), str(tmp_path / "mlp.nirp")
    assert main(["opt", file, "-o", lowered]) == 0
    compile_graph(read_graph(file)).save(package)
    trace = tmp_path / "trace.json"
    for source in (file, lowered, package):
        arguments = ["profile", source, "--size", "B=5", "--runs", "2", "--trace", str(trace)]
        assert main([*arguments, "--roofs", "100,10"]) == 0
        shown = capsys.readouterr().out.splitlines()
        assert shown[0].endswith("calls  line")
        assert "model.py:14" in "".join(shown)
        assert any(e["ph"] == "X" for e in json.loads(trace.read_text())["traceEvents"])
    for by in ("call", "kernel"):
        assert main(["profile", file, "--by", by, "--limit", "1"]) == 0
        assert "nir_matmul_f32" in capsys.readouterr().out
    assert main(["profile", file, "--roofs", "fast"]) == 2
    assert "expected GFLOPS,GBPS, got 'fast'" in capsys.readouterr().err


def test_as_a_module(file: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nir", "print", "--counts", file], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("6 ops")


# ---- flags -------------------------------------------------------------------------------------


def test_flags(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for flag in flags.FLAGS:
        monkeypatch.delenv(flag.name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert (flags.dump_dir(), flags.verify(), flags.isa(), flags.num_threads()) == (
        None, False, None, None,
    )  # fmt: skip
    assert flags.cache_dir() == tmp_path / "nir"
    values = {"NIR_DUMP": "d", "NIR_VERIFY": "1", "NIR_ISA": "avx2", "NIR_NUM_THREADS": "3"}
    for name, value in {**values, "NIR_CACHE_DIR": "/c"}.items():
        monkeypatch.setenv(name, value)
    found = (flags.dump_dir(), flags.verify(), flags.isa(), flags.num_threads(), flags.cache_dir())
    assert found == (Path("d"), True, "avx2", 3, Path("/c"))


@pytest.mark.parametrize(
    "name, value, read",
    [
        ("NIR_VERIFY", "yes", flags.verify),
        ("NIR_ISA", "avx", flags.isa),
        ("NIR_NUM_THREADS", "0", flags.num_threads),
        ("NIR_NUM_THREADS", "two", flags.num_threads),
    ],
)
def test_bad_flags(monkeypatch: pytest.MonkeyPatch, name: str, value: str, read: object) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(NirError, match=f"^{name}: expected .*, got '{value}'"):
        read()  # type: ignore[operator]


def test_the_table_of_flags_is_complete() -> None:
    package = Path(flags.__file__).parent
    read = re.compile(r'(?:getenv|environ|environ\.get)[(\[]\s*"(NIR_\w+)"')
    found = {
        name
        for path in package.rglob("*.*")
        if path.suffix in (".py", ".cc", ".h")
        for name in read.findall(path.read_text(encoding="utf-8"))
    }
    assert found == {flag.name for flag in flags.FLAGS}


def test_flow(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mlp.graphml"
    assert main(["flow", file, "-o", str(out)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "10 nodes, 9 edges, longest chain 7:",
        "  %x = input : f32[B,4]",
        "  %0 = matmul : f32[B,3]  @ model.py:14",
        "  %2 = add : f32[B,3]  @ model.py:14",
        "  %3 = neg : f32[B,3]  @ model.py:15",
        "  %4 = neg : f32[B,3]  @ model.py:15",
        "  %5 = relu : f32[B,3]  @ mlp.nir:8",
        "  return = return",
    ]
    flow = networkx.read_graphml(out, force_multigraph=True)
    assert flow.nodes["%0"]["op"] == "matmul"
    assert [e["operand"] for e in flow["%w"]["%0"].values()] == [1]
