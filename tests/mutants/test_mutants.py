"""The tool behind `make mutants` on a product of one file: what it draws, and what it says of each mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from places import drawn
from run import copied_tree, equivalents, modules

HERE = Path(__file__).resolve().parent

PRODUCT = """from __future__ import annotations

STEP = 2


def climbed(count: int | None, twice: bool = False) -> int | list[int]:
    height = 0
    for _ in range(count or 0):
        height += STEP
    if height > 90 and count < 40:
        raise ValueError(f"too high: {height - 90} over")
    return height * 2 if twice else height


def waited(left: int) -> int:
    while left > 0:
        left = left - 1
    return left


def never(asked: int) -> int:
    return asked + 3
"""
TESTS = """from product import climbed, waited


def test_height():
    assert climbed(3) == 6 and climbed(None) == 0


def test_twice():
    assert climbed(1, twice=True) == 4


def test_waiting():
    assert waited(2) == 0
"""


@pytest.fixture
def tree(tmp_path) -> Path:
    (tmp_path / "product.py").write_text(PRODUCT)
    (tmp_path / "test_product.py").write_text(TESTS)
    return tmp_path


def test_a_seed_draws_the_same_mistakes_each_at_a_place_of_its_own(tree):
    (tree / "other.py").write_text("A = 1 + 2\nB = 3 - 4\nC = 5 * 6\n")
    files = ["product.py", "other.py"]
    first, again, other = (drawn(tree, files, 12, seed) for seed in (0, 0, 1))
    assert first == again != other and len(first) == len(set(first)) == 12
    assert [mutant.file for mutant in first].count("other.py") == 6  # evenly over the files
    every = drawn(tree, ["product.py"], 1000, 0)
    # Annotations are left alone: `int | None`, `int | list[int]` hold the only vertical bars.
    assert 20 < len(every) == len({(mutant.was, mutant.now) for mutant in every})
    assert not any("->" in mutant.was and mutant.was.replace("False", "True") != mutant.now for mutant in every)
    for mutant in every:
        compile(mutant.code, mutant.file, "exec")
        lines = [a != b for a, b in zip(mutant.code.splitlines(), PRODUCT.splitlines(), strict=True)]
        assert sum(lines) == 1 and mutant.diff(tree).count("\n-") == 1


def test_what_is_said_of_each_mistake(tree):
    """In a process of its own, as the tool forks and measures."""
    cases = {
        "time": ("left > 0", "left > -1 or True"),
        "height": ("height += STEP", "height -= STEP"),
        "import": ("STEP = 2", "STEP = 3"),
        "syntax": ("height = 0", "height = (0"),
        "death": ("count or 0", "__import__('os').abort()"),
        "nothing": ("height > 90", "height > 91"),
        "untested": ("asked + 3", "asked - 3"),
    }
    code = f"""
import json, sys
from pathlib import Path
sys.path[:0] = ["", {str(HERE)!r}]
from warm import Tree
root = Path({str(tree)!r})
tree, source = Tree(root, root / "log"), (root / "product.py").read_text()
baseline = tree.baseline(["test_product.py"], ["product.py"])
baseline.preload()
lines = {{name: source[:source.index(was)].count(chr(10)) + 1 for name, (was, _) in {cases!r}.items()}}
tests = {{name: baseline.of("product.py", [] if name == "import" else [n], 60.0) for name, n in lines.items()}}
said = {{name: tree.noticed("product.py", source.replace(*{cases!r}[name]), tests[name] or ["test_product.py"], 2, 30)
        for name in tests}}
assert (root / "product.py").read_text() == source
print(json.dumps([tests, said]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tree, timeout=120)
    assert done.returncode == 0, done.stderr
    tests, said = json.loads(done.stdout)
    height, twice, waiting = (f"test_product.py::test_{name}" for name in ("height", "twice", "waiting"))
    assert {name: set(found) for name, found in tests.items()} == {
        "time": {waiting},
        "height": {height, twice},
        "death": {height, twice},
        "syntax": {height, twice},
        "nothing": {height, twice},
        "import": {height, twice, waiting},
        "untested": set(),
    }
    assert said["height"] in (height, twice) and said["import"] in (height, twice)
    assert said["time"] == "time" and said["death"] == "death" and said["syntax"]
    assert said["nothing"] == said["untested"] == ""


def test_a_mistake_in_the_copy_is_what_its_tests_import(tmp_path):
    """The checkout is installed, and would otherwise be found first: by the tests, and by what they start."""
    copy = tmp_path / "tree"
    copied_tree(copy)
    (copy / "tests/test_it.py").write_text("""
import subprocess, sys
import omniloom.infra.lease

def test_here():
    assert not hasattr(omniloom.infra.lease, "MISTAKE")

def test_elsewhere():
    code = "import omniloom.infra.lease as it; assert not hasattr(it, 'MISTAKE')"
    subprocess.run([sys.executable, "-c", code], check=True)
""")
    code = f"""
import json, sys
from pathlib import Path
sys.path[:0] = ["", {str(HERE)!r}]
from warm import Tree
root, file = Path({str(copy)!r}), "infra/lease.py"
tree, source = Tree(root, root.parent / "log"), (root / file).read_text()
baseline = tree.baseline(["tests/test_it.py"], [file])
print(json.dumps([baseline.of(file, [], 60.0),
                  [tree.noticed(file, source + "MISTAKE = 1\\n", [test], 30, 60) for test in baseline.seconds]]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    tests = ["tests/test_it.py::test_here", "tests/test_it.py::test_elsewhere"]
    chosen, noticed = json.loads(done.stdout)
    assert sorted(chosen) == sorted(tests) and noticed == tests


def test_modules_and_equivalents_name_files_that_there_are():
    root, known = HERE.parents[1], modules()
    for module in known:
        assert module.files and module.tests and all((root / path).is_file() for path in module.files + module.tests)
    files = {file for module in known for file in module.files}
    for (file, was, now), why in equivalents().items():
        assert file in files and was != now and len(why) > 10
        lines = [" ".join(line.split()) for line in (root / file).read_text().splitlines()]
        assert was in lines, f"equivalent.toml: the line is gone from {file}, and the entry with it: {was}"
