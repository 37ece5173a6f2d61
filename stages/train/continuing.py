"""A training that goes on from a step of an earlier one, with another mixture, other sources, another schedule.

In: the earlier training's ledger and checkpoints (`stages.base.Continued`). Out: in this training's state the same
checkpoint and curves, and a ledger with one period more; from there it resumes as any training does. What may change
between the two is said here, and nothing else does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omniloom.infra import storage
from omniloom.infra.artifacts import RESUME, Artifact
from omniloom.infra.errors import InputError, OmniLoomError
from omniloom.infra.training import checkpoint
from omniloom.stages.base import StageContext
from omniloom.stages.train import ledger as books
from omniloom.stages.train.config import Config

# Fields, with all that is below them. Those of `_kept_in_part` may change as far as it says.
MAY_CHANGE = (
    *(f"packing.{name}" for name in ("mixture", "temperature", "sources")),
    *(f"packing.{name}" for name in ("caption_first", "caption_loss", "condition_dropout")),
    *(f"packing.{name}" for name in ("noisy_context", "context_max_time", "window_rows")),
    *("objectives", "loss", "lr_scale", "alignment", "batch_rows", "steps"),
    *(f"optimizer.{name}" for name in ("lr", "betas", "eps", "weight_decay", "warmup_steps", "schedule")),
    *(f"optimizer.{name}" for name in ("final_lr_ratio", "grad_clip")),
    *(f"engine.{name}" for name in ("precision", "communication", "ema_decay", "on_bad_step")),
    *(f"engine.{name}" for name in ("spike_sigmas", "spike_window", "max_bad_steps")),
)
_WHY = {
    "model": "it is the shape of the weights",
    "adapter": "it is a part of the weights",
    "packing.length": "texts are cut by it, so that a place in the order would mean another document",
    "seed": "the order of documents and their noise follow from it",
    "init_from": "the weights started from it",
    "diffusion": "it is what the weights have learnt to predict",
    "pixel_diffusion": "it is what the weights have learnt to predict",
}


def refusals(old: Config, new: Config, step: int) -> list[InputError]:
    """What of the new config cannot go on from that step of the old one; fields from the stage's root."""
    errors = [
        InputError(
            f"expected {_shown(before)} as in the training that it goes on from, got {_shown(after)}: {_why(field)}",
            field=field,
        )
        for field, before, after in _differences(books.recipe(old), books.recipe(new))
    ]
    errors += _kept_in_part(old, new)
    if new.steps <= step:
        errors.append(
            InputError(f"expected more than the {step:,} steps that are done, got {new.steps:,}", field="steps")
        )
    return errors


def _kept_in_part(old: Config, new: Config) -> Iterator[InputError]:
    if old.packing.by_source != new.packing.by_source:
        yield InputError(
            "each source of a kind has an order of its own from the first step on or none has: expected temperature or "
            f"sources to be {'given' if old.packing.by_source else 'null'} as in the training that it goes on from",
            field="packing.sources",
        )
    if old.trained != new.trained:
        yield InputError(
            f"expected shares of {_named(old.trained)}, whose parts the model has, got {_named(new.trained)}; a "
            "schedule may bring a share to 0",
            field="objectives",
        )
    frozen = [{part for part in ("text", "visual") if not getattr(c.lr_scale, part)} for c in (old, new)]
    for part in sorted(frozen[0] ^ frozen[1]):
        is_frozen = "was frozen and has no optimizer state" if part in frozen[0] else "has an optimizer state"
        yield InputError(f"cannot become or cease to be 0: the part {is_frozen}", field=f"lr_scale.{part}")
    if (old.alignment is None) != (new.alignment is None):
        yield InputError("its projection is a part of the weights: it stays, or stays null", field="alignment")
    if bool(old.engine.ema_decay) != bool(new.engine.ema_decay):
        yield InputError("a moving average is kept from the first step on or not at all", field="engine.ema_decay")


def check_tokens(ledger: books.Ledger, facts: Mapping[str, Any], uri: str) -> None:
    """InputError where tokens that these facts are about are not in the terms of the training that goes on."""
    last = ledger["periods"][-1]["tokens"]
    for name, what in (
        ("text_digest", "text tokenizer"),
        ("visual_digest", "visual tokenizer"),
        ("pixel_patch", "pixel_patch"),
    ):
        if facts.get(name) != last[name] and not (name != "text_digest" and _text_alone(ledger)):
            raise InputError(
                f"the tokens are made with another {what} than those that the training has seen; see docs/books.md",
                field="continue_from",
                file=uri,
            )


def _text_alone(ledger: books.Ledger) -> bool:
    return not books.config_of(ledger["periods"][-1]).trained


