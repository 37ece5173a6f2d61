"""Recognition: which kinds of sources the files below a root look like.

In: a root and its files. Out: (name of the kind, `Recognition`), the surest first, by each kind's own
`SourceKind.recognize`.
"""

from __future__ import annotations

from collections.abc import Iterable

import yaml

from omniloom.stages.ingest.glimpse import Glimpse, Recognition
from omniloom.stages.ingest.kinds.table import KINDS
from omniloom.stages.ingest.listing import SourceFile
from omniloom.stages.ingest.roots import Root


def recognized(root: Root, files: Iterable[SourceFile]) -> list[tuple[str, Recognition]]:
    """What every kind says of the files: the surest first, of those as sure the one that has a use for most files."""
    glimpse = Glimpse(root, files)
    found = [(name, kind.recognize(glimpse)) for name, kind in KINDS.items()]
    known = [(name, recognition) for name, recognition in found if recognition is not None]
    return sorted(known, key=lambda pair: (-pair[1].strength, -len(pair[1].paths)))


def line(kind: str, uri: str, recognition: Recognition) -> str:
    """The line of a config that reads the files, as YAML on one line."""
    source = {"kind": kind, "uri": uri, **recognition.options}
    return yaml.safe_dump(source, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**9).strip()
