"""The ledger of a training: which documents it was given, as far as it came, in a few lines of JSON.

    ledger.json   "format", and the "pipeline", "stage" and fingerprint ("training") that wrote it
                  "periods": [{"step", "rows", "training", "config", "tokens"}], from a step on, before which there were
                      so many rows: whose recipe and which tokens, by stage, fingerprint and digests, with the mean and
                      deviation of their latents
                  and at the end of a training "steps", the "position" of its rows (`stages.data.books`), "left_out":
                      {id: the first step without that document} and "not_applied": steps that changed nothing

Which document stood in which row of which step follows from it and the tokens' index: nothing is kept by document, so
that it is as small for 100 million of them. It lies in the artifact, and without the end in the stage's state, beside
the checkpoints, which have what is missing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.infra.errors import OmniLoomError
from omniloom.infra.fields import marks
from omniloom.stages.train.config import Config, kept_config

if TYPE_CHECKING:
    from omniloom.stages.data.books import Books
    from omniloom.stages.data.index import Index

FILE = "ledger.json"
FORMAT = 1
_FACTS = ("visual_tokenizer", "visual_digest", "text_digest", "pixel_patch", "latent_mean", "latent_std")

Ledger = dict[str, Any]


def trained_by(model: Artifact) -> Mapping[str, Any]:
    """The config that the model was trained by: its ledger's, as of a distilled one the stage's own says little."""
    ledger = storage.read_json(model.file(FILE))
    return ledger["periods"][-1]["config"] if ledger else model.manifest["config"]


def period(config: Config, training: str, tokens: Artifact, step: int = 0, rows: int = 0) -> dict[str, Any]:
    """What a ledger says of a period that begins at a step."""
    facts = storage.load_json(tokens.file("tokens.json"))
    return {
        "step": step,
        "rows": rows,
        "training": training,
        "config": recipe(config),
        "tokens": {
            "stage": tokens.stage,
            "fingerprint": tokens.fingerprint,
            "digest": tokens.digest,
            **{name: facts.get(name) for name in _FACTS},
        },
    }


def read(folder: str) -> Ledger | None:
    """The ledger in an artifact or a state folder; None where there is none. OmniLoomError for one of another
    version."""
    found = storage.read_json(uri := storage.join(folder, FILE))
    if found and found["format"] != FORMAT:
        raise OmniLoomError(f"{uri} is of format {found['format']}, expected {FORMAT}; another version wrote it")
    return found


def closed(ledger: Ledger, steps: int, position: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> Ledger:
    """The ledger of a training that came to a step, where its loader's position is this; `found` are bad steps, as
    `infra.training.bad_steps` keeps them, beside those of the training that it went on from."""
    not_applied = {bad["step"] for bad in found if bad["action"] != "reload" and not bad["documents"]}
    return {
        **ledger,
        "steps": steps,
        "position": position["stream"],
        "left_out": position.get("left_out_since", {}),
        "not_applied": sorted(not_applied.union(ledger.get("not_applied", ()))),
    }


def closed_by(ledger: Ledger, checkpoint: Mapping[str, Any]) -> Ledger:
    """The ledger of a training that is under way, as far as its newest checkpoint's manifest says."""
    position = checkpoint["position"]
    return closed(ledger, checkpoint["step"], position, position.get("bad_steps", {}).get("found", ()))


def recipe(value: Any) -> Any:
    """A config as literals, without what only says where it runs."""
    if isinstance(value, BaseModel) or is_dataclass(value):
        held = {name: getattr(value, name) for name, mark in marks(value).items() if not mark.get("placement")}
        return {name: recipe(item) for name, item in held.items()}
    if isinstance(value, dict):
        return {name: recipe(item) for name, item in value.items()}
    return [recipe(item) for item in value] if isinstance(value, list | tuple) else value


def config_of(period: Mapping[str, Any]) -> Config:
    """The config of a period, on one worker. ValueError where this version does not know its fields."""
    return kept_config(period["config"])


def open_books(ledger: Ledger, indices: Sequence[Index]) -> Books:
    """The books of a ledger. `indices` are those of each period's tokens, of the train split; where two periods follow
    each other with the same tokens, they may be two."""
    from omniloom.stages.data.books import Books, Period
    from omniloom.stages.data.parts import parts_of
    from omniloom.stages.data.planner import Planner

    known: list[Index] = []
    digests: list[str] = []
    periods = []
    for told, index in zip(ledger["periods"], indices, strict=True):
        if digests[-1:] != [told["tokens"]["digest"]]:
            known, digests = [*known, index], [*digests, told["tokens"]["digest"]]
        name = hashlib.sha256(" ".join(digests).encode()).hexdigest()[:32]
        parts = parts_of(known, storage.cache_folder() / f"parts-{name}")
        config = config_of(told)
        planner = Planner(parts, config.packing, config.seed, config.objectives)
        periods.append(Period(told["step"], told["rows"], config.batch_rows, planner))
    return Books(periods)


def earlier(ledger: Ledger, indices: Sequence[Index]) -> list[Index]:
    """Of these the ones whose tokens are not the last period's."""
    last = ledger["periods"][-1]["tokens"]["digest"]
    found = {p["tokens"]["digest"]: index for p, index in zip(ledger["periods"], indices, strict=True)}
    return [index for digest, index in found.items() if digest != last]
