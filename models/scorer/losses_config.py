"""The losses that a scorer is trained to, by name. Standard library only."""

from __future__ import annotations

from typing import Literal

Loss = Literal["clip", "siglip"]
