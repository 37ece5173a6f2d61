"""Tokens that are taken over: what an earlier artifact has of the records that are still as they were.

In: the shards of the records, and the artifact that this one builds on. Out: by shard of records the number of its
token shards, in every artifact the same; and in the output the token shards of what has not changed, shared with the
earlier one as far as the store can, with what its workers noted down of them.

    resume/shards.json       {"shards": {name of a shard of records: {number, sha256, changes}}}: what was tokenized
    resume/shards/, lengths/ what workers note down of each shard, see `stages.pretokenize.stats` and `.index`

A shard has not changed where its file is the same and all of `stages.data.changes` says the same of it; and where the
text tokenizer is the same. The visual tokenizer is: else nothing is built on.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from omniloom.infra import storage
from omniloom.infra.artifacts import RESUME, TAKEN_OVER, Artifact
from omniloom.stages.data import changes, records

NOTES = RESUME.rstrip("/")  # of the output
_SHARDS = f"{RESUME}shards.json"


@dataclass(frozen=True)
class Shard:
    """Of records; its token shards have the `number`."""

    uri: str
    number: int
    facts: dict[str, Any]

    @property
    def name(self) -> str:
        return self.uri.rpartition("/")[2]


def numbered(corpus: Artifact, earlier: Artifact | None) -> list[Shard]:
    """The shards of a corpus; those that the earlier tokens know keep their numbers."""
    known = _known(earlier)
    hashes = {entry["path"]: entry["sha256"] for entry in corpus.manifest["files"]}
    free = max((facts["number"] for facts in known.values()), default=-1) + 1
    found = []
    for uri in records.shards(corpus.uri):
        name = uri.rpartition("/")[2]
        if name in known:
            number = known[name]["number"]
        else:
            number, free = free, free + 1
        facts = {"number": number, "sha256": hashes.get(f"records/{name}"), "changes": _changes(uri)}
        found.append(Shard(uri, number, facts))
    return found


def _known(earlier: Artifact | None) -> dict[str, dict]:
    found = storage.read_json(earlier.file(_SHARDS)) if earlier else None
    return found["shards"] if found else {}


def _changes(uri: str) -> str:
    """Of what holds of the shard's records otherwise than it says; empty where nothing does."""
    if not (found := changes.of_shard(uri)):
        return ""
    told = [sorted(found.dropped), sorted(found.captions.items()), sorted(found.splits.items())]
    return sha256(json.dumps(told).encode()).hexdigest()


def take_over(shards: list[Shard], earlier: Artifact | None, text_digest: str, output: str, state: str) -> None:
    """Share what has not changed, and note down what the output is of. A pass that was killed is made again."""
    noted: dict[str, dict] = {}
    if earlier and storage.load_json(earlier.file("tokens.json"))["text_digest"] == text_digest:
        known, files = _known(earlier), _by_number(earlier)
        for shard in shards:
            if known.get(shard.name) == shard.facts and shard.facts["sha256"]:
                for entry in files.get(shard.number, ()):
                    noted[entry["path"]] = {"bytes": entry["bytes"], "sha256": entry["sha256"]}
        done = {path for path in noted if path.startswith(f"{RESUME}shards/")}  # says that a shard is done: comes last
        for paths in (noted.keys() - done, done):
            storage.share_files(earlier.uri, output, sorted(paths))
    storage.write_json(storage.join(state, TAKEN_OVER), noted)
    storage.write_json(storage.join(output, _SHARDS), {"shards": {shard.name: shard.facts for shard in shards}})


def _by_number(earlier: Artifact) -> dict[int, list[dict]]:
    """The files of each token shard."""
    found: dict[int, list[dict]] = {}
    for entry in earlier.manifest["files"]:
        folder, _, name = entry["path"].rpartition("/")
        if folder.startswith(("tokens/", f"{RESUME}lengths/")) or folder == f"{RESUME}shards":
            found.setdefault(int(name.partition(".")[0].removeprefix("shard-")), []).append(entry)
    return found


def drift(shards: list[Shard], stats: list[dict], earlier: Artifact | None) -> dict[str, float]:
    """How well the tokenizers do on what is new, in shards that the earlier tokens do not know, and in the others:
    bytes a token, and by kind of picture the PSNR of some reconstructions in dB, over all their values. What only one
    of both has is left out."""
    known = _known(earlier)
    sums: dict[str, dict[str, float]] = {when: defaultdict(float) for when in ("new", "before")}
    for shard, found in zip(shards, stats, strict=True):
        part = sums["before" if shard.name in known else "new"]
        for *_, counts in found["groups"]:
            for name in ("bytes", "text_tokens"):
                part[name] += counts.get(name, 0)
        for kind, (error, values) in found.get("errors", {}).items():  # earlier versions noted none
            part[f"error_{kind}"] += error
            part[f"values_{kind}"] += values
    told = {}
    for when, part in sums.items():
        if all(each["text_tokens"] for each in sums.values()):
            told[f"bytes_per_token_{when}"] = part["bytes"] / part["text_tokens"]
        for kind in ("image", "video"):
            if all(each[f"values_{kind}"] for each in sums.values()):
                error = part[f"error_{kind}"] / part[f"values_{kind}"]
                told[f"psnr_{kind}_{when}"] = -10 * math.log10(max(error, 1e-10))
    return told
