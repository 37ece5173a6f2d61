"""Artifacts: published whole or not at all, whatever dies when; replaced ones are put aside; damage is seen."""

from __future__ import annotations

import hashlib
import os
import time

import pytest

from omniloom.infra import integrity, storage
from omniloom.infra.artifacts import (
    MANIFEST,
    ArtifactStore,
    check_folder,
    files_digest,
    names_below,
    require_finished,
    some,
)
from omniloom.infra.contents import read_contents
from omniloom.infra.errors import InputError, OmniLoomError

FINGERPRINT = "f" * 64
FILES = {"records/shard-0.bin": b"zero", "records/shard-1.bin": b"one", "report/history.jsonl": b"curve"}
OTHER_FILES = {"records/shard-0.bin": b"ZERO!", "new.bin": b"new"}


class Killed(BaseException):
    """Not an Exception: nothing may catch it on its way, as nothing catches a SIGKILL."""


def facts(ended: float = 100.0, **more) -> dict:
    return {"stage": "ingest", "metrics": {"records": 2}, "times": {"ended_unix": ended, "seconds": 1.0}, **more}


def fill(store: ArtifactStore, files: dict[str, bytes], folder: str = "output") -> str:
    work = store.work_uri("ingest", FINGERPRINT)
    for path, content in files.items():
        storage.write_bytes(storage.join(work, folder, path), content)
    return work


def publish(store: ArtifactStore, files: dict[str, bytes], ended: float = 100.0, **more):
    return store.publish("ingest", FINGERPRINT, fill(store, files), facts(ended, **more))


def contents(uri: str) -> dict[str, bytes]:
    return {path: storage.read_bytes(storage.join(uri, path)) for path in storage.list_files(uri) if path != MANIFEST}