def begin(context: StageContext) -> tuple[books.Ledger, tuple[Artifact, ...]]:
    """The training's ledger, in its state, and the tokens of each period. Brings what it goes on from there where that
    is another training, the checkpoint's manifest last: a training that was killed before it begins again."""
    config, state, before = context.config, context.state, context.continued
    ledger = books.read(state)
    if ledger is None or (before and not checkpoint.newest_step(state)):
        ledger = {"format": books.FORMAT, "stage": context.stage, "pipeline": context.pipeline, "periods": []}
        ledger["training"] = context.fingerprint
        if before:
            facts = storage.load_json(context.tokens.file("tokens.json"))
            check_tokens(before.ledger, facts, context.tokens.uri)
            _adopt(before.state, before.history, config.continue_from.step, ledger, before.ledger, context)
        else:
            ledger["periods"] = [books.period(config, context.fingerprint, context.tokens)]
            storage.write_json(storage.join(state, books.FILE), ledger)
    known = {artifact.fingerprint: artifact for artifact in (before.corpora if before else ())}
    earlier = (known[period["tokens"]["fingerprint"]] for period in ledger["periods"][:-1])
    return ledger, (*earlier, context.tokens)


def _adopt(
    source: str, history: str, step: int, ledger: books.Ledger, old: books.Ledger, context: StageContext
) -> None:
    name, target = f"step-{step:08d}", storage.join(context.state, "checkpoints")
    folder = storage.join(source, "checkpoints")
    context.progress.say(f"bringing the checkpoint of step {step}")
    if (manifest := storage.read_json(storage.join(folder, f"{name}.json"))) is None:
        raise OmniLoomError(f"{folder}: the checkpoint of step {step} is gone; the training went on meanwhile")
    stream = manifest["position"]["stream"]
    rows = stream["rows"] + stream["row"]
    known = [period for period in old["periods"] if period["step"] < step]
    ledger["periods"] = [*known, books.period(context.config, context.fingerprint, context.tokens, step, rows)]
    ledger["not_applied"] = books.closed_by(old, manifest)["not_applied"]
    storage.remove(storage.join(target, name))
    storage.copy_tree(storage.join(folder, name), storage.join(target, name))
    if storage.exists(history):
        storage.copy_file(history, storage.join(context.state, "history.jsonl"))
    storage.write_json(storage.join(context.state, books.FILE), ledger)
    storage.write_json(storage.join(target, f"{name}.json"), manifest)


def trained_before(ledger: books.Ledger, corpora: Sequence[Artifact], progress: Any) -> dict[str, int]:
    """Counts of documents that are held out now and that an earlier corpus of the training had to train on, which are
    told; empty of a training with one corpus."""
    from omniloom.stages.data.parts import held_before
    from omniloom.stages.data.tokens import TokenSet

    others = books.earlier(ledger, [TokenSet(artifact, "train").index for artifact in corpora])
    if not others:
        return {}
    counts = {
        split: int(held_before(TokenSet(corpora[-1], split).index, others).sum()) for split in ("validation", "test")
    }
    if any(counts.values()):
        held = " and ".join(f"{count:,} of {split}" for split, count in counts.items() if count)
        progress.note(
            f"of the documents that are held out now {held} were there to train on before the change; losses on the "
            "validation split leave them out, evaluate does not"
        )
    return {f"{split}_trained_before": count for split, count in counts.items()}


def keep_checkpoint(context: StageContext) -> None:
    """The checkpoint of the last step into the artifact, so that another training may go on from it."""
    name = f"step-{context.config.steps:08d}"
    folder = storage.join(context.state, "checkpoints")
    target = storage.join(context.output, RESUME, "checkpoints")
    if not storage.exists(storage.join(folder, f"{name}.json")):
        context.progress.note("the checkpoint of the last step was not saved, and is not in the artifact")
        return
    storage.copy_tree(storage.join(folder, name), storage.join(target, name))
    storage.copy_file(storage.join(folder, f"{name}.json"), storage.join(target, f"{name}.json"))


def _differences(old: Any, new: Any, field: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(field, old, new) of the leaves that differ and may not."""
    if field in MAY_CHANGE or old == new:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for name in (*old, *(name for name in new if name not in old)):
            yield from _differences(old.get(name), new.get(name), f"{field}.{name}" if field else name)
        return
    yield field, old, new


def _why(field: str) -> str:
    return next(
        (why for name, why in _WHY.items() if f"{field}.".startswith(f"{name}.")), "a training that goes on keeps it"
    )


def _named(objectives: tuple[str, ...]) -> str:
    return " and ".join(objectives) or "no objective of pictures"


def _shown(value: Any) -> str:
    return json.dumps(value)
