"""Imports point one way, and `import nir` stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "nir"

# What each part may import of the others; a part may always import itself.
_BASE = {"errors", "flags", "frozen"}
_CORE = _BASE | {"ir", "ops"}
_STAGES = {"passes", "targets", "codegen", "runtime"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "frozen": set(),
    "flags": {"errors", "frozen"},
    "ir": _BASE,
    "ops": _BASE | {"ir"},
    **dict.fromkeys(_STAGES, _CORE),
    "blobs": {"codegen", "runtime"},
    "lower": _CORE | _STAGES | {"blobs"},
    "compile": _CORE | _STAGES | {"blobs", "lower"},
    "tune": _CORE | _STAGES | {"compile"},
    "bound": _CORE | _STAGES | {"compile"},
    "frontend": _CORE | _STAGES | {"compile", "bound", "tune"},
    "__init__": _CORE | _STAGES | {"compile", "frontend"},
    # nir.deploy is the folder deploy/ beside nir/: it sees the public API, ir and ops.
    "deploy": _CORE | {"__init__"},
    # A face over the front end, imported by its users alone.
    "needle": _CORE | {"frontend", "__init__"},
    "__main__": _CORE | _STAGES | {"compile", "frontend", "__init__", "deploy"},
}

# Optional or costly packages, which may be imported where they are used.
IMPORTED_LATE = {
    "torch", "onnx", "tvm", "tvm_ffi", "llvmlite", "networkx", "matplotlib", "sklearn",
    "safetensors",
}  # fmt: skip


def sources() -> list[tuple[str, Path]]:
    """(part, file) of every Python file of the package."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = path.relative_to(PACKAGE)
        if inside.parts[0] != "deploy":  # a link in the development tree
            found.append((inside.parts[0].removesuffix(".py"), path))
    return found + [("deploy", path) for path in sorted((ROOT / "deploy").rglob("*.py"))]


def imported_modules(node: ast.AST) -> list[str]:
    match node:
        case ast.Import():
            return [alias.name for alias in node.names]
        case ast.ImportFrom(module=str(module)):
            # `from nir import flags` imports nir.flags, `from nir.ir import dim` nir.ir.dim.
            return [f"{module}.{alias.name}" for alias in node.names]
    return []


def imports(tree: ast.AST) -> Iterator[tuple[str, int, bool]]:
    """(module, line, whether inside a function) of each import; type-checking blocks included."""
    stack: list[tuple[ast.AST, bool]] = [(tree, False)]
    while stack:
        node, inside = stack.pop()
        yield from ((m, node.lineno, inside) for m in imported_modules(node))  # type: ignore[attr-defined]
        inside = inside or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        stack.extend((child, inside) for child in ast.iter_child_nodes(node))


def part_of(module: str) -> str | None:
    """The part of nir that a module name belongs to; "__init__" for names of the public API."""
    first, _, rest = module.partition(".")
    if first != "nir":
        return None
    part = rest.partition(".")[0]
    return part if part in MAY_IMPORT else "__init__"


def test_the_parts_are_known() -> None:
    assert {part for part, _ in sources()} <= MAY_IMPORT.keys()


@pytest.mark.parametrize("part", sorted(MAY_IMPORT))
def test_imports_point_one_way(part: str) -> None:
    wrong = []
    for _, path in (s for s in sources() if s[0] == part):
        for module, line, _ in imports(ast.parse(path.read_text(encoding="utf-8"))):
            other = part_of(module)
            if other is not None and other != part and other not in MAY_IMPORT[part]:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {part} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_no_imports_inside_functions() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {module}"
        for _, path in sources()
        for module, line, inside in imports(ast.parse(path.read_text(encoding="utf-8")))
        if inside and module.partition(".")[0] not in IMPORTED_LATE
    ]
    assert not wrong, "\n".join(wrong)


def test_costly_packages_are_imported_late() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {module}"
        for _, path in sources()
        for module, line, inside in imports(ast.parse(path.read_text(encoding="utf-8")))
        if not inside and module.partition(".")[0] in IMPORTED_LATE
    ]
    assert not wrong, "\n".join(wrong)


def test_the_checks_see_what_they_should() -> None:
    tree = ast.parse(
        "import nir.ops\nfrom nir import flags\nfrom nir.ir.dim import Dim\n"
        "def f():\n    import torch.nn\n    from nir import tensor\n"
    )
    found = sorted(imports(tree), key=lambda i: i[1])
    assert [(part_of(m), line, inside) for m, line, inside in found] == [
        ("ops", 1, False), ("flags", 2, False), ("ir", 3, False), (None, 5, True),
        ("__init__", 6, True),
    ]  # fmt: skip


def test_import_is_light() -> None:
    # The time budget is 0.25 s, of which numpy takes 0.10; what costs more than that is absent.
    script = "import sys, nir; print(*sorted({m.partition('.')[0] for m in sys.modules})); "
    script += "print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded = set(done.stdout.split())
    assert "nir" in loaded and "numpy" in loaded
    heavy = IMPORTED_LATE | {"scipy", "pandas", "PIL", "jax", "pytest", "hypothesis", "setuptools"}
    assert not loaded & heavy
    assert "nir.needle" not in done.stderr.split()


def test_no_file_is_too_long() -> None:
    long = {
        str(path.relative_to(ROOT)): count
        for _, path in sources()
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > 600
    }
    assert not long
