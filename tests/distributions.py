"""Installs a project of modules as pip would, without a build tool or a network: its modules and its .dist-info."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path


def install(project: Path, site: Path) -> Path:
    """The `project` (a folder with a pyproject.toml that lists py-modules) installed in the folder `site`, which is to
    be on the path of who uses it."""
    config = tomllib.loads((project / "pyproject.toml").read_text())
    named, version = config["project"]["name"], config["project"]["version"]
    info = site / f"{named.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {named}\nVersion: {version}\n")
    with open(info / "entry_points.txt", "w") as file:
        for group, points in config["project"]["entry-points"].items():
            file.writelines([f"[{group}]\n", *(f"{name} = {value}\n" for name, value in points.items())])
    for module in config["tool"]["setuptools"]["py-modules"]:
        shutil.copy(project / f"{module}.py", site)
    return site
