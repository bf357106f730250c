"""The rules of the house, checked on the code itself."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

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
    "PHANTOMS": "preprocessing/phantoms/__init__.py",
    "PROJECTORS": "preprocessing/mip.py",
}


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


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
class TestEveryModule:
    def test_is_of_readable_size(self, path: Path) -> None:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_MODULE

    def test_has_short_functions(self, path: Path) -> None:
        long = {f.name: body_lines(f) for f in functions(path) if body_lines(f) > LONGEST_FUNCTION}
        assert long == {}

    def test_imports_at_the_top_only(self, path: Path) -> None:
        if path in COMMAND_LINE:
            pytest.skip("the command line imports inside each command to answer --help at once")
        deferred = [
            node.lineno
            for function in functions(path)
            for node in ast.walk(function)
            if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        assert deferred == []

    def test_validates_by_raising(self, path: Path) -> None:
        assert [n.lineno for n in ast.walk(tree_of(path)) if isinstance(n, ast.Assert)] == []

    def test_runs_nothing_out_of_a_file(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        for forbidden in ("weights_only=False", "allow_pickle=True", "yaml.load(", "shell=True"):
            assert forbidden not in text

    def test_explains_itself(self, path: Path) -> None:
        assert ast.get_docstring(tree_of(path))


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
