"""The tree that goes to where no omniloom is: its modules, and the commit that it is of."""

from __future__ import annotations

import subprocess

import pytest

from omniloom.infra import tree


def test_the_copy_has_the_modules_no_caches_and_its_commit(tmp_path, monkeypatch):
    source, rooms = tmp_path / "source", ("pipelines", "stages", "models", "infra")
    for room in rooms:
        (source / room / "inside/__pycache__").mkdir(parents=True)
        for name in ("inside/module.py", "inside/page.html", "inside/old.pyc", "inside/__pycache__/module.py"):
            (source / room / name).write_text(name)
    monkeypatch.setattr(tree, "_ROOT", source)
    monkeypatch.setattr(tree, "revision", lambda: "a" * 40)
    shipped = tree.copy_tree(tmp_path / "copy")
    assert shipped == tmp_path / "copy/omniloom"
    found = {str(path.relative_to(shipped)) for path in shipped.rglob("*") if path.is_file()}
    modules = {f"{room}/inside/{name}" for room in rooms for name in ("module.py", "page.html")}
    assert found == modules | {"__init__.py", "REVISION"}
    assert (shipped / "REVISION").read_text() == "a" * 40


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    def git(*arguments: str) -> str:
        own = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", "-C", str(tmp_path), *own, *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    monkeypatch.setattr(tree, "_ROOT", tmp_path)
    (tmp_path / "file").write_text("one")
    return git


def test_the_commit_tells_changes_and_a_shipped_tree_remembers_it(tmp_path, checkout):
    assert tree.revision() is None, "no checkout"
    checkout("init", "-q")
    checkout("add", "file")
    checkout("commit", "-qm", "one")
    commit = checkout("rev-parse", "HEAD")
    (tmp_path / "unknown").write_text("nobody's")
    assert tree.revision() == commit
    (tmp_path / "file").write_text("two")
    assert tree.revision() == f"{commit}+changes"
    (tmp_path / "REVISION").write_text("")
    assert tree.revision() is None, "shipped by what knew none"
    (tmp_path / "REVISION").write_text("abc\n")
    assert tree.revision() == "abc"
