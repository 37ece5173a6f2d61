"""The presets: configs that come with the package, each found by its name."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path

from omniloom.infra.errors import InputError

PRESETS = Path(__file__).parent / "presets"


def preset_names() -> list[str]:
    return sorted(preset.stem for preset in PRESETS.glob("*.yaml"))


def preset(name: str) -> Path:
    """The preset's file; InputError where there is none of this name."""
    if name not in preset_names():
        raise InputError(f"no preset {name!r}; the presets are {', '.join(preset_names())}", field="NAME")
    return PRESETS / f"{name}.yaml"


def purposes() -> dict[str, str]:
    """By preset, the comment at the top of its file, less the commands in it."""
    found = {}
    for name in preset_names():
        lines = takewhile(lambda line: line.startswith("#"), preset(name).read_text(encoding="utf-8").splitlines())
        found[name] = " ".join(line.lstrip("# ") for line in lines if not line.startswith("#     ")).rstrip(":")
    return found
