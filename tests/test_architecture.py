"""The rules of the house, checked on the code itself."""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("preprocessing", "models", "pipelines")
MODULES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
COMMAND_LINE = sorted((ROOT / "pipelines").glob("cli*.py"))
LONGEST_FUNCTION = 50
LONGEST_MODULE = 500
REGISTRIES = {
    "RECIPES": "pipelines/recipes.py",
    "PRESETS": "pipelines/presets.py",
    "OPTIMIZERS": "pipelines/training_loop.py",
    "NETWORKS": "models/networks.py",
    "ATTENTIONS": "models/attention.py",
    "EXPLAINERS": "models/explainers/__init__.py",
    "METRICS": "models/metrics/__init__.py",
    "CONJUGATE_PAIRS": "models/conjugates.py",
    "OBJECTIVES": "models/adversarial.py",
    "ATTACKS": "models/explanation_attacks.py",
    "DERIVATIVES": "models/explainers/derivatives.py",
    "WEIGHTINGS": "models/losses.py",
    "CLAIMS": "pipelines/evaluation_claims.py",
    "TABLES": "pipelines/evaluation_tables.py",
    "PUBLISHED": "pipelines/published.py",
    "PHANTOMS": "preprocessing/phantoms/__init__.py",
    "PROJECTORS": "preprocessing/mip.py",
}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = function.body[1:] if ast.get_docstring(function) else function.body
    if not body:
        return 0
    return (body[-1].end_lineno or 0) - body[0].lineno + 1


def offences(found_in: Callable[[Path], Any], modules: Sequence[Path] = MODULES) -> dict[str, Any]:
    """What was found, by module; nothing where all of them keep the rule."""
    assert len(modules) > 100
    found = {str(path.relative_to(ROOT)): found_in(path) for path in modules}
    return {name: offence for name, offence in found.items() if offence}


class TestEveryModule:
    def test_is_of_readable_size(self) -> None:
        def lines_too_many(path: Path) -> int:
            return max(0, len(path.read_text(encoding="utf-8").splitlines()) - LONGEST_MODULE)

        assert offences(lines_too_many) == {}

    def test_has_short_functions(self) -> None:
        def long(path: Path) -> dict[str, int]:
            lines = [(function.name, body_lines(function)) for function in functions(path)]
            return {name: count for name, count in lines if count > LONGEST_FUNCTION}

        assert offences(long) == {}

    def test_imports_at_the_top_only(self) -> None:
        """But for the command line, which imports in each command to answer --help at once."""

        def deferred(path: Path) -> list[int]:
            return [
                node.lineno
                for function in functions(path)
                for node in ast.walk(function)
                if isinstance(node, ast.Import | ast.ImportFrom)
            ]

        others = [path for path in MODULES if path not in COMMAND_LINE]
        assert len(others) < len(MODULES)
        assert offences(deferred, others) == {}

    def test_validates_by_raising(self) -> None:
        def assertions(path: Path) -> list[int]:
            return [n.lineno for n in ast.walk(tree_of(path)) if isinstance(n, ast.Assert)]

        assert offences(assertions) == {}

    def test_runs_nothing_out_of_a_file(self) -> None:
        words = ("weights_only=False", "allow_pickle=True", "yaml.load(", "shell=True")

        def forbidden(path: Path) -> list[str]:
            text = path.read_text(encoding="utf-8")
            return [word for word in words if word in text]

        assert offences(forbidden) == {}

    def test_explains_itself(self) -> None:
        assert offences(lambda path: not ast.get_docstring(tree_of(path))) == {}


@pytest.mark.parametrize(("name", "file"), REGISTRIES.items())
def test_a_registry_is_a_literal_mapping_in_one_visible_place(name: str, file: str) -> None:
    found = [
        node.value
        for node in tree_of(ROOT / file).body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and node.target.id == name
    ]
    assert len(found) == 1
    value = found[0]
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "MappingProxyType":
        (value,) = value.args
    assert isinstance(value, ast.Dict)


def loaded_modules(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.split())


def test_a_worker_that_builds_does_not_load_torch() -> None:
    loaded = loaded_modules("import pipelines.recipes, pipelines.build")
    assert "preprocessing.fdg_pet" in loaded
    assert loaded.isdisjoint({"torch", "monai", "ignite"})


def test_the_command_line_alone_loads_nothing_heavy() -> None:
    loaded = loaded_modules("import pipelines.cli")
    assert loaded.isdisjoint({"torch", "monai", "vtk", "vtkmodules", "numpy", "pydicom", "h5py"})


def test_torchvision_is_not_needed() -> None:
    loaded = loaded_modules("import pipelines.train, pipelines.explain")
    assert "torch" in loaded
    assert "torchvision" not in loaded


def test_the_rooms_keep_the_rule() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout
