"""Lineage: what an artifact was made from, and what was made from it, from files to registered models.

In: an artifact. Out: a graph, `{"root", "nodes": [...], "edges": [...]}`; a node has an "id" and a "kind" (sources,
file, artifact, model), an edge goes "from" what was read "to" what was made of it, as a "role".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from omniloom.infra.artifacts import Artifact, ArtifactStore
from omniloom.infra.errors import InputError, OmniLoomError
from omniloom.infra.secrets import logger, redact
from omniloom.infra.tracking.failures import short
from omniloom.pipelines.catalog.places import Place, place, store_of
from omniloom.pipelines.graph import KNOWN
from omniloom.stages.train import ledger

log = logger(__name__)
Key = tuple[str, str]  # (stage, fingerprint)


@dataclass(frozen=True)
class Link:
    """That an artifact was made with another one: `inputs` were read, what it `learnt from` earlier tokenizers read,
    `tokens` of the steps before those that it went on from, `starts` are weights that it started from."""

    role: str
    stage: str
    fingerprint: str

    @property
    def key(self) -> Key:
        return self.stage, self.fingerprint


def links(artifact: Artifact) -> list[Link]:
    """All that the artifact was made with, each once."""
    manifest = artifact.manifest
    found = [Link("input", stage, fingerprint) for stage, fingerprint in manifest["inputs"].items()]
    found += [
        Link("learnt from", stage, known["fingerprint"]) for stage, known in (manifest.get("learnt_from") or {}).items()
    ]
    found += [Link("starts", *key) for facts in (manifest.get("outside") or {}).values() if (key := _inside(facts))]
    if any(entry["path"] == ledger.FILE for entry in manifest["files"]):
        found += list(_periods(artifact.uri))
    return list({link.key: link for link in reversed(found)}.values())[::-1]


def _inside(facts: dict[str, Any]) -> Key | None:
    """The artifact that an outside path leads into."""
    before, _, rest = (facts.get("uri") or "").partition("/artifacts/")
    parts = rest.split("/")
    return (parts[0], parts[1]) if before and len(parts) > 1 and len(parts[1]) == 64 else None


def _periods(folder: str) -> Iterator[Link]:
    try:
        known = ledger.read(folder)
    except (OmniLoomError, OSError):  # of another version
        return
    for period in (known or {}).get("periods", ()):
        yield Link("tokens", period["tokens"]["stage"], period["tokens"]["fingerprint"])
        if known and period["training"] != known["training"]:
            yield Link("goes on from", known["stage"], period["training"])


def lineage(artifact: Artifact, models: Iterable[dict[str, Any]] = ()) -> dict[str, Any]:
    """`models`: versions of the registry, {"name", "version", "aliases", "fingerprint"}."""
    store = store_of(artifact)
    known = {(found.stage, found.fingerprint): found for found in store.all()}
    root = (artifact.stage, artifact.fingerprint)
    edges = {(link.key, key, link.role) for key, found in known.items() for link in links(found)}
    up = _reached(root, {(made, read) for read, made, _ in edges})
    down = _reached(root, {(read, made) for read, made, _ in edges})
    chosen = up | down
    kept = [edge for edge in sorted(edges) if edge[0] in chosen and edge[1] in chosen]
    # Of two that are both above, or both below; not what the one has to do with what the other alone led to.
    kept = [e for e in kept if {e[0], e[1]} <= up or {e[0], e[1]} <= down]
    nodes = [_node(key, known.get(key), store) for key in sorted(chosen, key=lambda key: _order(known.get(key)))]
    arcs = [{"from": _id(read), "to": _id(made), "role": role} for read, made, role in kept]
    for key in sorted(chosen):
        if found := known.get(key):
            for node, role in _outside(found):
                nodes.append(node)
                arcs.append({"from": node["id"], "to": _id(key), "role": role})
    for model in models:
        for key in sorted(chosen):
            if key[1] == model["fingerprint"]:
                name = f"models:/{model['name']}/{model['version']}"
                nodes.append({"id": name, "kind": "model", "aliases": model["aliases"]})
                arcs.append({"from": _id(key), "to": name, "role": "registered"})
    return redact({"root": _id(root), "nodes": nodes, "edges": arcs})


def ancestors(found: Iterable[Artifact], known: dict[Key, Artifact]) -> set[Key]:
    """Keys of the artifacts, and of all that they were made with."""
    edges = {(key, link.key) for key, artifact in known.items() for link in links(artifact)}
    return {key for artifact in found for key in _reached((artifact.stage, artifact.fingerprint), edges)}


def _reached(start: Key, edges: set[tuple[Key, Key]]) -> set[Key]:
    following: dict[Key, list[Key]] = {}
    for one, other in edges:
        following.setdefault(one, []).append(other)
    seen, waiting = {start}, [start]
    while waiting:
        for key in following.get(waiting.pop(), ()):
            if key not in seen:
                seen.add(key)
                waiting.append(key)
    return seen


def _id(key: Key) -> str:
    return f"{key[0]}/{key[1]}"


def _order(found: Artifact | None) -> tuple[float, str]:
    return (found.manifest["times"]["ended_unix"], found.fingerprint) if found else (0.0, "")


def _node(key: Key, found: Artifact | None, store: ArtifactStore) -> dict[str, Any]:
    node: dict[str, Any] = {"id": _id(key), "kind": "artifact", "stage": key[0], "fingerprint": key[1]}
    if found is None:
        return {**node, "there": False}
    manifest = found.manifest
    return {
        **node,
        "there": True,
        "uri": found.uri,
        "pipeline": manifest.get("pipeline"),
        "run": manifest.get("run"),
        "ended": manifest["times"]["ended"],
        "bytes": sum(entry["bytes"] for entry in manifest["files"]),
    }


def _outside(found: Artifact) -> Iterator[tuple[dict[str, Any], str]]:
    """The sources that the artifact was read from, and files that its config names."""
    manifest = found.manifest
    if facts := manifest.get("sources"):
        names = [
            source.get("name") or f"{source.get('kind')}_{number}"
            for number, source in enumerate(manifest["config"].get("sources") or ())
        ]
        yield (
            {"id": f"sources/{facts['digest']}", "kind": "sources", "names": names}
            | {name: facts[name] for name in ("files", "bytes")},
            "sources",
        )
    for field, facts in (manifest.get("outside") or {}).items():
        if not _inside(facts):
            yield {"id": f"file/{facts['digest']}", "kind": "file", **facts}, field


def registered_of(found: Artifact, name: str) -> list[dict[str, Any]]:
    """Of what the artifact's storage holds, where its models are registered: as the config says by which the artifact
    was named (PLACE:...), else as storages have it by themselves. None where the registry does not answer."""
    store = store_of(found)
    try:
        settings = place(name.rpartition(":")[0]).settings
    except InputError:
        settings = Place(store.root).settings
    makers = [stage.name for stage in KNOWN if stage.makes == "model"]
    trained = [known.fingerprint for maker in makers for known in store.all(maker)]
    try:
        return registered(settings, trained)
    except Exception as error:  # whatever it says; the artifacts are known without it
        log.warning("the model registry at %s does not answer: %s", settings.shown, short(error))
        return []


def registered(settings: Any, fingerprints: list[str]) -> list[dict[str, Any]]:
    """The versions of models of these fingerprints: {"name", "version", "aliases", "fingerprint"}; none where the
    store's database is not there yet."""
    from omniloom.infra.tracking.registry import versions

    if settings.database and not settings.database.exists():
        return []
    found = versions(settings, fingerprints)
    return [{**version, "fingerprint": name} for name, known in found.items() for version in known]
