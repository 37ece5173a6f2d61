"""The presets: configs that come with the package, each found by its name."""

from __future__ import annotations

from pathlib import Path

PRESETS = Path(__file__).parent / "presets"


def preset_names() -> list[str]:
    return sorted(preset.stem for preset in PRESETS.glob("*.yaml"))
