"""A pipeline of texts whose training is changed on the way, stage by stage in this process: what goes on and what is
refused, and who saw which file, against what the training's loader gave out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import corpora
import numpy as np
import pytest
import yaml
from loaded import Given, note_what_is_given

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.infra.errors import InputError
from omniloom.pipelines import continuing
from omniloom.pipelines.config import load
from omniloom.pipelines.making import identity_facts
from omniloom.pipelines.plan import Plan, make_plan
from omniloom.pipelines.replaying import replay_step
from omniloom.stages.base import StageContext
from omniloom.stages.pretokenize import stage as pretokenize
from omniloom.stages.pretokenize.shard import ShardTokenizer
from omniloom.stages.pretokenize.taken import Shard
from omniloom.stages.train import stage as train

WORDS = ["red", "green", "blue", "square", "moves", "the", "a"]
TRAIN = {
    "model": {"width": 16, "layers": 1, "heads": 2, "time_dim": 8},
    "objectives": {},
    "packing": {"length": 64, "window_rows": 4},
    "batch_rows": 2,
    "steps": 8,
    "workers": {"count": 1, "checkpoint_every": 4, "log_every": 2},
    "keep_checkpoint": True,
    "validation_rows": 2,
    "samples": {"count": 0},
}


def write_texts(folder: Path, numbers: range) -> None:
    for number in numbers:
        words = np.random.default_rng(number).choice(WORDS, 12 + number % 20)
        storage.write_bytes(str(folder / f"{number}.txt"), " ".join(words).encode())


@dataclass
class Pipeline:
    """Its folder, and by fingerprint of a training what its loader gave out."""

    folder: Path
    given: dict[str, list[Given]] = field(default_factory=dict)
    sources: list[str] = field(default_factory=lambda: ["texts"])
    changes: dict = field(default_factory=dict)
    first: str = ""  # the fingerprint of the training before the change

    @property
    def file(self) -> str:
        path = self.folder / "seen.yaml"
        stages = {
            "ingest": {
                "sources": [{"kind": "text", "uri": str(self.folder / name), "name": name} for name in self.sources],
                "splits": {"train": 0.8, "validation": 0.1, "test": 0.1},
            },
            "pretokenize": {"vocab_size": 300},
            "train": TRAIN,
        }
        config = {"name": "seen", "storage": str(self.folder / "runs"), "stages": stages}
        path.write_text(yaml.safe_dump(config))
        return str(path)

    def plan(self, *overrides: str) -> Plan:
        return make_plan(load(self.file, overrides))

    def run(self, *overrides: str, dies_at: int | None = None) -> Artifact | None:
        """Bring the pipeline up to date, as a run does; the last stage's artifact. `dies_at`: the step at which the
        training's process dies."""
        plan = self.plan(*overrides)
        for name in [planned.name for planned in plan.to_execute]:
            planned = plan[name]
            inputs = {role: plan[read].artifact for role, read in planned.inputs.items()}
            work, progress = plan.store.work_uri(name, planned.fingerprint), corpora.Silent()
            if name == "train" and dies_at:
                progress = corpora.KilledAt(dies_at)
            context = StageContext(
                name,
                planned.fingerprint,
                planned.config,
                inputs,
                work,
                progress,
                corpora.Silent(),
                plan.config.name,
                continuing.continued(plan.trainings, planned),
            )
            with self.in_this_process(planned.fingerprint):
                metrics = planned.stage.run(context)
            plan.completed(name, self.publish(plan, planned, work, inputs, metrics))
        return plan.stages[-1].artifact

    def publish(self, plan: Plan, planned, work: str, inputs: dict, metrics: dict) -> Artifact:
        facts = {
            **identity_facts(planned, inputs),
            "metrics": metrics,
            "pipeline": plan.config.name,
            "times": {"ended_unix": 1.0, "seconds": 1.0},
        }
        artifact = plan.store.publish(planned.name, planned.fingerprint, work, facts)
        plan.store.set_last_used(plan.config.name, artifact)
        return artifact

    def in_this_process(self, fingerprint: str):
        """What stages would have other processes do is done here; what the training's loader gives is noted."""
        return _InThisProcess(self.given.setdefault(fingerprint, []))


