"""A training that goes on from a step of another one: with the same recipe it is the same training, with another one
each document keeps its place in the order, and what cannot change is refused by its field."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import corpora
import numpy as np
import pytest
from loaded import Given, note_what_is_given

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.infra.errors import InputError
from omniloom.pipelines.continuing import steps_of
from omniloom.stages.base import Continued
from omniloom.stages.data.tokens import TokenSet
from omniloom.stages.reporting import history
from omniloom.stages.train import continuing, ledger
from omniloom.stages.train.config import Config, unified_config, visual_sizes
from omniloom.stages.train.job import Job
from omniloom.stages.train.rows import RowLoader
from omniloom.stages.train.uses import Uses
from omniloom.stages.train.worker import assemble, train_worker

WORDS = ["red", "green", "blue", "square", "moves", "the", "a"]
SETTINGS = {
    "model": {"width": 32, "layers": 1, "heads": 2, "time_dim": 16},
    "objectives": {},
    "packing": {"length": 64, "window_rows": 8},
    "batch_rows": 2,
    "steps": 18,
    "optimizer": {"lr": 1e-2, "warmup_steps": 3},
    "engine": {"zero_stage": 1, "ema_decay": 0.9},
    "workers": {"count": 1, "checkpoint_every": 6, "log_every": 1},
    "validate_every": 1000,
    "validation_rows": 2,
}


@pytest.fixture(scope="module", autouse=True)
def group(process_group):
    yield


def config(**changes) -> Config:
    return Config.model_validate({**SETTINGS, **changes})


def texts(folder: Path, numbers: range, held_out: range = range(900, 908)) -> Artifact:
    text = corpora.text_tokenizer()

    def row(number: int) -> dict:
        rng = np.random.default_rng(number)
        ids = text.encode(" ".join(rng.choice(WORDS, 4 + number % 9)))
        return {
            "id": hashlib.sha256(str(number).encode()).hexdigest(),
            "kind": "text",
            "label": None,
            "source": "texts",
            "path": f"{number}.txt",
            "bytes": 1,
            "segments": [{"kind": "text", "loss": True, "ids": ids}],
        }

    splits = {"train": [[row(n) for n in numbers]], "validation": [[row(n) for n in held_out]]}
    return corpora.pretokenize(folder, splits, text)


class Training:
    """A training in a folder, by the calls of the stage's body, in this process."""

    def __init__(self, folder: Path, tokens: Artifact, settings: Config, before: Continued | None = None):
        self.folder, self.tokens, self.settings = folder, tokens, settings
        self.given: list[Given] = []
        self.context = SimpleNamespace(
            stage="train",
            pipeline="test",
            fingerprint=hashlib.sha256(str(folder).encode()).hexdigest(),
            config=settings,
            tokens=tokens,
            continued=before,
            state=str(folder / "state"),
            output=str(folder / "output"),
            progress=corpora.Silent(),
        )

    def run(self, monkeypatch, dies_at: int | None = None) -> Training:
        books, artifacts = continuing.begin(self.context)
        progress = corpora.KilledAt(dies_at) if dies_at else corpora.Silent()
        note_what_is_given(monkeypatch, self.given)
        job = Job(
            self.settings, self.tokens, None, self.context.output, self.context.state, progress, corpora.Silent(),
            books, artifacts,
        )  # fmt: skip
        try:
            train_worker(job)
        except corpora.Killed:
            assert dies_at
        finally:
            monkeypatch.undo()
        if self.settings.keep_checkpoint:
            continuing.keep_checkpoint(self.context)
        return self

    def continued(self, *others: Artifact, finished: bool = False) -> Continued:
        folder = self.context.output if finished else self.context.state
        curves = storage.join(folder, *(["report"] if finished else []), "history.jsonl")
        state = storage.join(folder, "resume") if finished else folder
        return Continued(ledger.read(folder), state, curves, (self.tokens, *others))

    @property
    def model(self) -> bytes:
        return storage.read_bytes(storage.join(self.context.output, "model", "unified.safetensors"))


