"""The import contract: pipelines -> stages -> models | infra, and what each layer may not know of."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"ray", "mlflow", "deepspeed", "fsspec", "s3fs", "pyarrow", "pydantic", "omegaconf", "typer", "rich"}
FORBIDDEN = {
    "models": {"infra", "stages", "pipelines"} | HEAVY,
    "infra": {"models", "stages", "pipelines"},
    "stages": {"pipelines"},
}
# Where a machine has NVIDIA GPUs; where a benchmark finds its peer; where an extra is installed; where an exported
# model's wrapper runs.
OPTIONAL = {
    *("pynvml", "transfusion_pytorch", "datatrove", "py3langid", "lance", "lmms_eval"),
    *("fastapi", "starlette", "gradio", "optuna"),
}
# Rooms of stages/ that stages share: they know of no stage.
SHARED = {"data", "checkpoints", "reporting", "inference"}
# What the plan reads must not load what only a running stage needs.
LATE = {"torch", "ray", "mlflow", "deepspeed", "pandas", "sklearn"}
PLANNED = (
    "pipelines/config.py",
    "pipelines/plan.py",
    "pipelines/graph.py",
    "pipelines/fingerprint.py",
    "pipelines/cli.py",
    "pipelines/tables.py",
    "pipelines/runner.py",
    "pipelines/making.py",
    "stages/base.py",
    "stages/ingest/stage.py",
    "stages/tokenizer/stage.py",
    "stages/pretokenize/stage.py",
    "stages/scorer/stage.py",
    "stages/recaption/stage.py",
    "stages/train/stage.py",
    "stages/evaluate/stage.py",
    *(
        str(path.relative_to(ROOT))
        for room in ("infra", "models", "stages")
        for path in (ROOT / room).rglob("*config.py")
    ),
)


def package(name: str) -> str:
    """What a module belongs to: one of our rooms, or another's package."""
    return name.removeprefix("omniloom.").split(".")[0]


def imports(tree: ast.AST) -> set[tuple[str, int]]:
    """(top-level package, line) of every import below the node, those inside functions included."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {(package(alias.name), node.lineno) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "omniloom" else [node.module]
            )
            found |= {(package(name), node.lineno) for name in names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            if isinstance(node.args[0], ast.Constant):
                found.add((package(str(node.args[0].value)), node.lineno))
    return found


def modules() -> dict[str, Path]:
    """The product's modules by their full names; a package stands for its `__init__.py`."""
    folders = {"omniloom": "", **{f"omniloom.{room}": room for room in ("pipelines", *FORBIDDEN)}}
    files = {
        ".".join((name, *file.relative_to(ROOT / (room or name)).with_suffix("").parts)): file
        for name, room in folders.items()
        for file in (ROOT / (room or name)).rglob("*.py")
    }
    return {name.removesuffix(".__init__"): file for name, file in files.items()}


def imported_modules(tree: ast.AST, known: dict[str, Path]) -> set[str]:
    """Those of the known modules that some line imports, by a name of its own or as a part of its package."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {part if part in known else str(node.module) for part in parts}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            if isinstance(node.args[0], ast.Constant):
                names.add(str(node.args[0].value))
    return names & set(known)


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    """What each module imports of ours, at its top or inside a function."""
    known = modules()
    assert len(known) > 150 and {"omniloom", "omniloom.models", "omniloom.stages.data.packing"} <= set(known)
    return {name: imported_modules(ast.parse(file.read_text()), known) - {name} for name, file in known.items()}


def test_no_module_imports_itself_by_way_of_others(graph):
    """Imports inside functions count: they hide a circle from the interpreter, not from the reader."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_what_stages_share_imports_no_stage(graph):
    allowed = SHARED | {"base"}
    upward = [
        f"{name} imports {other}"
        for name, others in graph.items()
        for other in sorted(others)
        if name.startswith("omniloom.stages.") and name.split(".")[2] in SHARED
        if other.startswith("omniloom.stages.") and other.split(".")[2] not in allowed
    ]
    assert not upward


@pytest.mark.parametrize("room", FORBIDDEN)
def test_layers(room):
    files = sorted((ROOT / room).rglob("*.py"))
    assert len(files) > 5
    broken = [
        f"{file.relative_to(ROOT)}:{line} imports {package}"
        for file in files
        for package, line in sorted(imports(ast.parse(file.read_text())))
        if package in FORBIDDEN[room]
    ]
    assert not broken


def distributions(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=]", requirement)[0].lower() for requirement in requirements}


def outside(files: list[Path]) -> Iterator[tuple[str, str]]:
    """(distribution, module) of every package that is neither Python's nor ours nor a helper of the tests."""
    packages, ours = packages_distributions(), {"omniloom", "models", "infra", "stages", "pipelines"}
    beside = {"tests", *(path.stem for room in ("tests", "examples") for path in (ROOT / room).rglob("*"))}
    for name in {name for file in files for name, _ in imports(ast.parse(file.read_text()))} - ours - beside:
        if name not in sys.stdlib_module_names and name not in OPTIONAL:
            assert name in packages, f"{name} is not installed"
            yield min(packages[name]).lower().replace("_", "-"), name


def test_what_is_imported_is_declared():
    """A package that another one brings along today is not there tomorrow; one that nobody imports is not asked for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = distributions(project["dependencies"])
    product = {name for name, _ in outside(list(modules().values()))}
    assert product <= declared, f"not declared: {product - declared}"
    assert declared - product == {"ninja", "matplotlib", "torchmetrics"}, "pyproject.toml says what for"
    extras = distributions([one for extra in project["optional-dependencies"].values() for one in extra])
    tests = {name for name, _ in outside(sorted((ROOT / "tests").rglob("*.py")))}
    assert tests <= declared | extras, f"not declared: {tests - declared - extras}"


def test_a_broken_installation_fails_and_skips_nothing():
    """What the test extra installs is imported, not asked for."""
    asking = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("*.py")
        if any(
            isinstance(node, ast.Attribute) and node.attr == "importorskip"
            for node in ast.walk(ast.parse(path.read_text()))
        )
    ]
    assert not asking


@pytest.mark.parametrize("file", PLANNED)
def test_planning_imports_nothing_heavy_at_the_top(file):
    tree = ast.parse((ROOT / file).read_text())
    top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    assert not {package for package, _ in imports(top)} & LATE


def test_configs_of_models_need_the_standard_library_alone():
    names = [
        ".".join(("omniloom", *file.relative_to(ROOT).with_suffix("").parts))
        for file in (ROOT / "models").rglob("*config.py")
    ]
    code = f"import sys; before = set(sys.modules); import {', '.join(names)}; print(*set(sys.modules) - before)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    packages = {name.partition(".")[0] for name in loaded.split()}
    assert packages <= sys.stdlib_module_names | {"omniloom"}, packages


def test_models_import_with_torch_alone():
    blocked = sorted(
        HEAVY
        | {
            "omniloom.infra",
            "omniloom.stages",
            "omniloom.pipelines",
            "safetensors",
            "tokenizers",
            "transformers",
            "PIL",
            "av",
            "sklearn",
            "pandas",
            "torchmetrics",
            "matplotlib",
            "jinja2",
        }
    )
    code = f"""
import importlib, pkgutil, sys
for name in {blocked}:
    sys.modules[name] = None
from omniloom import models
names = [module.name for module in pkgutil.walk_packages(models.__path__, "omniloom.models.")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10
