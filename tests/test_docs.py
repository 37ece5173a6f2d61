"""The documents: what is made from the code is fresh, and what they point to is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)]*))?\)")
# `stages/ingest/kinds/`, `models/model.py`: paths of the tree that prose names in full.
PATH = re.compile(r"`((?:pipelines|stages|models|infra|tests|docs|examples|omniloom)/[\w./-]*)`")


def anchors(page: Path) -> set[str]:
    """What GitHub makes of headings: lower case, spaces to hyphens, punctuation dropped."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target, anchor in LINK.findall(text):
        if "://" not in target:
            file = (page.parent / target).resolve() if target else page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_that_prose_names_are_there(page):
    paths = [path for path in PATH.findall(page.read_text()) if not re.search(r"/(KIND|NAME)\b", path)]
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert not missing


def test_the_pages_made_from_the_code_are_fresh():
    code = "import make_api, sys; sys.stdout.write(make_api.page())"
    made = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "docs", capture_output=True, text=True, check=True, timeout=120
    ).stdout
    assert made == (ROOT / "docs" / "api.md").read_text(), "`make docs` writes it anew"