def after(training: Training, step: int, **changes) -> Config:
    before = {"training": training.context.fingerprint, "step": step}
    return config(continue_from=before, **changes)


@pytest.mark.parametrize("finished", [False, True])
def test_with_the_same_recipe_it_is_the_same_training(tmp_path, monkeypatch, finished):
    tokens = texts(tmp_path / "tokens", range(60))
    whole = Training(tmp_path / "whole", tokens, config(optimizer={"schedule": "constant", "lr": 1e-2}))
    whole.run(monkeypatch)
    recipe = {"optimizer": {"schedule": "constant", "lr": 1e-2}}
    steps = {"steps": 12, "keep_checkpoint": True} if finished else {}
    first = Training(tmp_path / "first", tokens, config(**recipe, **steps))
    first.run(monkeypatch, dies_at=None if finished else 14)
    second = Training(tmp_path / "second", tokens, after(first, 12, **recipe), first.continued(finished=finished))
    second.run(monkeypatch)
    assert second.model == whole.model and second.model != b""
    assert second.given == [given for given in whole.given if given[0] >= 12]
    told, alone = (ledger.read(training.context.output) for training in (second, whole))
    assert told["position"] == alone["position"] and told["steps"] == alone["steps"] == 18
    assert [(p["step"], p["rows"], p["training"]) for p in told["periods"]] == [
        (0, 0, first.context.fingerprint),
        (12, 24, second.context.fingerprint),
    ]
    curves = [history.load(storage.join(t.context.output, "report", "history.jsonl")) for t in (second, whole)]
    losses = [[(row["step"], row["loss"]) for row in curve if "loss" in row] for curve in curves]
    assert losses[0] == losses[1] and len(losses[0]) == 18


def told(training: Training, *corpora_then: Artifact, numbers: Iterable[int]) -> list[Given]:
    """What the training's books say of texts, as `Training.given` has it."""
    books = ledger.read(training.context.output)
    indices = [TokenSet(artifact, "train").index for artifact in corpora_then]
    names = {hashlib.sha256(str(n).encode()).hexdigest(): f"{n}.txt" for n in numbers}
    return [(use["step"], use["row"], names[use["id"]]) for use in Uses(books, indices).of(list(names))]


