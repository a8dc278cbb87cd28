"""The house's law: a file imports only floors below its own, and heavy packages live in their rooms."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "onenet_bench"

FLOORS = {
    "__init__": 0, "errors": 0, "files": 0,
    "spec": 1, "task": 1, "recipe": 1, "palette": 1,
    "plan": 2, "record": 2,
    "memory": 3, "costs": 4, "space": 4, "field": 3, "screen": 5, "zoo": 3, "ledger": 3, "pareto": 3, "budget": 3,
    "models": 5, "measure": 6, "data": 5, "training": 5, "report": 6,
    "evaluate": 7, "inference": 7, "checking": 7,
    "search": 8, "reproduce": 8, "deployment": 8,
    "cli": 9, "__main__": 10,
}  # fmt: skip
"""A room's floor. Two rooms of one floor do not know each other. A space reads budgets and objectives, so it stands
above them; what measures, measures models."""

FENCES = {
    "torch": {"models", "measure", "data", "training", "evaluate", "inference", "deployment", "search", "cli"},
    "onnx": {"models", "deployment"},
    "onnxruntime": {"models", "measure", "deployment"},
    "fvcore": {"measure"},
    "ptflops": {"measure"},
    "torchinfo": {"measure"},
    "optuna": {"search"},
    "ray": {"search"},
    "plotly": {"report"},
    "typer": {"cli"},
}


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, whether it is imported when the file is) of every import; TYPE_CHECKING blocks are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    late: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            late |= set(ast.walk(node))
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for child in ast.walk(node):
                child._fields = ()  # its body is for the type checker
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node not in late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            if node.module == "onenet_bench":
                yield from ((f"onenet_bench.{alias.name}", node not in late) for alias in node.names)
            else:
                yield node.module, node not in late


def room(module: str) -> str | None:
    parts = module.split(".")
    return None if parts[0] != "onenet_bench" else parts[1] if len(parts) > 1 else "__init__"


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_imports_only_floors_below_its_own(path: Path) -> None:
    here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert here in FLOORS, f"{here} has no floor yet"
    for module, at_once in imports(path):
        there = room(module)
        if there is not None and there != here and module != "onenet_bench.__version__":
            assert FLOORS[there] < FLOORS[here], f"{here} (floor {FLOORS[here]}) imports {module} ({FLOORS[there]})"
        top = module.split(".")[0]
        if top in FENCES:
            assert here in FENCES[top], f"{top} belongs in {FENCES[top]}, but {path.name} imports it"
        if here in ("search", "cli") and top in ("torch", "optuna", "pandas") and here == "cli":
            assert not at_once, f"{path.name} must import {top} inside its commands"
        if here == "search" and top in ("torch", "ray"):
            assert not at_once, f"{path.name} must import {top} where it is used"


def loaded_by(code: str) -> set[str]:
    """Top-level packages that a fresh interpreter has loaded after ``code``."""
    script = f"import sys\n{code}\nprint(*{{name.split('.')[0] for name in sys.modules}}, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_help_loads_nothing_heavy() -> None:
    code = "sys.argv = ['onenet-bench', '--help']\nfrom onenet_bench.cli import app\napp(standalone_mode=False)"
    assert not loaded_by(code) & {"torch", "optuna", "pandas", "plotly", "numpy", "ray"}


def test_the_reading_wing_never_loads_torch() -> None:
    read = "import onenet_bench.report, onenet_bench.space, onenet_bench.costs, onenet_bench.zoo, onenet_bench.data"
    loaded = loaded_by(read)
    assert "pandas" in loaded  # the check itself works
    assert "torch" not in loaded
    assert "torch" not in loaded_by("import onenet_bench.search.sweep")
