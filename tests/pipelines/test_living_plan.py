"""Plans of a corpus that grows: what is new in it, what is kept, and what is trained again. Nothing here starts Ray."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from demo_stages import NAMES

from omniloom.infra import storage
from omniloom.infra.artifacts import ArtifactStore
from omniloom.pipelines import predecessors, takes
from omniloom.pipelines.kept import learnt_from, made_of
from omniloom.stages.ingest.increments import growth

IMAGES = "stages.tokenizer_image.retrain"


def published(workspace, *names, lineage=None):
    """As `workspace.publish`, with what the runner and ingest leave of the corpus's growth."""
    names = names or NAMES
    before = workspace.plan()
    workspace.publish(*names, content=before[names[0]].fingerprint)
    made = dict.fromkeys(names)
    for name in names:
        planned, store = before[name], before.store
        artifact = made[name] = store.find(name, planned.fingerprint)
        inputs = {read: made.get(read) or before[read].artifact for read in planned.inputs.values()}
        if name == "ingest":
            storage.write_bytes(artifact.file(growth.FILES), growth.to_bytes(growth.file_table(planned.listing)))
            known = lineage or {"records": {"image": 100, "text": 100}, "generations": []}
            storage.write_bytes(artifact.file(growth.LINEAGE), json.dumps(known).encode())
        if name == "pretokenize":
            storage.write_bytes(artifact.file("text.json"), b"{}")
        facts = {**artifact.manifest, **learnt_from(planned), "made_of": made_of(planned, inputs)}
        made[name] = replace(artifact, manifest=facts)
        storage.write_json(artifact.file("manifest.json"), facts)
        store.set_last_used("demo", made[name])


def grown(workspace, image=100, kept_images=100):
    """A generation later: lineage of what was built on the published one."""
    first = ArtifactStore(str(workspace.storage)).last_used("demo", "ingest").fingerprint
    was = {"image": 100, "text": 100}
    generation = {"fingerprint": first, "records": was, "kept": {"image": kept_images, "text": 100}}
    return {"records": {"image": image, "text": 101}, "generations": [generation]}


def test_a_new_file_is_told_by_its_number_and_the_tokenizers_stay(workspace):
    published(workspace)
    old = workspace.plan()
    (workspace.corpus / "three.txt").write_text("A third.\n")
    (workspace.corpus / "two.txt").unlink()
    (workspace.corpus / "one.txt").write_text("Another first text.\n")
    plan = workspace.plan()
    ingest = plan["ingest"]
    assert ingest.status == "run" and ingest.reason == "+1 file, -1, 1 changed"
    assert takes.of(plan)["ingest"].seconds == pytest.approx(7 * 29 / 32)  # of 7 s that 32 bytes took
    assert ingest.to_dict()["files"] == {"added": 1, "removed": 1, "changed": 1, "bytes": 29}
    for name in ("tokenizer_image", "tokenizer_joint"):
        assert plan[name].status == "cached" and plan[name].reason.startswith("kept; ")
        assert plan[name].fingerprint == old[name].fingerprint
    assert [p.name for p in plan.to_execute] == ["ingest", "pretokenize", "train", "evaluate"]
    reason = plan["pretokenize"].reason
    assert "input changed: ingest; the text tokenizer stays: 50.0% of its corpus is new to it" in reason
    assert "text_tokenizer" not in reason.replace("text tokenizer", "")
    assert plan["pretokenize"].config.text_tokenizer == f"{old['pretokenize'].uri}/text.json"


def test_growth_counts_from_what_was_learnt_from(workspace):
    published(workspace)
    first = workspace.plan()
    lineage = grown(workspace, image=125)
    (workspace.corpus / "three.txt").write_text("A third.\n")
    published(workspace, "ingest", lineage=lineage)
    plan = workspace.plan(f"{IMAGES}=when_changed_by 21%")
    image = plan["tokenizer_image"]
    assert (
        image.status == "cached" and "20.0% of its corpus is new to it (retrain: when_changed_by 21%)" in image.reason
    )
    assert plan["pretokenize"].kept.growth.new == pytest.approx(26 / 226)  # all kinds, not pictures alone
    again = workspace.plan(f"{IMAGES}=when_changed_by 19%")
    assert again["tokenizer_image"].status == "run"
    assert "it is trained again: 20.0% of its corpus" in again["tokenizer_image"].reason
    assert again["tokenizer_joint"].status == "run"  # it goes on from another one
    always = workspace.plan(f"{IMAGES}=always", "stages.pretokenize.retrain=always")
    assert always["tokenizer_image"].status == "run" and always["pretokenize"].config.text_tokenizer is None
    # What is made by the kept text tokenizer is found again, and counts from the corpus that it learnt from.
    published(workspace, "pretokenize")
    found = workspace.plan()
    assert found["pretokenize"].status == "cached" and found["pretokenize"].artifact.manifest["learnt_from"]
    assert found["pretokenize"].fingerprint != first["pretokenize"].fingerprint
    assert found["pretokenize"].kept.growth.new == pytest.approx(26 / 226)


@pytest.mark.parametrize("lineage", ["another", "mostly gone"])
def test_another_corpus_trains_its_own(workspace, lineage):
    published(workspace)
    known = grown(workspace, kept_images=49)
    (workspace.corpus / "three.txt").write_text("A third.\n")
    published(workspace, "ingest", lineage=known if lineage == "mostly gone" else None)
    plan = workspace.plan()
    assert plan["tokenizer_image"].status == "run"
    if lineage == "another":
        assert plan["pretokenize"].kept is None


def test_other_options_of_a_tokenizer_train_it(workspace):
    published(workspace)
    (workspace.corpus / "three.txt").write_text("A third.\n")
    plan = workspace.plan("stages.tokenizer_image.steps=3")
    assert plan["tokenizer_image"].status == "run" and plan["tokenizer_joint"].status == "run"
    assert workspace.plan("stages.pretokenize.vocab_size=300")["pretokenize"].kept is None
    forced = workspace.plan(force=("tokenizer_image", "pretokenize"))
    assert forced["tokenizer_image"].status == "run" and forced["pretokenize"].config.text_tokenizer is None


def test_retrain_is_no_part_of_a_fingerprint(workspace):
    published(workspace)
    assert workspace.plan(f"{IMAGES}=always", "stages.pretokenize.retrain=always").to_execute == []


def test_ingest_is_built_on_the_last_of_its_options(workspace):
    published(workspace)
    (workspace.corpus / "three.txt").write_text("A third.\n")
    plan = workspace.plan()
    earlier = predecessors.find(plan.store, "demo", plan["ingest"], {})
    assert earlier.fingerprint == plan.store.last_used("demo", "ingest").fingerprint
    for other in ("stages.ingest.chunk_chars=7", "stages.ingest.splits={train: 1, validation: 0, test: 0}"):
        asked = workspace.plan(other)["ingest"]
        assert predecessors.find(plan.store, "demo", asked, {}) is None
        assert asked.grown is None and "config: " in asked.reason
    work = plan.store.work_uri("ingest", plan["ingest"].fingerprint)

    def settled(anew=False):
        return predecessors.settled(plan.store, "demo", plan["ingest"], {}, work, anew)

    assert settled() == earlier == settled(anew=True)  # as was noted when the work began
    storage.remove(work)
    assert settled(anew=True) is None and settled() is None
    storage.remove(work)
    settled()
    storage.write_bytes(f"{work}/state/half", b"")
    storage.remove(earlier.uri)
    assert settled() is None and not storage.exists(f"{work}/state/half")