def test_another_corpus_goes_on_where_the_order_stood_and_the_books_tell_what_each_text_was_used_for(
    tmp_path, monkeypatch
):
    """Of the running epoch nothing comes twice or is lost, and what was removed comes no more."""
    old = texts(tmp_path / "old", range(200))
    first = Training(tmp_path / "first", old, config()).run(monkeypatch, dies_at=8)
    given = [given for given in first.given if given[0] < 6]
    left = [n for n in range(200) if f"{n}.txt" not in {path for _, _, path in given}]
    removed, kept = left[:9], [n for n in range(230) if n not in left[:9]]
    new = texts(tmp_path / "new", kept, range(0, 3))
    changed = after(first, 6, batch_rows=4, steps=24)
    second = Training(tmp_path / "second", new, changed, first.continued(new)).run(monkeypatch)
    whole = [*given, *second.given]
    of_each = {n: [entry for entry in whole if entry[2] == f"{n}.txt"] for n in range(230)}
    assert sorted(told(second, old, new, numbers=range(230))) == sorted(whole)
    assert all(told(second, old, new, numbers=[n]) == of_each[n] for n in (*removed[:2], 3, 4, 205, 206))
    assert not any(of_each[n] for n in removed)
    # A text that is cut stands in two rows of a window, so that windows tell how often it came.
    times = {n: len({row // 8 for step, row, _ in of_each[n] for row in [second_row(step, row)]}) for n in kept}
    assert {times[n] for n in range(200) if n in times} <= {1, 2} and {times[n] for n in range(200, 230)} <= {1, 2}


def second_row(step: int, row: int) -> int:
    """The number of a row in the whole training, of two rows a step and from step 6 on of four."""
    return 2 * step + row if step < 6 else 12 + 4 * (step - 6) + row


def refused(old: dict, new: dict, step: int = 6) -> list[str]:
    found = continuing.refusals(config(**old), config(**new), step)
    return [f"{error.field}: {error.message}" for error in found]


def test_what_may_change_is_not_refused():
    schedule = {"schedule": [{"step": 0, "shares": {"text": 1}}, {"step": 9, "shares": {"text": 0.5}}]}
    assert not refused(
        {"objectives": {"latent_diffusion": 1, "next_code": 1}},
        {
            "objectives": {"latent_diffusion": 1, "next_code": 5},
            "packing": {"length": 64, "window_rows": 16, "mixture": schedule, "caption_first": 0.2},
            "batch_rows": 6,
            "steps": 40,
            "optimizer": {"lr": 1e-4, "warmup_steps": 9, "schedule": "constant", "weight_decay": 0.5},
            "engine": {"zero_stage": 3, "ema_decay": 0.5, "precision": "bf16", "on_bad_step": "skip"},
            "loss": {"text_weight": 2},
            "lr_scale": {"text": 0.5},
            "workers": {"count": 2},
            "validate_every": 3,
        },
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": {"width": 64, "layers": 1, "heads": 2}}, "model.width: expected 32 as in the training"),
        ({"packing": {"length": 128, "window_rows": 8}}, "packing.length: expected 64 as in the training that it goes"),
        ({"seed": 3}, "seed: expected 0"),
        ({"init_from": "/m"}, "init_from: expected null"),
        ({"steps": 6}, "steps: expected more than the 6 steps that are done, got 6"),
        ({"objectives": {"latent_diffusion": 1}}, "objectives: expected shares of no objective of pictures"),
        ({"lr_scale": {"text": 0}}, "lr_scale.text: cannot become or cease to be 0"),
        ({"engine": {"ema_decay": 0}}, "engine.ema_decay: a moving average is kept"),
        ({"diffusion": {"predict": "x"}}, 'diffusion.predict: expected "v"'),
        ({"optimizer": {"lr": 1}, "seed": 1, "steps": 2}, "steps: expected more"),
    ],
)
def test_what_may_not_change_is_refused_by_its_field(changes, told):
    assert [text for text in refused({}, changes) if text.startswith(told)], refused({}, changes)


def test_latents_stay_normalised_as_they_were_learnt(tmp_path):
    text, rng = corpora.text_tokenizer(), np.random.default_rng(0)
    rows = corpora.token_rows(text, rng, images=12, videos=0, texts=4, documents=0)
    artifacts = []
    for name, mean in (("old", 0.1), ("new", 0.7)):
        splits = {"train": [rows[: 8 if name == "old" else 16]], "validation": [rows[:2]]}
        tokens = corpora.pretokenize(tmp_path / name, splits, text)
        facts = storage.load_json(tokens.file("tokens.json"))
        storage.write_json(tokens.file("tokens.json"), {**facts, "latent_mean": [mean] * 4})
        artifacts.append(tokens)
    settings = config(objectives={"latent_diffusion": 1}, samples={"count": 0})
    periods = [ledger.period(settings, "a" * 64, tokens, 6 * n, 12 * n) for n, tokens in enumerate(artifacts)]
    job = Job(
        settings, artifacts[1], None, str(tmp_path), str(tmp_path), corpora.Silent(), corpora.Silent(),
        {"periods": periods}, tuple(artifacts),
    )  # fmt: skip
    _, trainer, loader = assemble(job)
    assert loader.tokens.facts["latent_mean"] == trainer.facts["latent_mean"] == [0.1] * 4
    assert not trainer.rows  # both held-out pictures were trained on before
    loader.close()


def test_tokens_of_other_tokenizers_are_refused(tmp_path, monkeypatch):
    tokens = texts(tmp_path / "tokens", range(30))
    first = Training(tmp_path / "first", tokens, config()).run(monkeypatch, dies_at=8)
    facts = storage.load_json(tokens.file("tokens.json"))
    storage.write_json(tokens.file("tokens.json"), {**facts, "text_digest": "0" * 64})
    second = Training(tmp_path / "second", tokens, after(first, 6), first.continued())
    with pytest.raises(InputError, match="continue_from: the tokens are made with another text tokenizer"):
        continuing.begin(second.context)


def test_a_training_that_was_killed_while_it_brought_the_checkpoint_begins_again(tmp_path, monkeypatch):
    tokens = texts(tmp_path / "tokens", range(40))
    first = Training(tmp_path / "first", tokens, config()).run(monkeypatch, dies_at=8)
    second = Training(tmp_path / "second", tokens, after(first, 6), first.continued())
    write = storage.write_json

    def killed(uri: str, value: dict) -> None:
        if uri.endswith("step-00000006.json"):
            raise corpora.Killed
        write(uri, value)

    monkeypatch.setattr(storage, "write_json", killed)
    with pytest.raises(corpora.Killed):
        continuing.begin(second.context)
    monkeypatch.undo()
    assert steps_of(second.context.state) == [] and ledger.read(second.context.state)
    second.run(monkeypatch)
    assert [period["step"] for period in ledger.read(second.context.output)["periods"]] == [0, 6]
    assert second.given[0][0] == 6


def test_what_is_held_out_and_was_trained_on_is_counted(tmp_path):
    old = texts(tmp_path / "old", range(30), range(900, 904))
    new = texts(tmp_path / "new", range(10, 50), range(0, 14))
    periods = [ledger.period(config(), "a" * 64, tokens, n, n) for n, tokens in enumerate((old, new))]
    told = corpora.Silent()
    assert continuing.trained_before({"periods": periods}, (old, new), told) == {
        "validation_trained_before": 14,
        "test_trained_before": 0,
    }
    assert "14 of validation were there to train on" in told.notes[0]
    assert continuing.trained_before({"periods": periods[:1]}, (old,), told) == {} and len(told.notes) == 1


def test_what_was_left_out_on_the_way_and_steps_that_changed_nothing_are_in_the_books(tmp_path):
    tokens = TokenSet(texts(tmp_path / "tokens", range(12)), "train")
    settings = config()
    model = unified_config(settings, tokens.facts["vocab_size"], visual_sizes(tokens.facts), tokens.facts["specials"])
    names = [tokens.row(number)["id"] for number in range(12)]
    given: list[tuple[int, int, str]] = []

    def take(loader: RowLoader, steps: range) -> dict:
        for step in steps:
            loader.at(step)
            for row in loader.taken(step):
                given.extend((step, row.number, names[placed.index]) for placed in row.documents)
        loader.close()
        return json.loads(json.dumps(loader.position))

    position = take(RowLoader(tokens, model, settings, 0, 1), range(5))
    for bad, steps in (([names[3]], range(5, 9)), ([names[3], names[8]], range(9, 20))):
        loader = RowLoader(tokens, model, settings, 0, 1)
        loader.seek({**position, "left_out": bad})
        position = take(loader, steps)
    assert position["left_out_since"] == {names[3]: 5, names[8]: 9}
    loader = RowLoader(tokens, model, settings, 0, 1)
    loader.seek(position)  # as where bad steps are judged no more
    position = take(loader, range(20, 24))
    assert position["left_out_since"] == {names[3]: 5, names[8]: 9}
    periods = [ledger.period(settings, "a" * 64, tokens._shards.artifact)]
    found = [
        {"step": 2, "action": "skip", "documents": []},
        {"step": 4, "action": "rollback", "documents": [{"id": names[3]}]},
        {"step": 6, "action": "reload", "documents": []},
        {"step": 7, "action": "rollback", "documents": []},
    ]
    uses = Uses(ledger.closed({"periods": periods, "not_applied": [1]}, 24, position, found), [tokens.index])
    told = uses.of(names)
    assert sorted((use["step"], use["row"], use["id"]) for use in told) == sorted(given)
    assert {use["step"] for use in told if not use["applied"]} == {1, 2, 7}
    forgotten = Uses({**uses.ledger, "left_out": {}}, [tokens.index]).of([names[3]])
    assert len(forgotten) > sum(name == names[3] for *_, name in given)
    assert uses.why_not(names[3]) == "left out from step 5 on, where it was to blame for a bad one"
