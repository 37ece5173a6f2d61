"""Recognition: which kinds of sources the files below a root look like.

In: a glimpse of the files. Out: (name of the kind, `Recognition`), by each kind's own `SourceKind.recognize`.
"""

from __future__ import annotations

from typing import Any

import yaml

from omniloom.stages.ingest.kinds.table import KINDS
from omniloom.stages.ingest.look.glimpse import Glimpse, Recognition


def recognized(glimpse: Glimpse) -> list[tuple[str, Recognition]]:
    """What every kind says of the files: the surest first, of those as sure the one that has a use for most files."""
    found = [(name, kind.recognize(glimpse)) for name, kind in KINDS.items()]
    known = [(name, recognition) for name, recognition in found if recognition is not None and recognition.paths]
    return sorted(known, key=lambda pair: (-pair[1].strength, -len(pair[1].paths)))


class _OneLine(yaml.SafeDumper):
    """Texts with line ends in double quotes, in which they are written as \\n."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_OneLine.add_representer(str, _text)


def line(source: dict[str, Any]) -> str:
    """A source as one line of a config."""
    style: dict[str, Any] = {"default_flow_style": True, "sort_keys": False, "allow_unicode": True, "width": 10**9}
    return yaml.dump(source, Dumper=_OneLine, **style).strip()