def test_publish_and_find(root):
    store = ArtifactStore(root)
    fill(store, {"done.json": b"{}"}, "state")
    assert store.find("ingest", FINGERPRINT) is None and store.has_work("ingest", FINGERPRINT)
    made = publish(store, FILES)
    assert made == store.find("ingest", FINGERPRINT)
    assert contents(made.uri) == FILES
    assert made.manifest["files"] == [
        {"path": path, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for path, content in FILES.items()
    ]
    assert made.metrics == {"records": 2}
    assert not store.has_work("ingest", FINGERPRINT)
    assert made.file("records", "shard-0.bin").endswith(f"/artifacts/ingest/{FINGERPRINT}/records/shard-0.bin")
    assert store.all() == store.all("ingest") == [made] and store.all("train") == []
    assert contents(str(made.local())) == FILES


def test_each_artifact_is_listed_once_whatever_lies_in_it_and_is_a_value(tmp_path):
    store = ArtifactStore(str(tmp_path))
    made = publish(
        store, {**FILES, "a.json": b"{}", "tokens.json": b"{}", "deep/er/x.bin": b"1", "deep/manifest.json": b"{}"}
    )
    storage.write_bytes(storage.join(store.artifact_uri("train", FINGERPRINT), "x.bin"), b"half")
    for stray in ("note.txt", "ingest/note.txt"):  # of a person
        storage.write_bytes(storage.join(store.root, "artifacts", stray), b"")
    assert store.all() == store.all("ingest") == [made]
    with pytest.raises(AttributeError):
        made.uri = "elsewhere"


def test_a_message_names_the_first_few():
    assert [some([str(n) for n in range(count)]) for count in (1, 2, 3, 4, 9)] == [
        "0",
        "0, 1",
        "0, 1, 2",
        "0, 1, 2 and 1 more",
        "0, 1, 2 and 6 more",
    ]


def test_a_folder_is_checked_by_the_manifest_that_it_belongs_to(root):
    """The artifact itself, a folder of it, and what is no part of one."""
    made = publish(ArtifactStore(root), {"model/a.bin": b"aaaa", "model/b/c.bin": b"cccc", "report/x.html": b"x"})
    model = made.file("model")
    for uri in (made.uri, model):
        check_folder(uri, uri)
    storage.write_bytes(made.file("report", "x.html"), b"y")
    check_folder(model, model)
    with pytest.raises(OmniLoomError, match=r"is damaged: report/x.html not as the manifest says"):
        check_folder(made.uri, made.uri)
    storage.write_bytes(storage.join(model, "b", "c.bin"), b"CCCC")
    storage.remove(storage.join(model, "a.bin"))
    with pytest.raises(OmniLoomError, match=r"model is damaged: a.bin, b/c.bin not as the manifest says"):
        check_folder(model, model)
    beside = storage.join(root, "elsewhere", "model")
    storage.write_bytes(storage.join(beside, "a.bin"), b"?")
    check_folder(beside, beside)


def test_a_damaged_copy_is_removed_and_made_anew_and_the_artifact_itself_never(tmp_path, monkeypatch):
    monkeypatch.setenv("OMNILOOM_CACHE", str(tmp_path / "cache"))
    far = publish(ArtifactStore(f"memory://{tmp_path.name}"), FILES)
    copy = far.local()
    (copy / next(iter(FILES))).write_bytes(b"other")
    with pytest.raises(OmniLoomError, match=f"copy on this machine.*removed .*{next(iter(FILES))}.*run again"):
        far.local()
    assert not copy.exists() and contents(str(far.local())) == FILES == contents(far.uri)
    near = publish(ArtifactStore(str(tmp_path / "storage")), FILES)
    storage.write_bytes(near.file(next(iter(FILES))), b"other")
    assert str(near.local()) == near.uri and near.local().exists()


def test_before_it_is_published_everything_is_read_whatever_is_remembered(tmp_path, monkeypatch):
    """A disk that loses bits by itself leaves a file's size and times as they were."""
    store = ArtifactStore(str(tmp_path))
    work, said = fill(store, FILES), []
    with monkeypatch.context() as patch:
        kill_at(patch, 1, after=True)
        with pytest.raises(Killed):
            store.publish("ingest", FINGERPRINT, work, facts(1.0))
    output, files = storage.join(work, "output"), storage.read_json(storage.join(work, "publish.json"))["files"]
    lost = storage.join(output, files[0]["path"])
    storage.write_bytes(lost, bytes(byte ^ 1 for byte in storage.read_bytes(lost)))
    integrity.remember(output, files)
    assert integrity.wrong(output, files) == []
    assert store.finish_publishing("ingest", FINGERPRINT, work, said.append) is None
    assert store.find("ingest", FINGERPRINT) is None and files[0]["path"] in said[0]


def test_an_unfinished_artifact_is_none(root):
    store = ArtifactStore(root)
    storage.write_bytes(storage.join(store.artifact_uri("ingest", FINGERPRINT), "x.bin"), b"half")
    assert store.find("ingest", FINGERPRINT) is None and store.all() == []


def test_digest_is_of_the_content_without_the_report(tmp_path):
    store = ArtifactStore(str(tmp_path))
    first = publish(store, FILES, ended=1.0, config={"a": 1})
    same = publish(store, {**FILES, "report/history.jsonl": b"another curve"}, ended=2.0, config={"a": 2})
    assert same.digest == first.digest
    assert files_digest(same.manifest["files"]) != files_digest(first.manifest["files"])
    assert publish(store, {**FILES, "records/shard-1.bin": b"two"}, ended=3.0).digest != first.digest
    renamed = {("records/x.bin" if path.endswith("1.bin") else path): data for path, data in FILES.items()}
    assert publish(store, renamed, ended=4.0).digest != first.digest


def test_a_replaced_artifact_is_put_aside(root):
    store = ArtifactStore(root)
    old = publish(store, FILES, ended=1.0)
    new = publish(store, OTHER_FILES, ended=2.0)
    assert contents(new.uri) == OTHER_FILES and store.find("ingest", FINGERPRINT) == new
    aside = storage.join(root, "replaced", "ingest", f"{FINGERPRINT}-1000")
    assert contents(aside) == FILES
    assert storage.read_json(storage.join(aside, MANIFEST)) == old.manifest
    publish(store, FILES, ended=3.0)
    assert contents(storage.join(root, "replaced", "ingest", f"{FINGERPRINT}-2000")) == OTHER_FILES


def test_finishing_is_safe_to_repeat(root):
    store = ArtifactStore(root)
    work = fill(store, FILES)
    assert store.finish_publishing("ingest", FINGERPRINT, work) is None
    made = publish(store, FILES)
    assert store.finish_publishing("ingest", FINGERPRINT, work) is None
    assert store.find("ingest", FINGERPRINT) == made


OPERATIONS = ("write_bytes", "_move", "remove")


def kill_at(monkeypatch, operation: int, after: bool) -> list[str]:
    """Let the storage raise at its `operation`-th change, before or after it took effect; gives what was called."""
    calls: list[str] = []

    def wrap(name, original):
        def wrapped(*arguments):
            calls.append(name)
            if len(calls) == operation and not after:
                raise Killed
            result = original(*arguments)
            if len(calls) == operation:
                raise Killed
            return result

        return wrapped

    for name in OPERATIONS:
        monkeypatch.setattr(storage, name, wrap(name, getattr(storage, name)))
    return calls


def count_operations(tmp_path, monkeypatch, replaces: bool) -> int:
    store = ArtifactStore(str(tmp_path / "counted"))
    if replaces:
        publish(store, FILES, ended=1.0)
    work = fill(store, OTHER_FILES)
    with monkeypatch.context() as patch:
        calls = kill_at(patch, 0, after=False)
        store.publish("ingest", FINGERPRINT, work, facts(2.0))
    return len(calls)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("replaces", [False, True])
def test_publication_killed_anywhere_is_finished(tmp_path, monkeypatch, replaces, after):
    operations = count_operations(tmp_path, monkeypatch, replaces)
    assert operations >= (12 if replaces else 6)
    for operation in range(1, operations + 1):
        store = ArtifactStore(str(tmp_path / f"{operation}"))
        if replaces:
            publish(store, FILES, ended=1.0)
        work = fill(store, OTHER_FILES)
        fill(store, {"shards/0.json": b"{}"}, "state")
        with monkeypatch.context() as patch:
            kill_at(patch, operation, after)
            with pytest.raises(Killed):
                store.publish("ingest", FINGERPRINT, work, facts(2.0))
        # A reader meets a whole artifact or none.
        if seen := store.find("ingest", FINGERPRINT):
            assert store.examine(seen) == [], f"operation {operation}"
        # Dies again at each change of the second attempt, which must not do harm either.
        with monkeypatch.context() as patch:
            kill_at(patch, 1 + operation % 4, after)
            try:
                store.finish_publishing("ingest", FINGERPRINT, work)
            except Killed:
                pass
        begun = storage.exists(storage.join(work, "publish.json"))
        finished = store.finish_publishing("ingest", FINGERPRINT, work)
        made = store.find("ingest", FINGERPRINT)
        if made is None or made.manifest["times"]["ended_unix"] == 1.0:  # killed before the publication was begun
            assert not begun and finished is None
            assert contents(storage.join(work, "output")) == OTHER_FILES
            made = store.publish("ingest", FINGERPRINT, work, facts(2.0))
        assert contents(made.uri) == OTHER_FILES
        assert store.examine(made) == []
        if replaces:
            aside = storage.join(store.root, "replaced", "ingest", f"{FINGERPRINT}-1000")
            assert contents(aside) == FILES, f"operation {operation}"
            assert storage.exists(storage.join(aside, MANIFEST))


def test_publication_killed_on_an_object_store_is_finished(s3, monkeypatch):
    store = ArtifactStore(s3)
    publish(store, FILES, ended=1.0)
    work = fill(store, OTHER_FILES)
    copied, copy_file = [], storage.copy_file

    def copy_then_die(source, target):
        copy_file(source, target)
        copied.append(target)
        if len(copied) == 4:  # the copy is there, the original too
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(storage, "copy_file", copy_then_die)
        with pytest.raises(Killed):
            store.publish("ingest", FINGERPRINT, work, facts(2.0))
    made = store.finish_publishing("ingest", FINGERPRINT, work)
    assert contents(made.uri) == OTHER_FILES
    assert contents(storage.join(s3, "replaced", "ingest", f"{FINGERPRINT}-1000")) == FILES
    assert not store.has_work("ingest", FINGERPRINT)


@pytest.mark.parametrize("moved", [False, True])
def test_a_damaged_publication_is_withdrawn_and_trainings_keep_their_checkpoints(root, monkeypatch, moved):
    """As after a power cut on a machine that did not sync: the files that the complete manifest names are empty."""
    store = ArtifactStore(root)
    old = publish(store, FILES, ended=1.0)
    work = fill(store, OTHER_FILES)
    kept = {
        "checkpoints/step-1.json": b"{}",
        "checkpoints/step-1/model/x.pt": b"weights",
        "history.jsonl": b"{}",
        "study/checkpoints/step-1.json": b"{}",
    }
    fill(store, {**kept, "shards/0.json": b"{}", "study/metrics.json": b"{}", "metrics.json": b"{}"}, "state")
    write_json, said = storage.write_json, []

    def die_at_the_end(uri, value):
        if uri.endswith(f"artifacts/ingest/{FINGERPRINT}/{MANIFEST}" if moved else "replaces.json"):
            raise Killed
        write_json(uri, value)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_json", die_at_the_end)
        with pytest.raises(Killed):
            store.publish("ingest", FINGERPRINT, work, facts(2.0))
    damaged = store.artifact_uri("ingest", FINGERPRINT) if moved else storage.join(work, "output")
    storage.write_bytes(storage.join(damaged, "new.bin"), b"")
    assert store.finish_publishing("ingest", FINGERPRINT, work, said.append) is None
    assert "new.bin" in said[0] and damaged in said[0]
    assert contents(work) == {f"state/{name}": data for name, data in kept.items()} | (
        {"replaces.json": storage.read_bytes(storage.join(work, "replaces.json"))} if moved else {}
    )
    aside = storage.join(root, "replaced", "ingest", f"{FINGERPRINT}-1000")
    assert contents(aside if moved else old.uri) == FILES
    assert (store.find("ingest", FINGERPRINT) is None) == moved
    made = publish(store, OTHER_FILES, ended=3.0)  # the stage has run again
    assert contents(made.uri) == OTHER_FILES and store.examine(made) == [] and contents(aside) == FILES


def test_leftovers_of_killed_writes_go_when_they_are_old(tmp_path):
    store = ArtifactStore(str(tmp_path))
    made = publish(store, FILES)
    store.set_last_used("demo", made)
    places = [
        tmp_path / "runs",
        tmp_path / "pipelines/demo",
        tmp_path / "leases/train",
        tmp_path,
        tmp_path / "artifacts/ingest" / FINGERPRINT,
    ]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
        for name, age in ((".tmp-old", 90_000), (".tmp-new", 60)):
            (place / name).write_bytes(b"part")
            os.utime(place / name, (time.time() - age,) * 2)
    store.remove_leftovers()
    assert sorted(tmp_path.rglob(".tmp-*")) == sorted(place / ".tmp-new" for place in places)
    assert store.examine(made) == []
    ArtifactStore("memory://nothing").remove_leftovers()


def test_leftovers_of_a_finished_publication_are_no_work_to_resume(tmp_path, monkeypatch):
    """Killed while the work folder was removed: a later run must not go on from a state without its output."""
    store = ArtifactStore(str(tmp_path))
    work = fill(store, FILES)
    fill(store, {"shards/0.json": b"{}"}, "state")
    remove, removed = storage.remove, []

    def remove_one_then_die(uri):
        remove(uri)
        removed.append(uri)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(storage, "remove", remove_one_then_die)
        with pytest.raises(Killed):
            store.publish("ingest", FINGERPRINT, work, facts())
    assert store.find("ingest", FINGERPRINT)
    assert not storage.exists(storage.join(work, "state"))
    assert store.finish_publishing("ingest", FINGERPRINT, work) is None
    assert not store.has_work("ingest", FINGERPRINT)


def test_damage(root):
    store = ArtifactStore(root)
    made = publish(store, FILES)
    assert store.damage(made) == store.examine(made) == []
    storage.remove(made.file("records/shard-0.bin"))
    storage.write_bytes(made.file("records/shard-1.bin"), b"longer than before")
    assert store.damage(made) == ["records/shard-0.bin", "records/shard-1.bin"]


def test_what_examining_finds_is_seen_by_later_plans_until_it_is_mended(root):
    """A flipped bit changes no size: who looks at sizes alone learns it from who has read the content."""
    store = ArtifactStore(root)
    made = publish(store, FILES)
    storage.write_bytes(made.file("report/history.jsonl"), b"cUrve")
    assert store.damage(made) == []
    assert store.examine(made) == store.damage(made) == ["report/history.jsonl"]
    assert ArtifactStore(root).damage(made) == ["report/history.jsonl"]
    storage.write_bytes(made.file("report/history.jsonl"), b"curve")  # put back from a copy
    assert store.examine(made) == store.damage(made) == []
    storage.write_bytes(made.file("report/history.jsonl"), b"cUrve")
    store.examine(made)
    again = publish(store, FILES, ended=200.0)
    assert store.damage(again) == store.examine(again) == []


def test_before_use_only_what_was_written_since_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("OMNILOOM_CACHE", str(tmp_path / "cache"))
    store, read, sha256 = ArtifactStore(str(tmp_path / "storage")), [], storage.sha256
    made = publish(store, FILES)
    monkeypatch.setattr(
        storage, "sha256", lambda uri, size: (read.append(uri.rpartition("/")[2]), sha256(uri, size))[1]
    )
    assert store.examine(made, remembered=True) == [] and read == []  # hashed when it was published
    shard = tmp_path / "storage" / "artifacts" / "ingest" / FINGERPRINT / "records" / "shard-0.bin"
    times = shard.stat()
    with open(shard, "r+b") as file:  # as a careless tool does: in place, of the same size, with the old times
        file.write(b"Z")
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert store.examine(made, remembered=True) == ["records/shard-0.bin"] and read == ["shard-0.bin"]
    assert store.damage(made) == ["records/shard-0.bin"]
    assert store.examine(made, remembered=True) == ["records/shard-0.bin"]
    assert len(store.examine(made)) == 1 and len(read) == 2 + len(FILES)
    monkeypatch.setenv("OMNILOOM_CACHE", str(tmp_path / "another machine"))
    read.clear()
    assert store.examine(made, remembered=True) == ["records/shard-0.bin"] and len(read) == len(FILES)
    (next((tmp_path / "cache" / "verified").iterdir())).write_text("[]")  # a memory that is damaged is none
    monkeypatch.setenv("OMNILOOM_CACHE", str(tmp_path / "cache"))
    assert store.examine(made, remembered=True) == ["records/shard-0.bin"]


def test_last_used_outlives_the_artifact(root):
    store = ArtifactStore(root)
    assert store.last_used("demo", "ingest") is None
    made = publish(store, FILES)
    store.set_last_used("demo", made)
    assert store.last_used("demo", "ingest") == made and store.last_used("other", "ingest") is None
    storage.remove(made.uri)
    assert store.last_used("demo", "ingest") == made and store.find("ingest", FINGERPRINT) is None


def test_last_used_is_written_only_when_it_changes(tmp_path):
    store = ArtifactStore(str(tmp_path))
    made = publish(store, FILES)
    store.set_last_used("demo", made)
    record = tmp_path / "pipelines/demo/ingest.json"
    os.utime(record, (1, 1))
    store.set_last_used("demo", made)
    assert record.stat().st_mtime == 1
    store.set_last_used("demo", publish(store, OTHER_FILES, ended=200.0))
    assert record.stat().st_mtime > 1


class InPlace:
    """Work on a store where a move is a copy: the stage writes where its files will lie."""

    def __init__(self, root: str):
        self.store = ArtifactStore(root)
        self.work = self.store.work_uri("ingest", FINGERPRINT)
        self.place = self.store.artifact_uri("ingest", FINGERPRINT)

    def begin(self, files: dict[str, bytes]) -> str:
        output = self.store.begin_work("ingest", FINGERPRINT, {"records": "d"})
        for path, content in files.items():
            storage.write_bytes(storage.join(output, path), content)
        fill(self.store, {"shards/0.json": b"{}"}, "state")
        return output

    def publish(self, ended: float = 100.0):
        return self.store.publish("ingest", FINGERPRINT, self.work, facts(ended))


def test_on_an_object_store_files_are_written_where_they_will_lie(s3, monkeypatch):
    there = InPlace(s3)
    assert there.begin(FILES) == there.place
    assert there.store.find("ingest", FINGERPRINT) is None and there.store.all() == []
    with pytest.raises(InputError, match=r"is not finished: .*manifest\.json"):
        require_finished(storage.join(there.place, "records"))
    with pytest.raises(InputError, match="is not finished"):
        read_contents(storage.join(there.place, "records"), "folder")
    monkeypatch.setattr(storage, "copy_file", None)  # nothing is copied
    made = there.publish()
    assert made == there.store.find("ingest", FINGERPRINT) and contents(made.uri) == FILES
    assert there.store.examine(made) == [] and not there.store.has_work("ingest", FINGERPRINT)
    require_finished(made.file("records"))


def test_elsewhere_the_output_is_in_the_work_folder(tmp_path):
    for root in (str(tmp_path), f"memory://{tmp_path.name}"):
        there = InPlace(root)
        assert there.begin(FILES) == storage.join(there.work, "output")
        assert contents(there.publish().uri) == FILES


def test_work_in_place_goes_on_and_what_was_given_up_goes(s3):
    there = InPlace(s3)
    there.begin({"a.bin": b"a"})
    there.begin({"b.bin": b"b"})  # a run that goes on
    assert contents(there.place) == {"a.bin": b"a", "b.bin": b"b"}
    storage.remove(there.work)  # by a run that begins anew
    there.begin({"c.bin": b"c"})
    assert contents(there.publish().uri) == {"c.bin": b"c"}


def test_an_artifact_on_an_object_store_stays_until_the_one_that_replaces_it_is_whole(s3):
    there = InPlace(s3)
    there.begin(FILES)
    old = there.publish(1.0)
    assert there.begin(OTHER_FILES) == storage.join(there.work, "output")
    assert there.store.find("ingest", FINGERPRINT) == old and contents(old.uri) == FILES
    assert contents(there.publish(2.0).uri) == OTHER_FILES
    assert contents(storage.join(s3, "replaced", "ingest", f"{FINGERPRINT}-1000")) == FILES
    # What is left of work in place is none that may write over an artifact.
    storage.write_json(storage.join(there.work, "in-place.json"), {})
    assert there.begin(FILES) == storage.join(there.work, "output")


def test_readers_take_what_the_manifest_names(s3, monkeypatch, tmp_path):
    """A process that lost its lease may still write into the folder."""
    monkeypatch.setenv("OMNILOOM_CACHE", str(tmp_path))
    there = InPlace(s3)
    there.begin(FILES)
    assert names_below(there.place, "records") == ["shard-0.bin", "shard-1.bin"]  # while it is made
    made = there.publish()
    storage.write_bytes(made.file("records", "shard-9.bin"), b"late")
    assert names_below(made.uri, "records") == ["shard-0.bin", "shard-1.bin"]
    assert contents(str(made.local())) == FILES
    assert there.store.damage(made) == []


@pytest.mark.parametrize("after", [False, True])
def test_publication_in_place_killed_anywhere_is_finished(s3, monkeypatch, after):
    there = InPlace(f"{s3}/counted")
    there.begin(FILES)
    with monkeypatch.context() as patch:
        calls = kill_at(patch, 0, after=False)
        there.publish()
    assert len(calls) >= 4
    for operation in range(1, len(calls) + 1):
        there = InPlace(f"{s3}/{operation}")
        there.begin(FILES)
        with monkeypatch.context() as patch:
            kill_at(patch, operation, after)
            with pytest.raises(Killed):
                there.publish()
        if seen := there.store.find("ingest", FINGERPRINT):
            assert there.store.examine(seen) == [], f"operation {operation}"
        there.store.finish_publishing("ingest", FINGERPRINT, there.work)
        if there.store.find("ingest", FINGERPRINT) is None:  # killed before the publication was begun
            there.begin({})
            there.publish()
        made = there.store.find("ingest", FINGERPRINT)
        assert contents(made.uri) == FILES and there.store.examine(made) == []


def test_a_damaged_publication_in_place_is_withdrawn(s3, monkeypatch):
    there, said = InPlace(s3), []
    there.begin(FILES)
    with monkeypatch.context() as patch:
        kill_at(patch, 1, after=True)  # the manifest is written down in the work folder
        with pytest.raises(Killed):
            there.publish()
    storage.remove(storage.join(there.place, "records", "shard-1.bin"))
    assert there.store.finish_publishing("ingest", FINGERPRINT, there.work, said.append) is None
    assert "records/shard-1.bin" in said[0] and contents(there.place) == {}
    there.begin(OTHER_FILES)
    assert contents(there.publish().uri) == OTHER_FILES
