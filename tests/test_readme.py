"""Every Python block of the README and of CONTRIBUTING runs, and the dump shown is the real one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(file: str, language: str) -> list[str]:
    return [text for kind, text in _BLOCK.findall((ROOT / file).read_text()) if kind == language]


def run(code: str, folder: Path, **environment: str) -> str:
    script = folder / "example.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, script.name],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, **environment},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("number", range(len(blocks("README.md", "python"))))
def test_readme_example(number: int, tmp_path: Path) -> None:
    run(blocks("README.md", "python")[number], tmp_path)


def test_readme_shows_an_example_of_about_20_lines() -> None:
    first = blocks("README.md", "python")[0]
    assert len([line for line in first.splitlines() if line.strip()]) <= 25


def test_readme_shows_the_real_dump(tmp_path: Path) -> None:
    source = blocks("README.md", "python")[1]
    (shown,) = blocks("README.md", "nir")
    assert run(source, tmp_path).strip() == shown.strip()


@pytest.mark.parametrize("number", range(len(blocks("CONTRIBUTING.md", "python"))))
def test_contributing_example(number: int, tmp_path: Path) -> None:
    run(blocks("CONTRIBUTING.md", "python")[number], tmp_path)


@pytest.mark.parametrize("file", ["README.md", "CONTRIBUTING.md", *(
    str(p.relative_to(ROOT)) for p in sorted((ROOT / "docs").glob("*.md"))
)])  # fmt: skip
def test_links_lead_somewhere(file: str) -> None:
    text = (ROOT / file).read_text()
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert ((ROOT / file).parent / target).exists(), f"{file}: {target}"


@pytest.mark.parametrize("isa", ["plain", "avx512"])
def test_contributing_kernel_compiles(isa: str, tmp_path: Path) -> None:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    avx512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"]
    flags: dict[str, list[str]] = {"plain": [], "avx512": avx512}
    (source,) = blocks("CONTRIBUTING.md", "cpp")
    (tmp_path / "kernel.cc").write_text(source)
    command = [compiler, "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror"]
    command += [f"-I{ROOT}/kernels/cpu", f"-DNIR_ISA={isa}", *flags[isa]]
    done = subprocess.run([*command, tmp_path / "kernel.cc"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
