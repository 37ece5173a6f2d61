"""Power cuts on a double of a disk: what is declared complete is there afterwards, whatever moment the power goes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from torch import nn
from volatile import LOSSES, Disk, PowerCut

from omniloom.infra import integrity, storage
from omniloom.infra.artifacts import MANIFEST, Artifact, ArtifactStore
from omniloom.infra.training import checkpoint
from omniloom.infra.training.config import EngineConfig, OptimizerConfig
from omniloom.infra.training.engine import Engine

FINGERPRINT = "f" * 64
OLD, NEW = {"a/x.bin": b"old", "b.bin": b"older"}, {"a/x.bin": b"new", "c/d.bin": b"newer"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OMNILOOM_CACHE", str(tmp_path / "cache"))


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".tmp-")
    }


OPERATIONS = {
    "write_bytes": lambda root: storage.write_bytes(f"{root}/new/deep/x", b"content"),
    "write over": lambda root: storage.write_bytes(f"{root}/there/x", b"content"),
    "create_exclusively": lambda root: storage.create_exclusively(f"{root}/new/x", b"content"),
    "copy_file": lambda root: storage.copy_file(f"{root}/there/x", f"{root}/new/deep/y"),
    "copy_tree": lambda root: storage.copy_tree(f"{root}/there", f"{root}/new/deep"),
    "copy_tree from elsewhere": lambda root: storage.copy_tree("memory://elsewhere", f"{root}/new"),
    "move_files": lambda root: storage.move_files(f"{root}/there", f"{root}/new", ["x", "sub/z"]),
    "move what was not synced": lambda root: (
        Path(root, "there/x").write_bytes(b"by other means"),
        storage.move_files(f"{root}/there", f"{root}/new", ["x"]),
    ),
    "sync": lambda root: (Path(root, "there/sub/n").write_bytes(b"by other means"), storage.sync(f"{root}/there")),
    "localize": lambda root: storage.localize("memory://elsewhere", "digest"),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_what_storage_has_done_survives(tmp_path, monkeypatch, name, loss):
    root = tmp_path / "disk"
    (root / "there" / "sub").mkdir(parents=True)
    (root / "there" / "x").write_bytes(b"was there")
    (root / "there" / "sub" / "z").write_bytes(b"was there too")
    monkeypatch.setenv("OMNILOOM_CACHE", str(root / "cache"))
    storage.write_bytes("memory://elsewhere/deep/w", b"from elsewhere")
    with Disk(root) as disk:
        OPERATIONS[name](str(root))
        left = tree(disk.lose(tmp_path / "left", loss))
    # A move that was cut may leave the old name as well; what it has made is there.
    assert {path: data for path, data in left.items() if path in tree(root)} == tree(root)


def test_the_double_forgets(tmp_path):
    """What was written and never synced is lost in both ways; else the tests here would pass on anything."""
    root = tmp_path / "disk"
    root.mkdir()
    with Disk(root) as disk:
        (root / "x").write_bytes(b"content")
        assert tree(disk.lose(tmp_path / "names", "names")) == {"x": b""}
        assert tree(disk.lose(tmp_path / "synced", "synced")) == {}
        storage.write_bytes(str(root / "y"), b"kept")
        (root / "y").unlink()
        assert tree(disk.lose(tmp_path / "after", "synced")) == {"x": b"", "y": b"kept"}


def facts(ended: float) -> dict:
    return {"stage": "train", "metrics": {}, "times": {"ended_unix": ended, "seconds": 1.0}}


def publish(root: Path, files: dict[str, bytes], ended: float) -> Artifact:
    store = ArtifactStore(str(root))
    work = store.work_uri("train", FINGERPRINT)
    for path, content in files.items():
        target = Path(work, "output", path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)  # as a library writes it, without a sync
    return store.publish("train", FINGERPRINT, work, facts(ended))


def with_a_checkpoint(root: Path) -> None:
    work = ArtifactStore(str(root)).work_uri("train", FINGERPRINT)
    storage.write_bytes(f"{work}/state/checkpoints/step-00000004/model/x.pt", b"weights")
    files = {"model/x.pt": {"bytes": 7, "sha256": hashlib.sha256(b"weights").hexdigest()}}
    storage.write_json(
        f"{work}/state/checkpoints/step-00000004.json",
        {"format": checkpoint.FORMAT, "step": 4, "id": "4", "files": files},
    )


def operations(tmp_path: Path) -> int:
    root = tmp_path / "counted"
    publish(root, OLD, 1.0)
    with_a_checkpoint(root)
    with Disk(root) as disk:
        publish(root, NEW, 2.0)
    return disk.operations


def test_publication_survives_a_power_cut_at_any_moment(tmp_path):
    """The new artifact is there and whole, or the training goes on from its checkpoint; the old one is never lost."""
    total = operations(tmp_path)
    assert total > 20
    published = 0
    for cut in range(1, total + 1):
        root = tmp_path / f"{cut}"
        publish(root, OLD, 1.0)
        with_a_checkpoint(root)
        with Disk(root, cut, tmp_path / f"{cut}-left"):
            try:
                publish(root, NEW, 2.0)
            except PowerCut:
                pass
        for loss in LOSSES if (tmp_path / f"{cut}-left").exists() else ():
            left = tmp_path / f"{cut}-left" / loss
            store, where = ArtifactStore(str(left)), f"cut at {cut} of {total}, {loss}"
            work = store.work_uri("train", FINGERPRINT)
            if seen := store.find("train", FINGERPRINT):
                assert store.examine(seen) == [], where
            said: list[str] = []
            store.finish_publishing("train", FINGERPRINT, work, said.append)
            assert said == [], where  # the complete manifest was written when what it names was on the disk
            made = store.find("train", FINGERPRINT)
            if made is None or made.manifest["times"]["ended_unix"] == 1.0:
                found = checkpoint.latest(f"{work}/state")
                assert found and found["step"] == 4, where
                made = publish(left, NEW, 2.0)
            else:
                published += 1
            assert (
                store.examine(made) == []
                and {path: data for path, data in tree(Path(made.uri)).items() if path != MANIFEST} == NEW
            ), where
            aside = left / "replaced" / "train" / f"{FINGERPRINT}-1000"
            manifest = storage.read_json(str(aside / MANIFEST))
            assert manifest and integrity.wrong(str(aside), manifest["files"], remembered=False) == [], where
    assert published > 5


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(6, 2)

    def forward(self, x):
        return (self.net(x) - x[:, :2]).square().mean(), {}


def engine() -> Engine:
    torch.manual_seed(0)
    return Engine(Net(), OptimizerConfig(lr=3e-2, warmup_steps=0), EngineConfig(ema_decay=0.9), 8, 4)


def train(made: Engine, start: int, stop: int) -> dict[str, torch.Tensor]:
    for step in range(start, stop):
        made.backward(made(torch.randn(4, 6, generator=torch.Generator().manual_seed(step)))[0])
        made.step(step)
    return made.state_dict()


def test_training_goes_on_after_a_power_cut_at_any_moment_of_a_checkpoint(tmp_path, process_group):
    """The third checkpoint replaces the first, while the power goes: from the second or the third the weights come
    out as if nothing had been."""
    wanted, steps = train(engine(), 0, 8), set()
    cut = 0
    while True:
        cut += 1
        state, made = tmp_path / f"{cut}", engine()
        for step in (2, 4):
            train(made, step - 2, step)
            checkpoint.save(str(state), step, {"model": made}, {}, keep=2)
        train(made, 4, 6)
        with Disk(state, cut, tmp_path / f"{cut}-left"):
            try:
                checkpoint.save(str(state), 6, {"model": made}, {}, keep=2)
                break
            except PowerCut:
                pass
        for loss in LOSSES:
            found = checkpoint.latest(str(tmp_path / f"{cut}-left" / loss))
            steps.add(found["step"])
            again = engine()
            checkpoint.load(found, {"model": again})
            for name, value in train(again, found["step"], 8).items():
                assert torch.equal(value, wanted[name]), f"cut at {cut}, {loss}: {name}"
    assert cut > 8 and steps == {4, 6}
