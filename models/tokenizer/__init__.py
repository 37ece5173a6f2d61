"""The visual tokenizer: images and videos to codes or latents and back, with its adversarial training parts.

`config` imports without torch; the other modules need it, and so do `load_official` and `export_official`, which are
therefore imported at first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omniloom.models.tokenizer.checkpoint import export_official, load_official

__all__ = ["export_official", "load_official"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from omniloom.models.tokenizer import checkpoint

    return getattr(checkpoint, name)