class _InThisProcess:
    def __init__(self, given: list[Given]):
        self.given, self.patch = given, pytest.MonkeyPatch()

    def __enter__(self) -> None:
        def tokenized(context: StageContext, shards: list[Shard], text_uri: str, notes: str) -> None:
            tokenizer = ShardTokenizer(context.config, None, text_uri, context.output, notes)
            tokenizer.tokenize([{"index": shard.number, "uri": shard.uri} for shard in shards])

        note_what_is_given(self.patch, self.given)
        self.patch.setattr(storage, "is_process_local", lambda uri: True)  # ingest then asks no Ray
        self.patch.setattr(pretokenize, "_tokenize", tokenized)
        self.patch.setattr(train, "launch", lambda function, job, *rest: function(job))

    def __exit__(self, *error: object) -> None:
        self.patch.undo()


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory, process_group) -> Iterator[Pipeline]:
    """First trained to its end, and then with a source more and four rows a step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMNILOOM_CACHE", str(tmp_path_factory.mktemp("cache")))
        made = Pipeline(tmp_path_factory.mktemp("pipeline"))
        write_texts(made.folder / "texts", range(60))
        write_texts(made.folder / "more", range(100, 120))
        storage.write_bytes(str(made.folder / "texts" / "empty.txt"), b"")
        storage.write_bytes(str(made.folder / "texts" / "twin.txt"), (made.folder / "texts" / "7.txt").read_bytes())
        made.run()
        yield made


@pytest.fixture(scope="module")
def changed(pipeline) -> Pipeline:
    first = pipeline.plan()["train"].fingerprint
    text = pipeline.plan()["pretokenize"].artifact.file("text.json")
    made = Pipeline(pipeline.folder, pipeline.given, ["texts", "more"], first=first)
    made.changes = {
        "stages.train.continue_from": f"{{training: {first}, step: 8}}",
        "stages.train.batch_rows": "4",
        "stages.train.steps": "16",
        "stages.pretokenize.text_tokenizer": text,
    }
    made.run(*overrides(made))
    return made


def overrides(pipeline: Pipeline, **changes: str | None) -> list[str]:
    chosen = {**pipeline.changes, **changes}
    return [f"{key}={value}" for key, value in chosen.items() if value is not None]


def answer(omniloom, pipeline: Pipeline, file: str, *arguments: str) -> dict:
    code, out, err = omniloom("who-saw", file, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def test_who_saw_is_what_the_loader_gave_out(pipeline, omniloom):
    fingerprint = pipeline.plan()["train"].fingerprint
    given, splits = pipeline.given[fingerprint], set()
    assert len({path for _, _, path in given}) > 20
    for number in range(0, 60, 2):
        file = str(pipeline.folder / "texts" / f"{number}.txt")
        found = answer(omniloom, pipeline, file, pipeline.file)
        (record,) = found["records"]
        splits.add(record["split"])
        assert (record["source"], record["path"]) == ("texts", f"{number}.txt")
        told = [(use["step"], use["row"], record["path"]) for one in found["trainings"] for use in one["uses"]]
        assert told == [entry for entry in given if entry[2] == record["path"]]
        assert found["seen"] == bool(told) and [model["training"] for model in found["models"]] == [fingerprint] * bool(
            told
        )
        if record["split"] != "train":
            assert found["answer"].endswith(f"held out ({record['split']}); no training step saw it")
            assert [row["why"] for row in found["trainings"][0]["unused"]] == [f"held out: {record['split']}"]
        elif not told:
            assert [row["why"] for row in found["trainings"][0]["unused"]] == ["not reached yet"]
        assert bool(found["learnt_from"]) == (record["split"] == "train")  # the text tokenizer
    assert splits == {"train", "validation", "test"}
    digest = pipeline.plan()["train"].artifact.digest
    assert {model["digest"] for model in found["models"]} <= {digest}


def test_a_copy_is_its_record_and_what_was_rejected_or_never_there_is_told(pipeline, omniloom):
    texts = pipeline.folder / "texts"
    (copy,) = (row for row in [answer(omniloom, pipeline, str(texts / "twin.txt"), pipeline.file)])
    of_first = answer(omniloom, pipeline, str(texts / "7.txt"), pipeline.file)
    assert copy["copies"][0]["id"] == of_first["records"][0]["id"] and not copy["records"]
    assert copy["trainings"] == of_first["trainings"]
    rejected = answer(omniloom, pipeline, str(texts / "empty.txt"), pipeline.file)
    assert [row["code"] for row in rejected["rejects"]] == ["empty"] and not rejected["seen"]
    assert rejected["answer"].endswith("rejected at ingest (empty); nothing saw it")
    never = answer(omniloom, pipeline, str(texts / "none.txt"), pipeline.file)
    assert never["answer"] == f"{texts / 'none.txt'}: never ingested"
    outside = answer(omniloom, pipeline, "/elsewhere/7.txt", pipeline.file)
    assert outside["answer"] == f"/elsewhere/7.txt: never ingested; it lies below none of the sources {texts}"


def test_a_storage_and_a_sources_own_name_do_as_well(pipeline, omniloom):
    file = str(pipeline.folder / "texts" / "3.txt")
    wanted = answer(omniloom, pipeline, file, pipeline.file)
    for asked in (file, "texts:3.txt"):
        found = answer(omniloom, pipeline, asked, str(pipeline.folder / "runs"))
        assert {**found, "file": file, "answer": wanted["answer"]} == wanted
    assert not answer(omniloom, pipeline, "other:3.txt", pipeline.file)["records"]


def test_in_words(pipeline, omniloom):
    given = pipeline.given[pipeline.plan()["train"].fingerprint]
    step, row, path = given[0]
    code, out, _ = omniloom("who-saw", str(pipeline.folder / "texts" / path), pipeline.file)
    assert code == 0 and f"/texts/{path}: " in out and "in 1 training" in out
    assert f"step {step}, row {row}: text, " in out and "model of " in out and "; not registered" in out
    assert "pretokenize" in out and "its text tokenizer learnt from a corpus that holds it" in out
    short = omniloom("who-saw", str(pipeline.folder / "texts" / path), pipeline.file, "--uses", "0")[1]
    assert "row" not in short and "more (--uses, --json)" in short


def test_wrong_requests_are_told(pipeline, omniloom, tmp_path):
    code, _, err = omniloom("who-saw", "a.txt", pipeline.file, f"storage={tmp_path}")
    assert code == 2 and f"CONFIG: nothing was ingested in {tmp_path} yet" in err
    code, _, err = omniloom("who-saw", "a.txt", str(tmp_path / "none.yaml"))
    assert code == 2 and "none.yaml: is no storage that something was made in, and no such config file" in err
    code, _, err = omniloom("who-saw", "a.txt", str(pipeline.folder / "runs"), "seed=1")
    assert code == 2 and "overrides are of a config" in err


def test_a_changed_config_says_what_goes_on_with_it(pipeline):
    first = pipeline.plan()["train"].fingerprint
    hint = f"'stages.train.continue_from={{training: {first}, step: 8}}' (docs/books.md)"
    warnings = pipeline.plan("stages.train.batch_rows=4", "stages.train.steps=16").warnings
    assert len([text for text in warnings if text.startswith("train: ") and text.endswith(hint)]) == 1
    for other in ("stages.train.model.width=32", "stages.train.seed=1", "stages.train.optimizer.lr=1", "name=other"):
        assert not [text for text in pipeline.plan(other).warnings if "continue_from" in text], other
    assert not pipeline.plan().warnings


def test_what_it_goes_on_from_is_a_part_of_the_fingerprint(pipeline):
    first = pipeline.plan()["train"].fingerprint
    asked = f"stages.train.continue_from={{training: {first}, step: 8}}"
    prints = {pipeline.plan(*more, "stages.train.steps=16")["train"].fingerprint for more in ((), (asked,))}
    assert len(prints) == 2
    planned = pipeline.plan(asked, "stages.train.steps=16")["train"]
    assert f"continue_from: {first}@8" in planned.reason


def refused(pipeline: Pipeline, *more: str) -> str:
    with pytest.raises(InputError) as caught:
        pipeline.plan(*more)
    return str(caught.value)


def test_what_cannot_go_on_is_refused_before_anything_runs(pipeline):
    first = pipeline.plan()["train"].fingerprint
    asked = f"stages.train.continue_from={{training: {first}, step: 8}}"
    told = refused(pipeline, asked, "stages.train.steps=16", "stages.train.model.width=32", "stages.train.seed=1")
    assert "stages.train.model.width: expected 16 as in the training that it goes on from, got 32" in told
    assert "stages.train.seed: expected 0" in told
    assert "stages.train.steps: expected more than the 8 steps that are done, got 8" in refused(pipeline, asked)
    told = refused(pipeline, asked.replace("8}", "6}"), "stages.train.steps=16")
    assert "continue_from.step: expected a step that the training has a checkpoint of (8), got 6" in told
    nothing = f"stages.train.continue_from={{training: {'ab' * 32}, step: 8}}"
    assert f"continue_from.training: no training {'ab' * 32} of train in" in refused(pipeline, nothing)
    assert "string should match pattern" in refused(pipeline, "stages.train.continue_from={training: abc, step: 1}")


def test_a_finished_training_without_a_checkpoint_says_what_keeps_one(pipeline):
    alone = Pipeline(pipeline.folder)
    kept = alone.run("stages.train.keep_checkpoint=false", "stages.train.steps=4")
    asked = [f"stages.train.continue_from={{training: {kept.fingerprint}, step: 4}}", "stages.train.steps=16"]
    assert "is finished and kept no checkpoint; with stages.train.keep_checkpoint: true" in refused(pipeline, *asked)


def test_a_training_that_has_begun_to_go_on_needs_the_earlier_one_no_more(pipeline):
    first = pipeline.plan()["train"].fingerprint
    asked = [f"stages.train.continue_from={{training: {first}, step: 8}}", "stages.train.steps=20"]
    with pytest.raises(corpora.Killed):
        pipeline.run(*asked, dies_at=14)
    resume = pipeline.folder / "runs" / "artifacts" / "train" / first / "resume"
    resume.rename(resume.with_name("away"))
    try:
        assert pipeline.plan(*asked)["train"].status == "resume"
        made = pipeline.run(*asked)
    finally:
        resume.with_name("away").rename(resume)
    assert made.metrics["steps"] == 20
    assert sorted({step for step, _, _ in pipeline.given[made.fingerprint]}) == list(range(8, 20))
    assert made.manifest["continue_from"] == f"{first}@8"


def test_added_data_asks_for_the_tokenizer_that_the_training_has(pipeline):
    first = pipeline.plan()["train"].fingerprint
    text = pipeline.plan()["pretokenize"].artifact.file("text.json")
    added = Pipeline(pipeline.folder, sources=["texts", "more"])
    asked = [f"stages.train.continue_from={{training: {first}, step: 8}}", "stages.train.steps=16"]
    kept = added.plan(*asked)["pretokenize"]
    assert kept.config.text_tokenizer == text and "the text tokenizer stays: " in kept.reason
    told = refused(added, *asked, "stages.pretokenize.retrain=always")
    assert "stages.pretokenize.text_tokenizer: the training goes on with the text tokenizer that it has" in told
    assert f"; set it to {text}" in told
    plan = added.plan(*asked, f"stages.pretokenize.text_tokenizer={text}")
    assert [planned.status for planned in plan.stages] == ["run", "run", "run"]
    assert added.plan(*asked, f"stages.pretokenize.text_tokenizer={text}")["train"].reason


def test_it_goes_on_with_what_was_added_and_who_saw_tells_both_trainings_apart(changed, omniloom):
    plan = changed.plan(*overrides(changed))
    second, first = plan["train"].fingerprint, changed.first
    assert plan["train"].status == "cached" and second != first
    given = [entry for entry in changed.given[first]] + changed.given[second]
    assert {step for step, _, _ in changed.given[second]} == set(range(8, 16))
    assert any(int(path[:-4]) >= 100 for _, _, path in changed.given[second])
    for folder, numbers in (("texts", range(0, 60, 4)), ("more", range(100, 120, 4))):
        for number in numbers:
            found = answer(omniloom, changed, str(changed.folder / folder / f"{number}.txt"), changed.file)
            uses = {one["training"]: one["uses"] for one in found["trainings"]}
            told = [(use["step"], use["row"], f"{number}.txt") for use in uses.get(second, ())]
            assert told == [entry for entry in given if entry[2] == f"{number}.txt"]
            whose = {use["step"]: use["training"] for use in uses.get(second, ())}
            assert all(training == (first if step < 8 else second) for step, training in whose.items())
            assert not uses.get(first) or folder == "texts"


def test_a_step_behind_the_change_is_replayed_bit_for_bit_from_where_it_went_on(changed):
    plan = changed.plan(*overrides(changed))
    found = replay_step(plan, "train", 10)
    assert (found["from"], found["row"]["step"], found["equal"]) == (8, 12, True)
    given = {path for step, _, path in changed.given[plan["train"].fingerprint] if step == 10}
    assert {document["path"] for document in found["documents"]} == given
    with pytest.raises(InputError, match=f"expected at least 8, .* what was before is {changed.first}'s"):
        replay_step(plan, "train", 3)


def test_a_training_under_way_is_known_as_far_as_its_last_checkpoint(pipeline, omniloom):
    under_way = Pipeline(pipeline.folder, given=pipeline.given)
    with pytest.raises(corpora.Killed):
        under_way.run("stages.train.optimizer.lr=0.5", dies_at=6)
    fingerprint = under_way.plan("stages.train.optimizer.lr=0.5")["train"].fingerprint
    given = [entry for entry in pipeline.given[fingerprint] if entry[0] < 4]
    path = given[0][2]
    found = answer(omniloom, pipeline, f"texts:{path}", pipeline.file)
    (one,) = (one for one in found["trainings"] if one["training"] == fingerprint)
    assert [(use["step"], use["row"], path) for use in one["uses"]] == [entry for entry in given if entry[2] == path]
    assert one["steps"] == 4 and not one["finished"]
    assert fingerprint not in [model["training"] for model in found["models"]]
    # It is what a changed config goes on from, of fewer steps than the finished one has.
    warnings = under_way.plan("stages.train.optimizer.lr=0.5", "stages.train.batch_rows=4").warnings
    assert any(f"training: {fingerprint}, step: 4" in text for text in warnings)
