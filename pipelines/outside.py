"""Outside files of a plan: what the paths in the stages' configs hold, which stands for them in fingerprints.

In: a stage's config. Out: for every field that is marked as a path {"uri", "digest", "files", "bytes"}; and in words
what is another content than an artifact was made from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from omniloom.infra.contents import read_contents
from omniloom.infra.errors import InputError
from omniloom.infra.fields import marked_paths
from omniloom.infra.secrets import redact_uris
from omniloom.pipelines.fingerprint import digest


def outside_contents(config: Any, known: dict[str, dict]) -> dict[str, dict]:
    """What lies at the outside paths in a stage's config, by field. `known` remembers what was read. Where nothing can
    be read the digest is empty and an "error" says why."""
    found = {}
    for path in marked_paths(config):
        for field, uri in () if path.placement or path.mark["kind"] == "source" else path.places():
            key = json.dumps([uri, path.mark], sort_keys=True)
            if key not in known:
                known[key] = _facts(uri, path.mark)
            found[field] = known[key]
    return found


def unreadable(outside: dict[str, dict]) -> list[InputError]:
    """One error for each of the outside paths at which nothing can be read."""
    return [InputError(facts["error"], field=field) for field, facts in outside.items() if "error" in facts]


def _facts(uri: str, mark: Mapping[str, Any]) -> dict:
    try:
        files = read_contents(uri, **mark)
    except InputError as error:
        return {"uri": redact_uris(uri), "digest": "", "files": 0, "bytes": 0, "error": error.message}
    return {
        "uri": redact_uris(uri),
        "digest": digest([[file.path, file.identity] for file in files]),
        "files": len(files),
        "bytes": sum(file.size for file in files),
    }


def digests(outside: dict[str, dict]) -> dict[str, str]:
    """By field the digest of what is there."""
    return {field: facts["digest"] for field, facts in outside.items()}


def changed_files(manifest: dict, outside: dict[str, dict], stage: str) -> list[str]:
    """In words, which of the outside paths hold something else than what an artifact of the stage was made from."""
    known = manifest.get("outside") or {}
    words = []
    for field, facts in outside.items():
        place = f"stages.{stage}.{field} ({facts['uri']})"
        if field in known and known[field]["digest"] != facts["digest"]:
            moved = "" if known[field]["uri"] == facts["uri"] else f", before {known[field]['uri']}"
            words.append(f"{'file changed' if facts['files'] else 'no file there'}: {place}{moved}")
        elif field not in known and isinstance(_at(manifest["config"], field), str):
            words.append(f"now known by what it holds: {place}")
    return words


def _at(config: Any, field: str) -> Any:
    """The value at a dotted path in nested literals, None where there is none."""
    for key in field.split("."):
        if isinstance(config, list):
            config = config[int(key)] if int(key) < len(config) else None
        else:
            config = config.get(key) if isinstance(config, dict) else None
    return config
